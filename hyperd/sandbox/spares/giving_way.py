# SPDX-License-Identifier: Apache-2.0
"""Where an address is taken, and only a spare has it, the spare goes: nobody is refused for one."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from hyperd.errors import ExhaustedError, ExistsError
from hyperd.model.network import Endpoint
from hyperd.sandbox.spares.spares import Spares

R = TypeVar("R")


async def attach_before_spares(
    spares: Spares,
    endpoints: Sequence[Endpoint],
    attach: Callable[[], Awaitable[R]],
    undo: Callable[[], Awaitable[None]] | None = None,
) -> R:
    """``attach`` to these, once more where spares had to go first; ``undo``: what the first try left. Raises as it."""
    try:
        return await attach()
    except ExistsError:  # of an address, a MAC or a port
        wanted = [text for at in endpoints for text in (at.address, at.mac_address) if text]
        if not wanted or not spares.may_have(wanted):
            raise
    except ExhaustedError:
        if not spares.may_have(()):
            raise
    if undo is not None:
        await undo()
    async with spares.away():
        return await attach()
