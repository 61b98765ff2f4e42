# SPDX-License-Identifier: Apache-2.0
"""Policies among many: what one more sandbox's rules take when 500 have theirs, in the bench's own network."""

import asyncio
import functools
import subprocess
import time
from ipaddress import IPv4Network

from bench.measure import Aim, Result, summarize
from bench.stage import Stage
from hyperd.host.workers import Workers
from hyperd.model.vm import SandboxId
from hyperd.network.policy.document import parse_egress
from hyperd.network.policy.rules import Judged
from hyperd.network.policy.wire import Wire
from hyperd.network.policy.wires import Armed, Place, Wires

SANDBOXES = 500
_SUBNET = IPv4Network("10.219.0.0/16")
_PLACE = Place("hyper_bench", internal=False)
_FIVE = """
allow:
  - {domain: a.test, ports: 443}
  - {domain: "*.b.test", ports: [80, 443]}
  - {cidr: 192.0.2.0/24}
  - {cidr: 198.51.100.0/24, ports: 22}
  - {domain: c.test, protocol: udp}
"""


def among_many(stage: Stage) -> list[Result]:
    """The floor is a child process that makes nft say nothing: what any change by nft costs at the least."""
    ours, floor = asyncio.run(_measure(stage.runs(20)))
    note = f"{SANDBOXES} sandboxes with five rules each; nft lists the chains of all before it changes those of one"
    return [
        summarize("rules of one more sandbox", "ms", ours, floor=floor, aim=Aim(most=20.0), note=note),
    ]


async def _measure(count: int) -> tuple[list[float], list[float]]:
    kernel = Workers("bench", 1)
    wires = Wires(kernel)
    ours, floor = [], []
    try:
        await wires.stand([_armed(number) for number in range(SANDBOXES)])
        for number in range(count):
            floor.append(_nothing_ms())
            one = _armed(SANDBOXES + number)
            began = time.monotonic()
            await wires.arm(functools.partial(_armed, SANDBOXES + number))
            ours.append((time.monotonic() - began) * 1000)
            await wires.disarm(one)
    finally:
        await wires.withdraw(_PLACE.base)
        kernel.close()
    return ours, floor


def _armed(number: int) -> Armed:
    wire = Wire(f"hyt{number:012x}", _SUBNET[number + 2], "bench", "hyper_bench", _SUBNET, _SUBNET[1])
    return Armed(SandboxId(f"{number:064x}"), _PLACE, Judged(wire, parse_egress(_FIVE)))


def _nothing_ms() -> float:
    began = time.monotonic()
    subprocess.run(["nft", "-f", "-"], input=b"", check=True)
    return (time.monotonic() - began) * 1000
