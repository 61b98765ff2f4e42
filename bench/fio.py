# SPDX-License-Identifier: Apache-2.0
"""Debian's fio in a guest of ours and in a bare QEMU's: on the writable layer and a volume; same disk and cache mode.

fio measures itself, by the guest's clock. It comes with its libraries and nothing else: in an image of its own here, in
the bare guest's image there.
"""

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Aim, CannotMeasureError, Result, interleaved, summarize
from bench.stage import Stage
from bench.storage import SCRATCH, bare_guest
from tests import bareguest

PROGRAM = Path("/usr/bin/fio")
IMAGE = "bench.local/fio:latest"
SIZE_MIB = 96  # of the file: less than the guest's memory, and it is not in its cache all the same
RUNTIME_S = 5
TIMEOUT_S = 300.0  # an emulated guest links 60 libraries, and lays the file out
COMMON = (
    "--name=job --ioengine=libaio --direct=1 --thread --group_reporting --output-format=json --norandommap"
    f" --randrepeat=0 --time_based --runtime={RUNTIME_S} --size={SIZE_MIB}m --fallocate=none"
)
# What is asked for, and how many MiB an operation has.
JOBS = {
    "4 KiB at random, read, 16 at a time": ("--rw=randread --bs=4k --iodepth=16", "read"),
    "4 KiB at random, written, 16 at a time": ("--rw=randwrite --bs=4k --iodepth=16", "write"),
    "4 KiB at random, written and synced, one at a time": (
        "--rw=randwrite --bs=4k --iodepth=1 --fsync=1",
        "write",
    ),
    "1 MiB in sequence, read": ("--rw=read --bs=1m --iodepth=4", "read"),
    "1 MiB in sequence, written": ("--rw=write --bs=1m --iodepth=4", "write"),
}
AT_MOST = Aim(ratio=1.05)


def speed(stage: Stage) -> list[Result]:
    """Microseconds an operation: so many are done in a second."""
    if not PROGRAM.exists():
        raise CannotMeasureError("there is no fio: Debian's package has it")
    host, name = stage.host, f"bench-{secrets.token_hex(4)}"
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
        tar = Path(directory) / "fio.tar"
        add_program(Path(directory) / "root")
        bareguest.add_busybox(Path(directory) / "root")
        subprocess.run(["tar", "-cf", tar, "-C", tar.with_name("root"), "."], check=True)
        host.ok("import", str(tar), IMAGE, timeout_s=TIMEOUT_S)
    host.ok(
        "run",
        "-d",
        "--name",
        name,
        "-v",
        f"{name}:/volume",
        IMAGE,
        "/bin/sleep",
        "100000",
        timeout_s=TIMEOUT_S,
    )
    try:
        with bare_guest(add_program) as bare:
            for place, file in (("the writable layer", "/file"), ("a volume", "/volume/file")):
                for title, (job, direction) in JOBS.items():
                    script = f"fio {COMMON} {job} --filename="
                    ours, floor = interleaved(
                        stage.runs(5),
                        lambda script=script + file, way=direction: microseconds(  # type: ignore[misc]
                            host.ok("exec", name, "/bin/sh", "-c", script, timeout_s=TIMEOUT_S), way
                        ),
                        lambda script=f"{script}/file", way=direction: microseconds(bare.say(script), way),  # type: ignore[misc]
                    )
                    note = f"{SIZE_MIB} MiB file, {RUNTIME_S} s a run"
                    results.append(
                        summarize(f"{place}: {title}", "us each", ours, floor=floor, aim=AT_MOST, note=note)
                    )
    finally:
        host.run("rm", "-f", name)
        host.run("volume", "rm", name)
        host.run("rmi", IMAGE)
    return results


def microseconds(output: str, direction: str) -> float:
    """Of fio's JSON, which may have warnings before it. Raises RuntimeError: it failed."""
    start = output.find("{")
    try:
        job = json.loads(output[start:])["jobs"][0]
        rate = float(job[direction]["iops"])
    except (ValueError, KeyError, IndexError) as error:
        raise RuntimeError(f"fio said: {output[:1000]}") from error
    if job["error"] or not rate:
        raise RuntimeError(f"fio failed: error {job['error']}")
    return 1e6 / rate


def libraries(listed: str) -> Sequence[str]:
    """Of what `ldd` says: paths, the loader's too."""
    return [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def add_program(root: Path) -> None:
    listed = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    for path in (str(PROGRAM), *libraries(listed)):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / "fio").symlink_to(PROGRAM)
