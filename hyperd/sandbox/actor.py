# SPDX-License-Identifier: Apache-2.0
"""A task with an inbox and tasks of its own, in which a bug stays.

It ends when it says so or is cancelled; its own tasks end with it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Generic, TypeVar

M = TypeVar("M")


class Actor(ABC, Generic[M]):
    def __init__(self) -> None:
        self.over = False
        self._inbox: asyncio.Queue[M] = asyncio.Queue()
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until ``over``, or cancelled."""
        try:
            while not self.over:
                try:
                    await self._serve()
                except Exception as error:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise asyncio.CancelledError from error
                    await self._recover(error)
        finally:
            self.over = True
            while not self._inbox.empty():
                self._refuse(self._inbox.get_nowait())
            await self._close()

    def post(self, message: M) -> None:
        """Once it is over, messages are refused at once. The inbox takes all: who posts for others has a bound."""
        if self.over:
            self._refuse(message)
        else:
            self._inbox.put_nowait(message)

    def _spawn(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self) -> None:
        self._group = asyncio.TaskGroup()
        async with self._group:
            while not self.over:
                await self._handle(await self._inbox.get())
            for task in tuple(self._tasks):
                task.cancel()

    @abstractmethod
    async def _handle(self, message: M) -> None: ...

    @abstractmethod
    async def _recover(self, error: Exception) -> None:
        """Some task or handler had a bug; all tasks have been cancelled. Serve on afterwards."""

    @abstractmethod
    def _refuse(self, message: M) -> None:
        """It comes too late."""

    @abstractmethod
    async def _close(self) -> None:
        """The last that is done."""
