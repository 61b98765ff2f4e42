# SPDX-License-Identifier: Apache-2.0
"""Who sends little, but regularly, is not waited for without end."""

from collections.abc import AsyncIterator

import pytest

from hyperd.errors import TimeoutExpiredError
from hyperd.host.workers import Workers
from hyperd.image import waiting
from hyperd.image.stream import Limits
from hyperd.image.unpack import Unpacker
from hyperd.image.waiting import LEAST_BYTES_PER_S, Pace


def test_patience_ends_with_one_that_drips():
    pace = Pace(600)
    for _ in range(59):
        pace.count(10, 1)
    with pytest.raises(TimeoutExpiredError, match="more slowly than 16 KiB a second"):
        pace.count(10.1, 1)


def test_who_sends_enough_is_waited_for_for_ever():
    pace = Pace(600)
    for _ in range(10_000):
        pace.count(100, 100 * LEAST_BYTES_PER_S)
    assert pace.left_s == 600


def test_what_came_fast_buys_no_time_for_dripping():
    pace = Pace(600)
    pace.count(0, 1 << 40)
    with pytest.raises(TimeoutExpiredError):
        pace.count(601, 1)


@pytest.mark.parametrize("head", [b"", b"\x1f\x8b" + bytes(20)], ids=["plain", "compressed"])
async def test_archives_are_taken_at_such_a_pace(tmp_path, monkeypatch, head):
    monkeypatch.setattr(waiting, "Pace", lambda: Pace(0.05))
    workers = Workers("test", 1)
    is_closed = False

    async def drip() -> AsyncIterator[bytes]:
        nonlocal is_closed
        try:
            yield head
            while True:
                yield b""
        finally:
            is_closed = True

    unpacker = Unpacker(tmp_path, workers, Limits(1 << 30, 0), stall_timeout_s=60)
    try:
        with pytest.raises(TimeoutExpiredError, match="more slowly"):
            async for _ in unpacker.plain(drip()):
                pass
    finally:
        workers.close()
    assert is_closed
    assert list(tmp_path.iterdir()) == []
