# SPDX-License-Identifier: Apache-2.0
"""The guest's clock is believed when it cannot be more than 50 ms off, whenever in the call it was read."""

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hyperd.errors import ClockError
from hyperd.guest import AgentDialer, clock
from hyperd.guest.clock import is_right, set_and_prove
from hyperd.model.guest import GuestIdentity
from tests.fakes.agent import AgentPeer, serving
from tests.fakes.guest_agent import FakeAgent

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
    peer.servicer.wrong_clocks_ns = [-SECOND_NS] * 200
    with pytest.raises(ClockError) as raised:
        await guest.configure(IDENTITY)
    off_s = float(raised.value.evidence.split()[0])  # the test takes its time, too
    assert -1.1 < off_s < -0.9
    assert peer.agent.calls.count("set_clock") >= clock.QUICK_TRIES
    await guest.close()


@dataclass
class Emulated:
    """Host and guest on one time line, which goes on only while a call is under way."""

    now_ns: int = 1_700_000_000 * SECOND_NS
    off_ns: int = 10 * SECOND_NS
    calls: list[tuple[float, float]] = field(
        default_factory=list
    )  # seconds there and back; the last one stays
    asked: int = 0
    lies_ns: int = 0

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / SECOND_NS

    async def step(self, wall_clock_ns: int) -> int:
        there_s, back_s = self.calls.pop(0) if len(self.calls) > 1 else self.calls[0]
        self.asked += 1
        self.now_ns += int(there_s * SECOND_NS)
        self.off_ns = wall_clock_ns - self.now_ns
        answer_ns = self.now_ns + self.off_ns + self.lies_ns
        self.now_ns += int(back_s * SECOND_NS)
        return answer_ns


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    host = Emulated()
    monkeypatch.setattr(clock, "time", host)
    return host


async def test_a_clock_that_was_set_late_is_set_again(emulated):
    """The guest is as late as the call took to get there, and says so honestly."""
    emulated.calls = [(0.2, 0.0), (0.0, 0.2), (0.001, 0.001)]
    await set_and_prove(emulated.step, subject="box")
    assert emulated.asked == 3
    assert abs(emulated.off_ns) < clock.TOLERANCE_NS


async def test_a_guest_that_is_always_slow_is_told_the_time_it_will_be_there(emulated):
    """Ninety milliseconds there and back: only half of it, added to what the guest is told, can be proven right."""
    emulated.calls = [(0.08, 0.01), (0.045, 0.045)]
    await set_and_prove(emulated.step, subject="box")
    assert emulated.asked == 2
    assert abs(emulated.off_ns) < clock.TOLERANCE_NS


async def test_a_busy_host_is_waited_for(emulated):
    """Thirty starts at a time: one round trip in many is quick enough."""
    emulated.calls = [(0.15, 0.1)] * 30 + [(0.02, 0.02)]
    await set_and_prove(emulated.step, subject="box")
    assert emulated.asked == 31


async def test_a_guest_too_slow_for_a_proof_is_given_up_after_ten_seconds(emulated):
    emulated.calls = [(0.06, 0.06)]
    with pytest.raises(ClockError, match="not known to be right") as raised:
        await set_and_prove(emulated.step, subject="box")
    assert emulated.asked == 84  # of 0.12 s each
    assert "the quickest took 0.120 s" in raised.value.evidence


async def test_a_guest_that_lies_quickly_is_given_up_at_once(emulated):
    emulated.calls, emulated.lies_ns = [(0.001, 0.001)], SECOND_NS
    with pytest.raises(ClockError):
        await set_and_prove(emulated.step, subject="box")
    assert emulated.asked == clock.QUICK_TRIES


async def test_the_clock_is_stepped_after_a_pause(peer):
    guest = await dial(peer)
    await guest.set_clock()
    peer.servicer.wrong_clocks_ns = [SECOND_NS] * 200
    with pytest.raises(ClockError):
        await guest.set_clock()
    await guest.close()
