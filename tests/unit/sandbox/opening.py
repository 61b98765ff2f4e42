# SPDX-License-Identifier: Apache-2.0
"""Calls that have a container's files open, and one that is held in the middle."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from hyperd.errors import HyperError
from hyperd.model.guest import Change, PathStat, WriteOptions
from hyperd.model.image import NewImage
from hyperd.sandbox import Fleet, SandboxHandle
from tests.fakes.archives import PIECE_BYTES, FakeFiles, let_pieces_go
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.world import World, eventually, started

BIG = b"x" * (3 * PIECE_BYTES)


async def stopped(fleet: Fleet, *args: str, **fields: object) -> SandboxHandle:
    handle = await started(fleet, *args, **fields)
    await handle.stop(timeout_s=0)
    return handle


def disk_of(world: World, handle: SandboxHandle) -> FakeFiles:
    return world.hypervisor.files.setdefault(handle.record.sandbox_id, FakeFiles())


def has_vm(world: World, handle: SandboxHandle) -> bool:
    return handle.record.sandbox_id in world.hypervisor.running


async def export(handle: SandboxHandle) -> bytes:
    got: list[bytes] = []

    async def take(piece: bytes) -> None:
        got.append(piece)

    await handle.files.export(take)
    return b"".join(got)


async def changes(handle: SandboxHandle) -> list[Change]:
    got: list[Change] = []

    async def take(change: Change) -> None:
        got.append(change)

    await handle.files.list_changes(take)
    return got


async def read(handle: SandboxHandle, path: bytes) -> list[PathStat | bytes]:
    got: list[PathStat | bytes] = []

    async def take(item: PathStat | bytes) -> None:
        got.append(item)

    await handle.files.read(path, take)
    return got


async def write(handle: SandboxHandle, content: bytes = b"tar", path: bytes = b"/srv") -> None:
    await handle.files.write(WriteOptions(path), pieces(content))


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def commit(handle: SandboxHandle, *, pause: bool = True, **fields: object) -> str:
    async def tell(_: int) -> None:
        pass

    image = await handle.files.commit(NewImage(**fields), pause=pause, tell=tell)  # type: ignore[arg-type]
    return image.image_id


CALLS: dict[str, Callable[[SandboxHandle], Awaitable[object]]] = {
    "commit": commit,
    "diff": changes,
    "export": export,
    "read": lambda handle: read(handle, b"/etc/a"),
    "write": write,
}
every_call = pytest.mark.parametrize("call", list(CALLS))


class Holding:
    """A call that is under way: its guest moves one piece and no more."""

    def __init__(self, world: World, handle: SandboxHandle, call: str) -> None:
        self.world, self.handle = world, handle
        disk = disk_of(world, handle)
        disk.synced |= {b"/etc/a": BIG, b"/etc/b": b"2"}
        disk.pieces = 1 if call != "write" else 0
        self.task = asyncio.get_running_loop().create_task(self._run(CALLS[call](handle)))

    async def _run(self, work: Awaitable[object]) -> object:
        try:
            return await work
        except HyperError as error:
            return error

    async def begun(self) -> FakeAgent:
        sandbox_id = self.handle.record.sandbox_id
        verbs = {"read_layer", "list_changes", "read_tree", "read_root", "write_tree"}

        def is_held() -> bool:
            agent = self.world.hypervisor.agents.get(sandbox_id)
            return agent is not None and bool(verbs & set(agent.calls)) and agent.files.pieces == 0

        await eventually(is_held)
        return self.world.hypervisor.agents[sandbox_id]

    def go_on(self) -> None:
        let_pieces_go(self.world.hypervisor.agents[self.handle.record.sandbox_id])

    async def error(self) -> HyperError:
        async with asyncio.timeout(5):
            outcome = await self.task
        assert isinstance(outcome, HyperError)
        return outcome


async def holding(world: World, handle: SandboxHandle, call: str) -> Holding:
    held = Holding(world, handle, call)
    await held.begun()
    return held


async def outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except HyperError as error:
        return error
