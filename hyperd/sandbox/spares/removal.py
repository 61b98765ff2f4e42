# SPDX-License-Identifier: Apache-2.0
"""Spares that go, each in a task of its own; and what could not be removed, until it could."""

import asyncio
import logging
import secrets
from dataclasses import dataclass

from hyperd.errors import HyperError
from hyperd.model.container import Sizing
from hyperd.model.vm import SandboxId
from hyperd.sandbox.spares.spare import Spare, SpareMaker

log = logging.getLogger(__package__)  # of one subject, whichever file tells it


@dataclass(frozen=True, slots=True)
class Left:
    """Of a spare that goes, or could not be removed."""

    sizing: Sizing | None  # None: its VM is gone
    owned: bool  # by a container, that keeps what is on the network


class Removals:
    def __init__(self, maker: SpareMaker, tasks: asyncio.TaskGroup) -> None:
        self._maker = maker
        self._tasks = tasks
        self._going: dict[SandboxId, asyncio.Task[None]] = {}
        self._left: dict[SandboxId, Left] = {}

    @property
    def are_there(self) -> bool:
        """Somebody has what a spare had, perhaps."""
        return bool(self._going or self._left)

    def sizings(self) -> dict[SandboxId, Sizing]:
        """Of what has memory yet and could not be removed."""
        return {sandbox_id: left.sizing for sandbox_id, left in self._left.items() if left.sizing}

    def begin(
        self, sandbox_id: SandboxId, left: Left, why: str, spare: Spare | None = None
    ) -> asyncio.Task[None]:
        log.info("spare let go", extra={"id": sandbox_id, "why": why})
        task = self._going[sandbox_id] = self._tasks.create_task(self._remove(sandbox_id, left, spare))
        task.add_done_callback(lambda _: self._forget(sandbox_id, task))
        return task

    async def wait(self, sandbox_id: SandboxId) -> Left | None:
        """Until it is gone; or what is left of it, which is the caller's from here on."""
        if (going := self._going.get(sandbox_id)) is not None:
            await asyncio.wait((going,))
        return self._left.pop(sandbox_id, None)

    async def wait_all(self) -> None:
        if self._going:
            await asyncio.wait(tuple(self._going.values()))

    async def remove_owned(self, sandbox_id: SandboxId, left: Left) -> None:
        """Of a container that is about to start. Raises what removing it raises."""
        try:
            await self._maker.remove(sandbox_id, owned=True)
        except BaseException:
            self._left[sandbox_id] = left
            raise

    async def try_again(self) -> None:
        """What could not be removed."""
        for sandbox_id, left in list(self._left.items()):
            if sandbox_id not in self._going and self._left.pop(sandbox_id, None) is not None:
                await asyncio.wait((self.begin(sandbox_id, left, "still there"),))

    def _forget(self, sandbox_id: SandboxId, task: asyncio.Task[None]) -> None:
        if self._going.get(sandbox_id) is task:
            del self._going[sandbox_id]

    async def _remove(self, sandbox_id: SandboxId, left: Left, spare: Spare | None = None) -> None:
        """What cannot be removed is tried again by each look, and found by the next hyperd."""
        try:
            if spare is not None:
                await spare.guest.close()
            await self._maker.remove(sandbox_id, owned=left.owned)
        except HyperError as error:
            log.error("spare not removed", extra={"id": sandbox_id, "error": str(error)})  # noqa: TRY400
            self._left[sandbox_id] = left
        except Exception:
            log.exception("bug", extra={"id": sandbox_id, "bug_id": secrets.token_hex(4)})
            self._left[sandbox_id] = left
        else:
            log.info("spare gone", extra={"id": sandbox_id})
