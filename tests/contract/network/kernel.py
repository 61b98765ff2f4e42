# SPDX-License-Identifier: Apache-2.0
"""What the kernel has of a network, as its tests look at it."""

from pyroute2 import AsyncIPRoute

from hyperd.host import process
from hyperd.model.vm import SandboxId


def box(number):
    return SandboxId(f"{number:02x}" * 32)


async def links():
    async with AsyncIPRoute() as netlink:
        return {link.get_attr("IFLA_IFNAME"): link async for link in await netlink.link("dump")}


async def rules():
    return (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout.decode()
