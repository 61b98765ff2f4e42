# SPDX-License-Identifier: Apache-2.0
"""A real image made from Debian packages: a root filesystem with python3, in three layers.

1  Debian, minbase, with python3
2  a user, a program, a directory with three files
3  the directory emptied but for one file (whiteouts), the program replaced
"""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

CACHE = Path("/var/cache/hyper/demo-image")
_EPOCH = 1_767_225_600  # 2026-01-01: the same bytes each time

_PROGRAM_V1 = "print('the program of layer 2: layer 3 should have replaced it')\n"
_PROGRAM = """import os, platform, sys, time
args = sys.argv[1:] or ["hello"]
if args[0] == "hello":
    print(f"hello from {platform.freedesktop_os_release()['PRETTY_NAME']}, uid {os.getuid()}, pid {os.getpid()}")
    print(f"guest kernel {platform.release()}")
    print("files of layer 2 that layer 3 left:", *sorted(os.listdir("/srv/demo/files")))
elif args[0] == "count":
    for number in range(1, 1000000):
        print("tick", number, flush=True)
        time.sleep(1)
else:
    os.execvp(args[0], args)
"""


def make(suite: str) -> Path:
    """An `oci:` layout with the tag `latest`, kept under the hash of what it is made from."""
    key = hashlib.sha256(
        repr((suite, _PROGRAM_V1, _PROGRAM, Path(__file__).read_bytes())).encode()
    ).hexdigest()[:16]
    place = CACHE / key
    if place.is_dir():
        return place
    work = CACHE / f".{key}.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _build(work, suite)
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def _build(work: Path, suite: str) -> None:
    base = work / "base.tar"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(_EPOCH)}
    _run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=python3-minimal,libpython3-stdlib",
            suite,
            str(base),
        ],
        environment,
    )
    layout = work / "oci"
    tag = f"{layout}:latest"
    _run(["umoci", "init", "--layout", str(layout)])
    _run(["umoci", "new", "--image", tag])
    second, third = work / "second.tar", work / "third.tar"
    _tar(second, _second_layer(base))
    _tar(third, _third_layer())
    for layer in (base, second, third):
        _run(["umoci", "raw", "add-layer", "--image", tag, str(layer)])
        layer.unlink()
    _run([
        "umoci", "config", "--image", tag, "--config.user", "demo", "--config.workingdir", "/srv/demo",
        "--config.entrypoint", "python3", "--config.entrypoint", "/srv/demo/main.py", "--config.cmd", "hello",
        "--config.env", "PYTHONUNBUFFERED=1", "--author", "hyper's demo", "--created", "2026-01-01T00:00:00Z",
    ])  # fmt: skip
    _run(["umoci", "gc", "--layout", str(layout)])
    for item in layout.iterdir():
        item.rename(work / item.name)
    layout.rmdir()


def _second_layer(base: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(base) as archive:
        users = {
            name: (archive.extractfile(f"./etc/{name}") or io.BytesIO()).read()
            for name in ("passwd", "group")
        }
    yield _file("etc/passwd", users["passwd"] + b"demo:x:1000:1000:Demo:/srv/demo:/bin/sh\n")
    yield _file("etc/group", users["group"] + b"demo:x:1000:\n")
    yield _directory("srv/demo")
    yield _file("srv/demo/main.py", _PROGRAM_V1.encode())
    yield _directory("srv/demo/files")
    for name in ("one", "two", "three"):
        yield _file(f"srv/demo/files/{name}", f"{name}\n".encode())


def _third_layer() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    yield _file("srv/demo/main.py", _PROGRAM.encode())
    yield _file("srv/demo/files/.wh.one", b"")
    yield _file("srv/demo/files/.wh.three", b"")


def _file(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), _EPOCH, 0o644
    return info, data


def _directory(name: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.mode = tarfile.DIRTYPE, _EPOCH, 0o755
    return info, b""


def _tar(path: Path, entries: Iterator[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))


def _run(argv: list[str], environment: dict[str, str] | None = None) -> None:
    finished = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(
            f"demo: {' '.join(argv[:4])} failed with {finished.returncode}:\n{finished.stderr[-2000:]}"
        )
