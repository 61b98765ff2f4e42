# SPDX-License-Identifier: Apache-2.0
"""Guests that stood still, and go on."""

import contextlib

from hyperd.errors import UnsupportedError
from hyperd.guest.base import Guest


async def step_clock(guest: Guest) -> None:
    """After a time in which the guest may not have run."""
    with contextlib.suppress(UnsupportedError):  # an agent of before there were pauses
        await guest.set_clock()


async def thaw(guest: Guest) -> None:
    """Of a guest that may be frozen. Idempotent."""
    with contextlib.suppress(UnsupportedError):
        await guest.thaw()
