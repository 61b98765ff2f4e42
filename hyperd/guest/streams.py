# SPDX-License-Identifier: Apache-2.0
"""A process's bytes: its output as an iterator, its input as a writer."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, cast

import grpc.aio

from hyper.agent.v1 import agent_pb2 as pb
from hyperd.errors import NotFoundError, WrongStateError
from hyperd.guest.convert import MAX_CHUNK_BYTES, decode_chunk
from hyperd.guest.failures import CallOverError, NonsenseError, agent_errors
from hyperd.guest.transport import Port
from hyperd.model.guest import OutputChunk

if TYPE_CHECKING:
    from hyper.agent.v1.agent_pb2_grpc import StreamServiceAsyncStub


class AgentOutputReader:
    """Chunks without a gap from ``from_offset`` on. Acknowledgements are merged and go out when the wire takes them."""

    def __init__(
        self, stub: "StreamServiceAsyncStub", port: Port, request: pb.ReadOutputRequest, subject: str
    ) -> None:
        self._stub = stub
        self._port = port
        self._request = request
        self._subject = subject
        self._received = request.from_offset
        self._acknowledged = request.from_offset
        self._over = False
        self._news = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[OutputChunk]:
        self._port.require_alive(self._subject)
        call = self._stub.ReadOutput(self._requests())
        # Iterated, not read(): an acknowledgement that crosses the end makes read() forget what has arrived
        # already (https://github.com/grpc/grpc/issues/36066).
        responses = cast("AsyncGenerator[pb.ReadOutputResponse, None]", aiter(call))
        try:
            while (chunk := await self._next_chunk(responses)) is not None:
                self._received = chunk.end_offset
                yield chunk
        finally:
            # grpc.aio does not cancel the consumer of our requests when the agent ended the call.
            self._over = True
            self._news.set()
            call.cancel()
            await responses.aclose()

    async def _next_chunk(self, responses: AsyncIterator[pb.ReadOutputResponse]) -> OutputChunk | None:
        with agent_errors(self._subject):
            response = await anext(responses, None)
            if response is None:
                raise NonsenseError("output that stops without an end")
            if not response.eof:
                return decode_chunk(response, self._received)
            if response.data or response.offset != self._received:
                raise NonsenseError(f"output ends at {response.offset} instead of {self._received}")
            return None

    def acknowledge(self, offset: int) -> None:
        """What was not received is not acknowledged; less than before changes nothing."""
        if self._acknowledged < offset <= self._received:
            self._acknowledged = offset
            self._news.set()

    async def _requests(self) -> AsyncIterator[pb.ReadOutputRequest]:
        yield self._request
        while not self._over:
            await self._news.wait()
            self._news.clear()
            if not self._over:
                yield pb.ReadOutputRequest(acknowledged_offset=self._acknowledged)


class AgentInputWriter:
    """The call begins with the first write; gRPC's flow control makes ``write`` wait for the process."""

    def __init__(
        self, stub: "StreamServiceAsyncStub", port: Port, request: pb.WriteInputRequest, subject: str
    ) -> None:
        self._stub = stub
        self._port = port
        self._request = request
        self._subject = subject
        self._call: grpc.aio.StreamUnaryCall[pb.WriteInputRequest, pb.WriteInputResponse] | None = None
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Raises WrongStateError or NotFoundError when the process takes no more input, UnavailableError."""
        if self._closed:
            raise WrongStateError("the input was closed", subject=self._subject)
        for at in range(0, len(data), MAX_CHUNK_BYTES):
            await self._send(pb.WriteInputRequest(data=data[at : at + MAX_CHUNK_BYTES]))

    async def close(self, *, eof: bool) -> None:
        if self._closed:
            return
        self._closed = True
        # A process that has gone needs no end of input.
        with contextlib.suppress(WrongStateError, NotFoundError):
            if eof:
                await self._send(pb.WriteInputRequest(eof=True))
            if (call := self._call) is not None:
                with self._errors():
                    await call.done_writing()
                    await call

    async def _send(self, request: pb.WriteInputRequest) -> None:
        if self._call is None:
            self._port.require_alive(self._subject)
            self._call = self._stub.WriteInput()
            await self._write(self._call, self._request)
        await self._write(self._call, request)

    async def _write(
        self,
        call: "grpc.aio.StreamUnaryCall[pb.WriteInputRequest, pb.WriteInputResponse]",
        request: pb.WriteInputRequest,
    ) -> None:
        with self._errors():
            if call.done():
                await call  # raises what the agent said
                raise CallOverError("the agent ended the call")
            await call.write(request)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """As ``agent_errors``; a call that the agent ended while we wrote: the process takes no more."""
        try:
            with agent_errors(self._subject):
                yield
        except CallOverError as error:
            self._port.require_alive(self._subject)
            raise WrongStateError("the process takes no more input", subject=self._subject) from error
