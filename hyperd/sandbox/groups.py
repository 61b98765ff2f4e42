# SPDX-License-Identifier: Apache-2.0
"""Groups of tasks that fail as the first of them did."""

import contextlib
from collections.abc import Iterator

from hyperd.errors import HyperError


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """A group of tasks that fails with errors of hyper's own fails with the first of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        lost, bugs = group.split(HyperError)
        if bugs is not None or lost is None:
            raise
        raise _first(lost) from group


def _first(group: BaseExceptionGroup[HyperError]) -> HyperError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("a group holds at least one")
