# SPDX-License-Identifier: Apache-2.0
"""Images: pulls, pushes and commits against what other tools take, memory and disk. `--image-mib` scales all of it."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from isal import igzip

from bench.api import IMAGE
from bench.image_data import Layer, Layout, publish, running_registry, write_tar
from bench.measure import Aim, Result, summarize
from bench.stage import Stage
from tests.harness import Hyper
from tests.images import mkfs_erofs

LAYERS = 10
COMMIT_LEVEL = 1  # as hyperd's
GROWTH_MIB = 64
SIBLINGS = 4
TIMEOUT_S = 1800.0
NO_PODMAN = "podman is not installed (Debian's package podman): no floor"


@dataclass(frozen=True, slots=True)
class Shelf:
    """A registry with what is pulled from it, and the same as a layout."""

    address: str
    layout: Layout
    scratch: Path


def pull(stage: Stage) -> list[Result]:
    """First and second image, ours and each floor in turn, all from nothing each time."""
    ours: list[float] = []
    second: list[float] = []
    copied: list[float] = []
    podman: list[float] = []
    with _shelf() as shelf:
        layers = [shelf.layout.add_layer(seed, _layer_bytes(stage)) for seed in range(LAYERS + 1)]
        _offer(shelf, "first", layers[:LAYERS])
        _offer(shelf, "second", [*layers[: LAYERS - 1], layers[LAYERS]])
        for _ in range(stage.runs(3)):
            with _emptied(stage.host, [f"{shelf.address}/first:1", f"{shelf.address}/second:1"]) as (a, b):
                ours.append(_pull_s(stage.host, a))
                second.append(_pull_s(stage.host, b))
            copied.append(_timed(lambda: _copy_and_convert(shelf, "first", layers[:LAYERS])))
            if shutil.which("podman"):
                podman.append(_podman_pull_s(shelf, f"{shelf.address}/first:1"))
    what = f"pull of {stage.image_mib} MiB in {LAYERS} layers, until it can run"
    return [
        summarize(what, "s", ours, floor=podman, aim=Aim(ratio=0.8), note="floor: podman pull")
        if podman
        else summarize(what, "s", ours, note=NO_PODMAN),
        summarize(
            what, "s", ours, floor=copied, aim=Aim(ratio=1.5), note="floor: skopeo copy, gzip -dc | mkfs.erofs each"
        ),
        summarize(
            f"a second image, {LAYERS - 1} of {LAYERS} layers the same",
            "s",
            second,
            floor=ours,
            aim=Aim(ratio=0.2),
            note="floor: the first",
        ),
    ]  # fmt: skip


def memory(stage: Stage) -> list[Result]:
    """The high-water mark of hyperd's resident memory in the pull of one large layer, above what it had."""
    grown: list[float] = []
    with _shelf() as shelf:
        _offer(shelf, "large", [shelf.layout.add_layer(0, 2 * stage.image_mib << 20)])
        assert stage.host.daemon is not None
        status = Path(f"/proc/{stage.host.daemon.pid}")
        for _ in range(stage.runs(1)):
            with _emptied(stage.host, [f"{shelf.address}/large:1"]) as (name,):
                (status / "clear_refs").write_text(
                    "5"
                )  # the high-water mark begins anew (proc_pid_clear_refs(5))
                before = _memory_mib(status, "VmRSS")
                _pull_s(stage.host, name)
                grown.append(_memory_mib(status, "VmHWM") - before)
    what = f"hyperd grows in the pull of a layer of {2 * stage.image_mib} MiB"
    return [summarize(what, "MiB", grown, aim=Aim(most=GROWTH_MIB))]


def push(stage: Stage) -> list[Result]:
    """To a registry that has nothing of it, each time."""
    ours: list[float] = []
    floor: list[float] = []
    with _shelf() as shelf:
        _offer(shelf, "pushed", [shelf.layout.add_layer(seed, _layer_bytes(stage)) for seed in range(LAYERS)])
        with _emptied(stage.host, [f"{shelf.address}/pushed:1"]) as (name,):
            _pull_s(stage.host, name)
            for _ in range(stage.runs(3)):
                with _fresh_registry(shelf) as target:
                    stage.host.ok("tag", name, f"{target}/pushed:1")
                    ours.append(_hyper_s(stage.host, "push", "-q", f"{target}/pushed:1"))
                    stage.host.ok("rmi", f"{target}/pushed:1")
                with _fresh_registry(shelf) as target:
                    floor.append(_timed(lambda: publish(shelf.layout, "pushed", f"{target}/pushed:1")))
    what = f"push of {stage.image_mib} MiB in {LAYERS} layers"
    return [
        summarize(what, "s", ours, floor=floor, aim=Aim(ratio=1.2), note="floor: skopeo copy of a layout")
    ]


def commit(stage: Stage) -> list[Result]:
    """Half of ``--image-mib`` of changes in a container that runs."""
    size = stage.image_mib << 19
    ours: list[float] = []
    imported: list[float] = []
    floor: list[float] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, ExitStack() as stack:
        tar, tree = Path(scratch) / "changes.tar", Path(scratch) / "tree"
        with tar.open("wb") as file:
            write_tar(file, 0, size)
        tree.mkdir()
        subprocess.run(["tar", "-xf", tar, "-C", tree], check=True)
        container = stage.host.ok("run", "-d", IMAGE, "sleep", "100000")
        stack.callback(stage.host.run, "rm", "-f", container)
        stage.host.ok("cp", f"{tree}/srv", f"{container}:/", timeout_s=TIMEOUT_S)
        for number in range(stage.runs(3)):
            ours.append(_hyper_s(stage.host, "commit", container, f"bench-commit:{number}"))
            imported.append(_hyper_s(stage.host, "import", str(tar), f"bench-import:{number}"))
            floor.append(_timed(lambda: _tar_and_gzip(tree, Path(scratch) / "packed")))
        made = [f"bench-{verb}:{number}" for verb in ("commit", "import") for number in range(stage.runs(3))]
        stage.host.ok("rmi", *made)
    note = f"floor: tar | ISA-L gzip, level {COMMIT_LEVEL}, on the host"
    return [
        summarize(
            f"commit of {size >> 20} MiB of changes", "s", ours, floor=floor, aim=Aim(ratio=1.2), note=note
        ),
        summarize(
            "  import of the same tar", "s", imported, floor=floor, note="the host's part: no guest, no diff"
        ),
    ]


def disk(stage: Stage) -> list[Result]:
    """What the store takes for images that share all layers but one each; floor: each blob and each EROFS file once."""
    with _shelf() as shelf:
        base = [shelf.layout.add_layer(seed, _layer_bytes(stage)) for seed in range(LAYERS - 1)]
        own = [shelf.layout.add_layer(LAYERS + number, _layer_bytes(stage)) for number in range(SIBLINGS)]
        for number, layer in enumerate(own):
            _offer(shelf, f"sibling{number}", [*base, layer])
        names = [f"{shelf.address}/sibling{number}:1" for number in range(SIBLINGS)]
        store = stage.host.state_dir / "images"
        with _emptied(stage.host, names):
            before = _du_bytes(store)
            for name in names:
                _pull_s(stage.host, name)
            ours = (_du_bytes(store) - before) / (1 << 20)
        union = 0
        for layer in (*base, *own):
            file = _convert(shelf, layer)
            union += layer.size_bytes + file.stat().st_blocks * 512
            file.unlink()
    note = f"floor: {LAYERS - 1 + SIBLINGS} blobs and EROFS files, each once"
    what = f"{SIBLINGS} images that share {LAYERS - 1} of {LAYERS} layers, on disk"
    return [summarize(what, "MiB", [ours], floor=[union / (1 << 20)], aim=Aim(ratio=1.02), note=note)]


def _tar_and_gzip(tree: Path, target: Path) -> None:
    with (
        subprocess.Popen(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE) as tar,
        target.open("wb") as out,
        igzip.IGzipFile(  # type: ignore[no-untyped-call]
            fileobj=out, mode="wb", compresslevel=COMMIT_LEVEL
        ) as packed,
    ):
        assert tar.stdout is not None
        shutil.copyfileobj(tar.stdout, packed, 1 << 20)


def _layer_bytes(stage: Stage) -> int:
    return (stage.image_mib << 20) // LAYERS


@contextmanager
def _shelf() -> Iterator[Shelf]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="hyper-bench-") as name:
        scratch = Path(name)
        with running_registry(scratch / "registry") as address:
            yield Shelf(address, Layout(scratch / "layout"), scratch)


@contextmanager
def _fresh_registry(shelf: Shelf) -> Iterator[str]:
    directory = shelf.scratch / "fresh"
    try:
        with running_registry(directory) as address:
            yield address
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _offer(shelf: Shelf, name: str, layers: Sequence[Layer]) -> None:
    shelf.layout.add_image(name, layers)
    publish(shelf.layout, name, f"{shelf.address}/{name}:1")


@contextmanager
def _emptied(host: Hyper, names: list[str]) -> Iterator[list[str]]:
    """None of them is there before, nor after."""
    try:
        yield names
    finally:
        host.run("rmi", "-f", *names, timeout_s=TIMEOUT_S)


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _hyper_s(host: Hyper, *arguments: str) -> float:
    return _timed(lambda: host.ok(*arguments, timeout_s=TIMEOUT_S))


def _pull_s(host: Hyper, name: str) -> float:
    return _hyper_s(host, "pull", "-q", name)


def _copy_and_convert(shelf: Shelf, name: str, layers: Sequence[Layer]) -> None:
    target = shelf.scratch / "copied"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    try:
        subprocess.run([*copy, f"docker://{shelf.address}/{name}:1", f"oci:{target}"], check=True)
        for layer in layers:
            _convert(shelf, layer, target / "blobs/sha256")
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _convert(shelf: Shelf, layer: Layer, blobs: Path | None = None) -> Path:
    file = shelf.scratch / f"{layer.diff_id.removeprefix('sha256:')}.erofs"
    blob = (blobs or shelf.layout.blobs) / layer.digest.removeprefix("sha256:")
    convert = 'gzip -dc "$0" | "$1" --quiet --tar=f --aufs --sort=none "$2"'
    subprocess.run(["sh", "-c", convert, blob, mkfs_erofs(), file], check=True, stdout=subprocess.DEVNULL)
    if blobs is not None:
        file.unlink()
    return file


def _podman_pull_s(shelf: Shelf, name: str) -> float:
    root = shelf.scratch / "podman"
    options = [f"--root={root}/root", f"--runroot={root}/run", "--storage-driver=overlay"]
    try:
        return _timed(
            lambda: subprocess.run(
                ["podman", *options, "pull", "--quiet", "--tls-verify=false", name],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        )
    finally:
        subprocess.run(["podman", *options, "rmi", "-af"], check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


def _memory_mib(process: Path, name: str) -> float:
    [line] = [line for line in (process / "status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def _du_bytes(directory: Path) -> int:
    return int(
        subprocess.run(["du", "-s", "-B1", directory], capture_output=True, check=True).stdout.split()[0]
    )
