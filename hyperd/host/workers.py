# SPDX-License-Identifier: Apache-2.0
"""Bounded threads for calls that block: each room that has such calls owns one pool."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class NotWantedError(Exception):
    """In a thread: whoever asked for this has gone. Nobody hears it."""


class Wanted:
    """What a call in a thread asks, between two steps, before it goes on."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def withdraw(self) -> None:
        self._gone.set()

    def require(self) -> None:
        """Raises NotWantedError."""
        if self._gone.is_set():
            raise NotWantedError


class Workers:
    """A named pool. A cancelled caller of ``call`` stops waiting; the call itself runs to its end."""

    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    async def call_while_wanted(
        self, function: Callable[Concatenate[Wanted, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """A cancelled caller is told so when the call has ended, which it should then do soon.

        For what must not happen behind the back of whoever comes next.
        """
        wanted = Wanted()
        running = self._pool.submit(lambda: function(wanted, *args, **kwargs))

        def withdraw() -> None:
            wanted.withdraw()
            running.cancel()  # where no thread has come to it yet

        return await _ended(asyncio.wrap_future(running), withdraw)

    async def call_to_the_end(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """A cancelled caller is told so when the call has ended: for what uses, or puts away, what is his."""
        running = self._pool.submit(lambda: function(*args, **kwargs))
        return await _ended(asyncio.wrap_future(running), lambda: None)

    def close(self) -> None:
        """Wait for the calls under way and end the threads."""
        self._pool.shutdown(wait=True)


async def _ended(future: "asyncio.Future[R]", withdraw: Callable[[], None]) -> R:
    """Waits until it has ended, whoever is cancelled meanwhile: he is told so then; ``withdraw`` is called at once."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            cancelled = True
            withdraw()
    if cancelled:
        if not future.cancelled():
            future.exception()  # heard, if not told
        raise asyncio.CancelledError
    return future.result()
