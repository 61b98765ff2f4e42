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
from hyperd.network.assembler import assemble
from hyperd.network.policy.document import parse_egress
from hyperd.network.policy.rules import Judged, render_gone, render_wire
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
    """The floor is nft with the same rules in the same table: it reads all of that before it changes anything."""
    ours, floor, stand = asyncio.run(_measure(stage.runs(20)))
    note = f"{SANDBOXES} sandboxes with five rules each"
    aim = Aim(most=20.0)
    return [
        summarize("rules of one more sandbox", "ms", ours, floor=floor, aim=aim, note=note),
        summarize("rules of all, after a restart", "ms", stand, note=note),
    ]


async def _measure(count: int) -> tuple[list[float], list[float], list[float]]:
    kernel = Workers("bench", 1)
    wires = Wires(kernel)
    ours, floor = [], []
    try:
        began = time.monotonic()
        await wires.stand([_armed(number) for number in range(SANDBOXES)])
        stand = [_since_ms(began)]
        for number in range(count):
            floor.append(_by_nft_ms(_armed(2 * SANDBOXES + number)))
            one = _armed(SANDBOXES + number)
            began = time.monotonic()
            await wires.arm(_PLACE.base, functools.partial(list, [one]))
            ours.append(_since_ms(began))
            await wires.disarm(one)
    finally:
        await wires.withdraw(_PLACE.base)
        wires.close()
        kernel.close()
    return ours, floor, stand


def _armed(number: int) -> Armed:
    wire = Wire(f"hyt{number:012x}", _SUBNET[number + 2], "bench", "hyper_bench", _SUBNET, _SUBNET[1])
    return Armed(SandboxId(f"{number:064x}"), _PLACE, Judged(wire, parse_egress(_FIVE)))


def _by_nft_ms(armed: Armed) -> float:
    text = render_wire(_PLACE.base, armed.judged)
    began = time.monotonic()
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)
    took = _since_ms(began)
    assemble(render_gone(_PLACE.base, armed.judged))
    return took


def _since_ms(began: float) -> float:
    return (time.monotonic() - began) * 1000
