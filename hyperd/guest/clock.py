# SPDX-License-Identifier: Apache-2.0
"""Whether a guest's wall clock is right: proven by a round trip that is too short to hide an error."""

import time
from collections.abc import Awaitable, Callable

from hyperd.errors import ClockError

TOLERANCE_NS = 50_000_000
UNKNOWN_NS = 1 << 62  # how long the quickest call took, before the first
QUICK_TRIES = 8  # calls that were short enough for a proof, and proved the contrary
PATIENCE_S = 10.0  # for one that is: where twenty emulated guests share two cores, most take longer


def is_right(guest_ns: int, asked_ns: int, answered_ns: int) -> bool:
    """Whether the guest's wall clock is right for certain, at whatever moment of the call it was read."""
    return answered_ns - TOLERANCE_NS <= guest_ns <= asked_ns + TOLERANCE_NS


async def set_and_prove(
    step: Callable[[int], Awaitable[int]], *, subject: str, patience_s: float = PATIENCE_S
) -> None:
    """Set the guest's clock until one round trip proves it: a call of 2 s would hide an error of 2 s.

    ``step`` sets it, in ns since 1970, and returns what it was when the guest answered. From the second call on, the
    guest gets the time that the quickest call so far suggests it will be there. Raises ClockError, and what ``step``
    raises.
    """
    deadline = time.monotonic() + patience_s
    shortest_ns, tries, quick = UNKNOWN_NS, 0, 0
    while True:
        lead_ns = shortest_ns // 2 if shortest_ns < 2 * TOLERANCE_NS else 0
        asked_ns = time.time_ns()
        guest_ns = await step(asked_ns + lead_ns)
        answered_ns = time.time_ns()
        tries += 1
        if is_right(guest_ns, asked_ns, answered_ns):
            return
        taken_ns = max(0, answered_ns - asked_ns)
        shortest_ns = min(shortest_ns, taken_ns)
        quick += taken_ns < 2 * TOLERANCE_NS
        if quick >= QUICK_TRIES or time.monotonic() >= deadline:
            off_s = (guest_ns - answered_ns) / 1e9
            raise ClockError(
                "the guest's clock is not known to be right after it was set",
                subject=subject,
                evidence=f"{off_s:+.3f} s off, in a call of {taken_ns / 1e9:.3f} s, the last of {tries}; "
                f"the quickest took {shortest_ns / 1e9:.3f} s, and 0.1 s is too long for a proof",
                hint="the host is too busy, or the guest stands still: start fewer at a time",
            )
