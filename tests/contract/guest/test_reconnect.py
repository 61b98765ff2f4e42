# SPDX-License-Identifier: Apache-2.0
"""The host side is killed again and again in the middle of 100 MB of output; not a byte is lost or comes twice."""

import asyncio
import hashlib
import random
import socket

from hyperd.model.guest import FIRST_PROCESS, ProcessExit
from tests.contract.guest.conftest import BOX, FLOOD, FLOOD_BYTES, Flood

RECONNECTS = {True: 1000, False: 200}  # the fake, all in Python, takes four times as long


class Log:
    """What hyperd has stored: the one thing that a killed host leaves to its successor."""

    def __init__(self) -> None:
        self.offset = 0
        self.hash = hashlib.sha256()

    def append(self, chunk) -> None:
        assert chunk.offset == self.offset
        self.hash.update(chunk.data)
        self.offset = chunk.end_offset


def die_in_the_middle_of_an_opening(site, dice) -> None:
    """A host that was killed after a few bytes."""
    with socket.socket(socket.AF_UNIX) as host:
        host.settimeout(10)
        host.connect(str(site.stream))
        host.sendall((b"~~HYPER1" + b"d" * 32 + b"~half a frame }")[: dice.randrange(56)])


async def read_some(site, log, upto, *, acknowledge) -> bool:
    """One host's life; True when the output has ended."""
    guest = await site.dial()
    try:
        reader = guest.read_output(BOX, FIRST_PROCESS, log.offset)
        async for chunk in reader:
            log.append(chunk)
            if acknowledge:
                reader.acknowledge(chunk.end_offset)
            if log.offset >= upto:
                return False
        return True
    finally:
        await guest.close()


async def test_reconnecting_in_the_middle_of_100_megabytes_loses_nothing(site):
    expected = hashlib.sha256(b"".join(data for _, data in Flood())).digest()
    dice, log, lives = random.Random(7), Log(), 0
    reconnects = RECONNECTS[site.is_real]
    async with asyncio.timeout(240):
        async with site.guest() as guest:
            await site.run(guest, FLOOD)
        ended = False
        while not ended:
            lives += 1
            if dice.random() < 0.1:
                die_in_the_middle_of_an_opening(site, dice)
            if dice.random() < 0.7:
                ended = await read_some(site, log, lives * FLOOD_BYTES // reconnects, acknowledge=True)
            else:  # no more than the ring holds: the process waits for what this host does not say
                ended = await read_some(site, log, log.offset + 100_000, acknowledge=False)
        async with site.guest() as guest:
            assert await guest.wait_process(BOX, FIRST_PROCESS) == ProcessExit(0)
    assert (log.offset, log.hash.digest()) == (FLOOD_BYTES, expected)
    assert lives >= reconnects
