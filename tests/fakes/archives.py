# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 - the names are those of the contract
"""Files of a fake guest's containers: what is on their disk, and the calls that move it.

A file is a name and bytes, a tar is bytes with no meaning. What is written is on the disk once the guest was shut down.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hyper.agent.v1 import agent_pb2 as pb
from hyper.agent.v1 import agent_pb2_grpc as rpc
from hyperd.errors import InvalidError, NotFoundError
from hyperd.model.guest import Change, ChangeKind, ContainerId, PathStat, WriteOptions

if TYPE_CHECKING:
    from tests.fakes.guest_agent import FakeAgent

PIECE_BYTES = 64 * 1024
MODIFIED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KINDS = {
    ChangeKind.ADDED: pb.CHANGE_KIND_ADDED,
    ChangeKind.MODIFIED: pb.CHANGE_KIND_MODIFIED,
    ChangeKind.DELETED: pb.CHANGE_KIND_DELETED,
}


@dataclass(slots=True)
class FakeFiles:
    """One sandbox's disk. Everything on it was added by its container."""

    synced: dict[bytes, bytes] = field(default_factory=dict)
    unsynced: dict[bytes, bytes] = field(default_factory=dict)
    pieces: int | None = None  # so many pieces move, in all, and then none until this is None
    frozen_for: int = 0  # calls that have the processes stand still

    def write(self, path: bytes, content: bytes) -> None:
        self.unsynced[path] = content

    def sync(self) -> None:
        self.synced |= self.unsynced
        self.unsynced.clear()

    def power_cut(self) -> None:
        self.unsynced.clear()

    def all(self) -> dict[bytes, bytes]:
        return dict(sorted((self.synced | self.unsynced).items()))

    def find(self, path: bytes) -> tuple[PathStat, bytes]:
        content = self.all().get(path)
        if content is None:
            raise NotFoundError("no such file or directory", subject=path.decode(errors="replace"))
        return PathStat(path.rpartition(b"/")[2], len(content), 0o100644, MODIFIED_AT), content

    def tar(self) -> bytes:
        return b"".join(path + b"\n" + content for path, content in self.all().items())

    def changes(self) -> list[Change]:
        return [Change(ChangeKind.ADDED, path) for path in self.all()]


class FakeArchives:
    """The part of a FakeGuest that is about files."""

    agent: "FakeAgent"

    async def _enter(self, verb: str) -> None:
        raise NotImplementedError

    def require_connected(self) -> None:
        raise NotImplementedError

    async def read_layer(self, container_id: ContainerId, *, freeze: bool) -> AsyncGenerator[bytes, None]:
        await self._enter("read_layer")
        self.agent.container(container_id)
        files = self.agent.files
        files.frozen_for += freeze
        self.agent.pulse.beat()
        try:
            for piece in cut(files.tar()):
                await self._move()
                yield piece
        finally:
            files.frozen_for -= freeze
            self.agent.pulse.beat()

    async def list_changes(self, container_id: ContainerId) -> AsyncGenerator[Change, None]:
        await self._enter("list_changes")
        self.agent.container(container_id)
        for change in self.agent.files.changes():
            await self._move()
            yield change

    async def read_tree(
        self, container_id: ContainerId, path: bytes, *, follow_link: bool = False
    ) -> AsyncGenerator[PathStat | bytes, None]:
        del follow_link
        await self._enter("read_tree")
        self.agent.container(container_id)
        stat, content = self.agent.files.find(path)
        yield stat
        for piece in cut(content):
            await self._move()
            yield piece

    async def read_root(self, container_id: ContainerId) -> AsyncGenerator[bytes, None]:
        await self._enter("read_root")
        self.agent.container(container_id)
        for piece in cut(self.agent.files.tar()):
            await self._move()
            yield piece

    async def write_tree(
        self, container_id: ContainerId, options: WriteOptions, data: AsyncIterator[bytes]
    ) -> None:
        await self._enter("write_tree")
        self.agent.container(container_id)
        content = b""
        async for piece in data:
            await self._move()
            content += piece
        self.require_connected()
        write(self.agent, options.path, content)

    async def _move(self) -> None:
        await move(self.agent)
        self.require_connected()


async def move(agent: "FakeAgent") -> None:
    """One piece, when it may: not while the VM is paused or the files are held."""
    connections = set(agent.connections)
    while agent.files.pieces == 0 or agent.paused:
        await agent.pulse.wait()
        if connections != agent.connections:
            return
    if agent.files.pieces is not None:
        agent.files.pieces -= 1
    agent.calls.append("piece")
    agent.pulse.beat()
    await asyncio.sleep(0)


def hold_pieces(agent: "FakeAgent", after: int) -> None:
    agent.files.pieces = after


def let_pieces_go(agent: "FakeAgent") -> None:
    agent.files.pieces = None
    agent.pulse.beat()


def write(agent: "FakeAgent", path: bytes, content: bytes) -> None:
    if content.startswith(b"no tar"):
        raise InvalidError("this is no tar")
    agent.files.write(path.rstrip(b"/") + b"/written", content)


def cut(content: bytes) -> Iterator[bytes]:
    for at in range(0, len(content), PIECE_BYTES):
        yield content[at : at + PIECE_BYTES]


class ArchiveServicer(rpc.ArchiveServiceServicer):
    """The same over sockets. ``answers``: what the next call answers instead."""

    def __init__(self, agent: "FakeAgent") -> None:
        self.agent = agent
        self.answers: list[object] | None = None
        self.hang = False  # after the answers

    async def _enter(self, verb, context, container_id):
        from tests.fakes.agent import answering  # noqa: PLC0415 - it serves this

        async with answering(context):
            await self.agent.enter(verb)
            self.agent.container(ContainerId(container_id))

    async def _answers(self):
        for answer in self.answers or ():
            yield answer
        if self.hang:
            await asyncio.Event().wait()

    async def ReadLayer(self, request, context):
        await self._enter("read_layer", context, request.container_id)
        files = self.agent.files
        files.frozen_for += request.freeze
        self.agent.pulse.beat()
        try:
            if self.answers is not None:
                async for answer in self._answers():
                    yield answer
                return
            for piece in cut(files.tar()):
                await move(self.agent)
                yield pb.ReadLayerResponse(data=piece)
        finally:
            files.frozen_for -= request.freeze
            self.agent.pulse.beat()

    async def ListChanges(self, request, context):
        await self._enter("list_changes", context, request.container_id)
        if self.answers is not None:
            async for answer in self._answers():
                yield answer
            return
        for change in self.agent.files.changes():
            one = pb.Change(kind=KINDS[change.kind], path=change.path)
            yield pb.ListChangesResponse(changes=[one])

    async def ReadTree(self, request, context):
        from tests.fakes.agent import answering  # noqa: PLC0415 - it serves this

        await self._enter("read_tree", context, request.container_id)
        if self.answers is not None:
            async for answer in self._answers():
                yield answer
            return
        if request.whole_root:
            stat, content = PathStat(b"/", 4096, 0o40755, MODIFIED_AT), self.agent.files.tar()
        else:
            async with answering(context):
                stat, content = self.agent.files.find(request.path)
        yield pb.ReadTreeResponse(stat=encode_stat(stat))
        for piece in cut(content):
            await move(self.agent)
            yield pb.ReadTreeResponse(data=piece)

    async def WriteTree(self, requests, context):
        from tests.fakes.agent import answering  # noqa: PLC0415 - it serves this

        first = await anext(requests)
        await self._enter("write_tree", context, first.options.container_id)
        content = b""
        async with answering(context):
            async for request in requests:
                content += request.data
                if content.startswith(b"no tar"):
                    break
                await move(self.agent)
            write(self.agent, first.options.path, content)
        return pb.WriteTreeResponse()


def encode_stat(stat: PathStat) -> pb.PathStat:
    return pb.PathStat(
        name=stat.name,
        size_bytes=stat.size_bytes,
        mode=stat.mode,
        modified_unix_ns=int(stat.modified_at.timestamp()) * 10**9,
        link_target=stat.link_target,
    )
