# SPDX-License-Identifier: Apache-2.0
"""What has gone over a sandbox's taps, and what its rates have dropped, with real packets."""

import asyncio
import socket

from hyperd.model.policy import Limits
from hyperd.model.stats import WireUsage
from hyperd.model.vm import SandboxId
from hyperd.network.meter import parse_counts
from tests.contract.network.egress import PLAIN, POLICED, world

BURST = 128 << 10  # the least that goes out at once, whatever the rate
NOBODY = SandboxId("9" * 64)


async def usage_of(it, sandbox_id=POLICED) -> WireUsage:
    found: WireUsage = (await it.networks.usage([sandbox_id]))[sandbox_id]
    return found


async def test_bytes_are_counted_as_the_guest_would_say_it(database):
    async with world(database, "allow-all") as it:
        before = await usage_of(it)
        size = 4 * BURST
        assert await it.flood(size) == size // 1000 * 1000
        after = await usage_of(it)
        assert after.sent_bytes - before.sent_bytes >= size // 1000 * 1000
        assert after.sent_packets - before.sent_packets >= size // 1000
        assert after.received_bytes - before.received_bytes < size // 10
        assert (after.dropped_in, after.dropped_out) == (0, 0)
        assert NOBODY not in await it.networks.usage([NOBODY, POLICED])


async def test_what_a_guest_sends_beyond_its_rate_is_counted(database):
    async with world(database, "") as it:
        await it.policies.change(POLICED, Limits(rate_out=1000), "job")
        await it.networks.enforce(POLICED)
        packets = 4 * BURST // 1000
        arrived = await it.flood(4 * BURST) // 1000
        dropped = (await usage_of(it)).dropped_out
        assert dropped == packets - arrived
        await it.networks.enforce(POLICED)  # rules made anew: what is counted stays
        assert (await usage_of(it)).dropped_out == dropped
        assert await it.networks.usage([PLAIN]) == {PLAIN: await usage_of(it, PLAIN)}
        assert (await usage_of(it, PLAIN)).dropped_out == 0


async def test_what_is_sent_to_a_guest_beyond_its_rate_is_counted(database):
    async with world(database, "") as it:
        await it.policies.change(POLICED, Limits(rate_in=1000), "job")
        await it.networks.enforce(POLICED)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            async with asyncio.timeout(20):
                while (await usage_of(it)).dropped_in < 10:  # the first wait for its neighbour's MAC
                    for _ in range(100):
                        sender.sendto(b"x" * 972, (it.leases[0].address, 9000))
        assert (await usage_of(it)).dropped_out == 0


async def test_a_count_goes_with_its_rate_and_begins_anew(database):
    async with world(database, "") as it:
        await it.policies.change(POLICED, Limits(rate_out=1000), "job")
        await it.networks.enforce(POLICED)
        await it.flood(4 * BURST)
        assert (await usage_of(it)).dropped_out > 0
        await it.networks.detach(POLICED)
        assert await it.networks.usage([POLICED]) == {}
        await it.networks.attach(POLICED)
        await it.plug_again()
        assert (await usage_of(it)).dropped_out == 0


def test_the_kernels_table_of_interfaces_is_read():
    text = (
        "Inter-|   Receive    |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo ...\n"
        "    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n"
        "hyt0123:2000 20 0 0 0 0 0 0 3000 30 0 0 0 0 0 0\n"
    )
    assert parse_counts(text) == {"lo": (100, 1, 100, 1), "hyt0123": (2000, 20, 3000, 30)}
