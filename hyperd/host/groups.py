# SPDX-License-Identifier: Apache-2.0
"""Groups of tasks that fail as the first of them did."""

import contextlib
from collections.abc import AsyncIterator

from hyperd.errors import HyperError


@contextlib.asynccontextmanager
async def first_error() -> AsyncIterator[None]:
    """Tasks that fail with errors of hyper's own fail with the first of them; a bug among them hides behind none."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, bugs = group.split(HyperError)
        if bugs is not None or ours is None:
            raise
        raise _first(ours) from group


def _first(group: BaseExceptionGroup[HyperError]) -> HyperError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("a group holds at least one")
