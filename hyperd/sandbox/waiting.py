# SPDX-License-Identifier: Apache-2.0
"""Who waits for what of a sandbox. Whatever becomes of it, nobody waits for ever."""

import asyncio

from hyperd.errors import HyperError
from hyperd.model.container import Exit
from hyperd.model.guest import ProcessExit
from hyperd.sandbox.message import Done, Started


class Waiting:
    def __init__(self) -> None:
        self.starts: list[Started] = []
        self.stops: list[Done] = []
        self.removes: list[Done] = []
        self.end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.refusal: HyperError | None = (
            None  # of ``starts``, who are told with the end: the name is free by then
        )

    @property
    def count(self) -> int:
        """Who asked for something and has no answer; not those who only look on."""
        return len(self.starts) + len(self.stops) + len(self.removes)

    def tell_end(self, exit_: Exit) -> None:
        """To all who wait for the end of the run; later ones wait for the next run's."""
        if self.refusal is not None:
            fail(self.starts, self.refusal)
            self.refusal = None
        end, self.end = self.end, asyncio.get_running_loop().create_future()
        end.set_result(exit_)

    def fail_end(self, error: HyperError) -> None:
        """There is no end to be told of; who asks again may learn more."""
        end, self.end = self.end, asyncio.get_running_loop().create_future()
        end.set_exception(error)
        end.exception()  # perhaps nobody waits: no complaint about that

    def abandon(self, error: HyperError) -> None:
        """Everybody is told the same, for good."""
        fail(self.starts, self.refusal or error)
        for waiting in (self.stops, self.removes):
            fail(waiting, error)
        if not self.end.done():
            self.end.set_exception(error)
            self.end.exception()  # perhaps nobody waits: no complaint about that


def resolve_starts(waiting: list[Started], refused: ProcessExit | None = None) -> None:
    for done in waiting:
        if not done.done():
            done.set_result(refused)
    waiting.clear()


def resolve(waiting: list[Done]) -> None:
    for done in waiting:
        if not done.done():
            done.set_result(None)
    waiting.clear()


def fail(waiting: list[Done] | list[Started], error: HyperError) -> None:
    for done in waiting:
        if not done.done():
            done.set_exception(error)
    waiting.clear()
