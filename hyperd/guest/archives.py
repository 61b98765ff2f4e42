# SPDX-License-Identifier: Apache-2.0
"""Files of a container, to and from the agent, as they come: nothing is collected.

Whoever stops iterating, or is cancelled, ends the call at once; the agent then lets go what stood still for it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio

from hyper.agent.v1 import agent_pb2 as pb
from hyper.agent.v1.agent_pb2_grpc import ArchiveServiceStub
from hyperd.errors import TimeoutExpiredError
from hyperd.guest import archive_messages as messages
from hyperd.guest.failures import NonsenseError, agent_errors, is_crossed, printable
from hyperd.guest.transport import Port
from hyperd.host.groups import first_error
from hyperd.model.guest import Change, ContainerId, PathStat, WriteOptions

if TYPE_CHECKING:
    from hyper.agent.v1.agent_pb2_grpc import ArchiveServiceAsyncStub

STALL_S = 60.0  # without a byte

Request = TypeVar("Request")
Response = TypeVar("Response")
Value = TypeVar("Value")


class Archives:
    """The part of a Guest that is about files. ``ports``: both must be alive, the last one carries the calls."""

    def __init__(self, ports: tuple[Port, ...], subject: str) -> None:
        self._archive_ports = ports
        self._archive_subject = subject
        self._archives: ArchiveServiceAsyncStub = ArchiveServiceStub(ports[-1].channel)

    async def read_layer(self, container_id: ContainerId, *, freeze: bool) -> AsyncGenerator[bytes, None]:
        request = pb.ReadLayerRequest(container_id=container_id, freeze=freeze)
        async with self._responses(self._archives.ReadLayer, request) as responses:
            async for response in responses:
                yield self._checked(response.data)

    async def list_changes(self, container_id: ContainerId) -> AsyncGenerator[Change, None]:
        request = pb.ListChangesRequest(container_id=container_id)
        count = 0
        async with self._responses(self._archives.ListChanges, request) as responses:
            async for response in responses:
                with agent_errors(self._archive_subject):
                    changes = messages.decode_changes(response, count)
                count += len(changes)
                for change in changes:
                    yield change

    def read_tree(
        self, container_id: ContainerId, path: bytes, *, follow_link: bool = False
    ) -> AsyncGenerator[PathStat | bytes, None]:
        request = pb.ReadTreeRequest(container_id=container_id, path=path, follow_link=follow_link)
        return self._read_tree(request)

    async def read_root(self, container_id: ContainerId) -> AsyncGenerator[bytes, None]:
        request = pb.ReadTreeRequest(container_id=container_id, path=b"/", whole_root=True)
        async with contextlib.aclosing(self._read_tree(request)) as items:
            async for item in items:
                if not isinstance(item, PathStat):
                    yield item

    async def write_tree(
        self, container_id: ContainerId, options: WriteOptions, data: AsyncIterator[bytes]
    ) -> None:
        self._require_alive()
        call = self._archives.WriteTree()
        ending = _Ending(call)
        first = messages.encode_write_options(container_id, options)
        try:
            async with first_error(), asyncio.TaskGroup() as both:
                feeding = both.create_task(self._feed(call, first, data))
                await call.code()  # however it ends: perhaps before all is fed
                feeding.cancel()
            with self._errors(), ending.remembered():
                await call
        finally:
            call.cancel()

    async def _feed(
        self,
        call: "grpc.aio.StreamUnaryCall[pb.WriteTreeRequest, pb.WriteTreeResponse]",
        first: pb.WriteTreeRequest,
        data: AsyncIterator[bytes],
    ) -> None:
        """What the agent says about its end is heard by who awaits the call."""
        try:
            await self._write(call, first)
            async for piece in data:
                for request in messages.encode_data(piece):
                    await self._write(call, request)
            async with self._patience():
                await call.done_writing()
                await call.code()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            return

    async def _write(
        self,
        call: "grpc.aio.StreamUnaryCall[pb.WriteTreeRequest, pb.WriteTreeResponse]",
        request: pb.WriteTreeRequest,
    ) -> None:
        async with self._patience():
            await call.write(request)

    async def _read_tree(self, request: pb.ReadTreeRequest) -> AsyncGenerator[PathStat | bytes, None]:
        began = False
        async with self._responses(self._archives.ReadTree, request) as responses:
            async for response in responses:
                is_stat = response.WhichOneof("kind") == "stat"
                if is_stat == began:
                    self._nonsense("a path's stat comes first, and once")
                began = True
                if is_stat:
                    with agent_errors(self._archive_subject):
                        stat = messages.decode_stat(response.stat)
                    yield stat
                else:
                    yield self._checked(response.data)
        if not began:
            self._nonsense("a path without its stat")

    @contextlib.asynccontextmanager
    async def _responses(
        self, method: "grpc.aio.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> AsyncIterator[AsyncIterator[Response]]:
        self._require_alive()
        call = method(request)
        responses = cast("AsyncGenerator[Response, None]", aiter(call))
        try:
            async with contextlib.aclosing(self._in_time(responses)) as timely:
                yield timely
        finally:
            call.cancel()
            await responses.aclose()

    async def _in_time(self, responses: AsyncIterator[Response]) -> AsyncGenerator[Response, None]:
        while True:
            async with self._patience():
                with self._errors():
                    response = await anext(responses, None)
            if response is None:
                return
            yield response

    @contextlib.asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(STALL_S):
                yield
        except TimeoutError as error:
            raise TimeoutExpiredError(
                f"the agent has moved no byte for {STALL_S:g} s", subject=self._archive_subject
            ) from error

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """As ``agent_errors``. The calls have no deadline of ours: the agent's is about bytes, either side's."""
        with agent_errors(self._archive_subject):
            try:
                yield
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                raise TimeoutExpiredError(
                    "the agent has given up: no byte moved for too long",
                    subject=self._archive_subject,
                    evidence=printable(error.details() or ""),
                    hint="whoever reads may not pause for a minute while the container stands still",
                ) from error

    def _checked(self, data: bytes) -> bytes:
        with agent_errors(self._archive_subject):
            return messages.decode_data(data)

    def _nonsense(self, what: str) -> None:
        with agent_errors(self._archive_subject):
            raise NonsenseError(what)

    def _require_alive(self) -> None:
        for port in self._archive_ports:
            port.require_alive(self._archive_subject)


class _Ending:
    """What the peer said at the end of a call. grpc.aio forgets it when a write fails because of that very end, and
    says INTERNAL: https://github.com/grpc/grpc/issues/36066
    """

    def __init__(self, call: "grpc.aio.StreamUnaryCall[pb.WriteTreeRequest, pb.WriteTreeResponse]") -> None:
        self._said: tuple[grpc.StatusCode, str] | None = None
        call.add_done_callback(self._remember)

    def _remember(self, call: "grpc.aio.StreamUnaryCall[pb.WriteTreeRequest, pb.WriteTreeResponse]") -> None:
        code, details = _at_once(call.code()), _at_once(call.details()) or ""
        if not is_crossed(code, details):
            self._said = (code, details)

    @contextlib.contextmanager
    def remembered(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if self._said is None or not is_crossed(error.code(), error.details()):
                raise
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(self._said[0], nothing, nothing, self._said[1]) from error


def _at_once(ready: Coroutine[Any, Any, Value]) -> Value:
    """Of a coroutine that has nothing to wait for."""
    try:
        ready.send(None)
    except StopIteration as done:
        return cast("Value", done.value)
    ready.close()
    raise AssertionError("a call is over, but not its status")
