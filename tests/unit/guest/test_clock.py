# SPDX-License-Identifier: Apache-2.0
"""The guest's clock is believed when it cannot be more than 50 ms off, whenever in the call it was read."""

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
    ("guest_ms", "right"), [(-31, False), (-30, True), (0, True), (20, True), (50, True), (51, False)]
)
def test_a_clock_is_right_within_fifty_milliseconds_of_both_ends_of_the_call(guest_ms, right):
    asked_ns = 1_700_000_000 * SECOND_NS
    answered_ns = asked_ns + 20_000_000
    assert is_right(asked_ns + guest_ms * 1_000_000, asked_ns, answered_ns) is right


@pytest.mark.parametrize("guest_ms", [0, 1, 1000, 1999, 2000])
def test_a_slow_call_proves_nothing(guest_ms):
    asked_ns = 1_700_000_000 * SECOND_NS
    assert not is_right(asked_ns + guest_ms * 1_000_000, asked_ns, asked_ns + 2 * SECOND_NS)


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
    peer.servicer.wrong_clocks_ns = [-SECOND_NS] * 20
    with pytest.raises(UnavailableError) as raised:
        await guest.configure(IDENTITY)
    assert "-1.0" in raised.value.evidence
    assert peer.agent.calls.count("set_clock") == 8
    await guest.close()


async def test_a_clock_that_was_set_late_is_set_again(peer):
    """The guest is as late as the call took to get there, and says so honestly."""
    guest = await dial(peer)
    peer.servicer.clock_delays_s = [(0.2, 0.0), (0.0, 0.2)]
    await guest.set_clock()
    assert peer.agent.calls.count("set_clock") == 3
    await guest.close()


async def test_a_guest_that_is_always_slow_is_told_the_time_it_will_be_there(peer):
    """Seventy milliseconds there and back: only half of it, added to what the guest is told, can be proven right."""
    guest = await dial(peer)
    peer.servicer.clock_delays_s = [(0.035, 0.035)] * 8
    await guest.set_clock()
    assert 2 <= peer.agent.calls.count("set_clock") <= 8
    await guest.close()


async def test_a_guest_too_slow_for_a_proof_fails_the_call(peer):
    guest = await dial(peer)
    peer.servicer.clock_delays_s = [(0.06, 0.06)] * 8
    with pytest.raises(UnavailableError, match="not known to be right"):
        await guest.set_clock()
    await guest.close()


async def test_the_clock_is_stepped_after_a_pause(peer):
    guest = await dial(peer)
    await guest.set_clock()
    peer.servicer.wrong_clocks_ns = [SECOND_NS] * 8
    with pytest.raises(UnavailableError):
        await guest.set_clock()
    await guest.close()
