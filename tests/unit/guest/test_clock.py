# SPDX-License-Identifier: Apache-2.0
"""The guest's clock is believed when it was read between two of the host's, give or take 50 ms."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperd.errors import UnavailableError
from hyperd.guest import AgentDialer
from hyperd.guest.client import is_right
from hyperd.model.guest import GuestIdentity
from tests.fakes.agent import AgentPeer, serving
from tests.fakes.guest import FakeAgent

IDENTITY = GuestIdentity("box", b"x" * 64)
SECOND_NS = 1_000_000_000


@pytest.fixture
async def peer() -> AsyncIterator[AgentPeer]:
    with tempfile.TemporaryDirectory() as short:
        async with serving(FakeAgent(), Path(short)) as serving_peer:
            yield serving_peer


async def dial(peer: AgentPeer):
    return await AgentDialer().connect(peer.control.path, peer.stream.path, timeout_s=5, subject="box")


@pytest.mark.parametrize(
    ("guest_ms", "right"), [(-51, False), (-50, True), (0, True), (100, True), (150, True), (151, False)]
)
def test_a_clock_is_right_within_fifty_milliseconds_of_the_call(guest_ms, right):
    asked_ns = 1_700_000_000 * SECOND_NS
    answered_ns = asked_ns + 100_000_000
    assert is_right(asked_ns + guest_ms * 1_000_000, asked_ns, answered_ns) is right


async def test_a_right_clock_is_not_set_again(peer):
    guest = await dial(peer)
    await guest.configure(IDENTITY)
    assert "set_clock" not in peer.agent.calls
    await guest.close()


async def test_a_wrong_clock_is_set_once_more(peer):
    guest = await dial(peer)
    peer.servicer.wrong_clocks_ns = [SECOND_NS]
    await guest.configure(IDENTITY)
    assert peer.agent.calls.count("set_clock") == 1
    await guest.close()


async def test_a_clock_that_stays_wrong_fails_the_call(peer):
    guest = await dial(peer)
    peer.servicer.wrong_clocks_ns = [-SECOND_NS, -SECOND_NS]
    with pytest.raises(UnavailableError) as raised:
        await guest.configure(IDENTITY)
    assert "-1.0" in raised.value.evidence
    await guest.close()


async def test_the_clock_is_stepped_after_a_pause(peer):
    guest = await dial(peer)
    await guest.set_clock()
    peer.servicer.wrong_clocks_ns = [SECOND_NS]
    with pytest.raises(UnavailableError):
        await guest.set_clock()
    await guest.close()
