# SPDX-License-Identifier: Apache-2.0
"""What a guest costs the host."""

import asyncio
import time
from pathlib import Path

from bench import floor, smaps
from bench.api import connected
from bench.measure import Aim, CannotMeasureError, Result, summarize
from bench.stage import MEMORY_MIB, Stage

CLONES = 50
IDLE_S = 2.0  # of looking, in which they may take
IDLE_CPU_SHARE = 0.02  # of a core each
SETTLE_S = 120.0
ALL_MIB = {"kvm": 30, "tcg": 50}
GUEST_MIB = 12


def agent(stage: Stage) -> list[Result]:
    return [summarize("agent, resident", "MiB", [floor.agent_rss_mib(stage.accelerator)], aim=Aim(most=8))]


def clones(stage: Stage) -> list[Result]:
    """PSS of each name, per clone: the sum over all of them divided by their number. With -n fewer of them."""
    count = stage.runs(CLONES)
    totals = asyncio.run(_look(stage, count))
    each = {name: mib / count for name, mib in totals.items()}
    guest_mib = each[smaps.RAM_SHARED] + each[smaps.RAM_OWN]
    where = f"per idle clone, of {count}"
    return [
        summarize(f"PSS {where}", "MiB", [sum(each.values())], aim=Aim(most=ALL_MIB[stage.accelerator])),
        summarize("  guest RAM's share", "MiB", [guest_mib], aim=Aim(most=GUEST_MIB)),
        *(summarize(f"  {name}", "MiB", [mib]) for name, mib in each.items()),
    ]


async def _look(stage: Stage, count: int) -> dict[str, float]:
    async with connected(stage.host) as api:
        await api.require_template()
        ids: list[str] = []
        try:
            for _ in range(count):
                ids.append(await api.start())
            pids = [(await api.inspect(container_id)).vm_pid for container_id in ids]
            await _wait_idle(pids)
            found = [smaps.sum_by_name(smaps.read(pid), MEMORY_MIB) for pid in pids]
        finally:
            for container_id in ids:
                await api.remove(container_id)
    return {name: sum(one[name] for one in found) for name in smaps.NAMES}


async def _wait_idle(pids: list[int]) -> None:
    deadline = time.monotonic() + SETTLE_S
    before_s = _cpu_s(pids)
    while True:
        await asyncio.sleep(IDLE_S)
        now_s = _cpu_s(pids)
        if now_s - before_s <= IDLE_CPU_SHARE * IDLE_S * len(pids):
            return
        if time.monotonic() > deadline:
            share = (now_s - before_s) / IDLE_S / len(pids)
            raise CannotMeasureError(f"clones are not idle: each takes {share:.0%} of a core")
        before_s = now_s


def _cpu_s(pids: list[int]) -> float:
    """User and system time of all (proc_pid_stat(5): fields 14 and 15, in hundredths of a second)."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / 100
