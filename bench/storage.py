# SPDX-License-Identifier: Apache-2.0
"""Disks: how fast a guest writes and reads them beside a bare QEMU's, what an attach takes, what discard gives back.

Times are the guest's own (/proc/uptime, hundredths of a second), of the same busybox and cache mode on both sides.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bench.api import IMAGE
from bench.measure import Aim, Result, interleaved, summarize
from bench.stage import Stage
from hyperd.guest import Guest
from tests import bareguest

SCRATCH = "/var/tmp"  # where the benchmarks' hyperd keeps its disks too
SIZE_MIB = 96  # of what is written and read: less than the guest's memory, and more than a moment
TIMED = "read a x < /proc/uptime; {work} 2>/dev/null || echo failed; read b x < /proc/uptime; echo $a $b"
SEQUENTIAL_WRITE = f"dd if=/dev/zero of=FILE bs=1M count={SIZE_MIB} conv=fsync"
# So often that hundredths of a second are enough.
SEQUENTIAL_READ = (
    f"for n in 1 2 3 4 5 6 7 8; do dd if=FILE of=/dev/null bs=1M count={SIZE_MIB} iflag=direct; done"
)
SMALL = 8000
SMALL_WRITES = f"dd if=/dev/zero of=FILE bs=4k count={SMALL} oflag=direct conv=notrunc"
PROGRAMS = {
    "written and synced, 1 MiB at a time": SEQUENTIAL_WRITE,
    "read past the guest's cache, 1 MiB at a time": SEQUENTIAL_READ,
    f"{SMALL} writes of 4 KiB past it": SMALL_WRITES,
}
PLUGGED = '{{range .Start.Phases}}{{if eq .Name "volumes"}}{{.DurationMs}}{{end}}{{end}}'
AT_MOST = Aim(ratio=1.05)


class _Bare:
    """A bare QEMU's guest, on a loop of its own."""

    def __init__(self, guest: Guest, loop: asyncio.AbstractEventLoop) -> None:
        self._guest = guest
        self._loop = loop

    def ms(self, script: str) -> float:
        return _elapsed_ms(self.say(script))

    def say(self, script: str) -> str:
        return self._loop.run_until_complete(bareguest.execute(self._guest, script))


@asynccontextmanager
async def _dialled(machine: bareguest.Machine) -> AsyncIterator[Guest]:
    guest = await machine.dial()
    try:
        await guest.configure(machine.identity())
        await bareguest.run(guest, bareguest.container("while :; do sleep 1000; done"))
        yield guest
    finally:
        await guest.close()


@contextmanager
def bare_guest(add: Callable[[Path], None] | None = None) -> Iterator[_Bare]:
    """``add``: puts more into its image."""
    loop = asyncio.new_event_loop()
    with (
        tempfile.TemporaryDirectory(dir=SCRATCH) as directory,
        bareguest.Bench(Path(directory), add) as bench,
    ):
        os.truncate(bench.writable, 1 << 30)
        bareguest.make_ext4(bench.writable)
        dialled = _dialled(bench.boot())
        guest = loop.run_until_complete(dialled.__aenter__())
        try:
            yield _Bare(guest, loop)
        finally:
            loop.run_until_complete(dialled.__aexit__(None, None, None))
            loop.close()


def speed(stage: Stage) -> list[Result]:
    """On the writable layer, and on a volume; the floor is the writable layer of a bare guest."""
    host, name = stage.host, f"bench-{secrets.token_hex(4)}"
    host.ok("run", "-d", "--name", name, "-v", f"{name}:/volume", IMAGE, "sleep", "100000")
    results = []
    try:
        with bare_guest() as bare:
            for place, file in (("the writable layer", "/file"), ("a volume", "/volume/file")):
                for title, program in PROGRAMS.items():
                    ours_script = TIMED.format(work=program.replace("FILE", file))
                    floor_script = TIMED.format(work=program.replace("FILE", "/file"))
                    ours, floor = interleaved(
                        stage.runs(5),
                        lambda script=ours_script: _elapsed_ms(host.ok("exec", name, "sh", "-c", script)),  # type: ignore[misc]
                        lambda script=floor_script: bare.ms(script),  # type: ignore[misc]
                    )
                    results.append(
                        summarize(
                            f"{place}: {title}",
                            "ms",
                            ours,
                            floor=floor,
                            aim=AT_MOST,
                            note=f"{SIZE_MIB} MiB file",
                        )
                    )
    finally:
        host.ok("rm", "-f", name)
        host.ok("volume", "rm", name)
    return results


def volumes(stage: Stage) -> list[Result]:
    """Plugging one in, and what a deletion gives back to the host."""
    host, name = stage.host, f"bench-{secrets.token_hex(4)}"
    host.ok("template", "build", timeout_s=300)
    plugged, freed = [], []
    host.ok("volume", "create", name, "--size", "1g")
    try:
        for _ in range(stage.runs(10)):
            host.ok(
                "run", "-d", "--privileged", "--name", name, "-v", f"{name}:/volume", IMAGE, "sleep", "100000"
            )
            plugged.append(float(host.ok("inspect", "-f", PLUGGED, name)))
            disk = Path(host.ok("volume", "inspect", "-f", "{{.Mountpoint}}", name))
            write = f"dd if=/dev/urandom of=/volume/file bs=1M count={SIZE_MIB} conv=fsync"
            host.ok("exec", name, "sh", "-c", write)
            full = disk.stat().st_blocks
            host.ok("exec", name, "sh", "-c", "rm /volume/file; sync; fstrim /volume")
            freed.append(100 * (full - disk.stat().st_blocks) * 512 / (SIZE_MIB << 20))
            host.ok("rm", "-f", name)
    finally:
        host.run("rm", "-f", name)
        host.ok("volume", "rm", name)
    return [
        summarize("attach of a volume, in a start", "ms", plugged, aim=Aim(most=120)),
        summarize("given back by fstrim", "%", freed, note=f"of {SIZE_MIB} MiB deleted"),
    ]


def _elapsed_ms(told: str) -> float:
    """Raises RuntimeError when the program failed."""
    if "failed" in told:
        raise RuntimeError(f"in the guest: {told}")
    began, ended = (float(word) for word in told.split())
    return (ended - began) * 1000
