# SPDX-License-Identifier: Apache-2.0
"""Guests that stood still, and go on."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from hyperd.errors import HyperError, UnsupportedError
from hyperd.guest.base import Guest

log = logging.getLogger(__name__)

R = TypeVar("R")


async def step_clock(guest: Guest) -> None:
    """After a time in which the guest may not have run. A clock that cannot be stepped is no reason to keep it so."""
    try:
        await guest.set_clock()
    except UnsupportedError:  # an agent of before there were pauses
        return
    except HyperError as error:
        log.warning("clock not stepped", extra={"error": str(error)})


async def thaw(guest: Guest) -> None:
    """Of a guest that may be frozen. Idempotent."""
    with contextlib.suppress(UnsupportedError):
        await guest.thaw()


async def to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """However often the caller is cancelled: an undoing cut short would leave a guest that stands still for ever."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        task.exception()  # heard, if not told
        raise asyncio.CancelledError
    return task.result()
