# SPDX-License-Identifier: Apache-2.0
"""CPU time that hyperd and QEMU take for an exec, and hyperd for a removal. On a busy machine, where a clock lies.

setup/private .venv/bin/python -m bench.cpu 200
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from bench.api import IMAGE, Api, call
from bench.stage import running_hyper
from tests.harness import Hyper

REMOVALS = 20


def main() -> None:
    execs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as scratch, running_hyper(IMAGE, scratch) as host:
        host.ok("template", "build", timeout_s=300)
        for what, number in {**_execs(host, execs), **_removals(host)}.items():
            print(f"{what:40} {number:8.2f} ms")


def _execs(host: Hyper, count: int) -> dict[str, float]:
    async def work(api: Api) -> dict[str, float]:
        container_id = await api.start()
        taken = []
        for _ in range(20):  # what is translated for the first time is not counted
            await api.exec_ms(container_id, ["true"])
        before = _used(host)
        for _ in range(count):
            taken.append(await api.exec_ms(container_id, ["true"]))
        after = _used(host)
        await api.remove(container_id)
        spent = {f"exec: CPU of {name}": (after[name] - before[name]) / count for name in before}
        return {**spent, "exec: p50 of the clock (if idle)": sorted(taken)[count // 2]}

    return call(host, work)


def _removals(host: Hyper) -> dict[str, float]:
    """Of containers that run, all at once."""

    async def work(api: Api) -> dict[str, float]:
        ids = [await api.start() for _ in range(REMOVALS)]
        pids = [host.daemon.pid] if host.daemon is not None else []
        before, began = cpu_ms_of(pids), time.monotonic()
        await asyncio.gather(*(api.remove(container_id) for container_id in ids))
        took = (time.monotonic() - began) * 1000
        return {
            "removal: CPU of hyperd": (cpu_ms_of(pids) - before) / REMOVALS,
            "removal: the clock (if idle)": took / REMOVALS,
        }

    return call(host, work)


def _used(host: Hyper) -> dict[str, float]:
    if host.daemon is None:
        raise RuntimeError("no daemon")
    return {"hyperd": cpu_ms_of([host.daemon.pid]), "QEMU": cpu_ms_of(host.qemu_processes())}


def cpu_ms_of(pids: Iterable[int]) -> float:
    """Of all their threads that live, in the kernel and out of it."""
    tasks = [stat for pid in pids for stat in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


if __name__ == "__main__":
    main()
