# SPDX-License-Identifier: Apache-2.0
"""An exec'd process from its birth until it is forgotten: as one call, or as four where that is not to be had."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, cast

import grpc.aio

from hyper.agent.v1 import agent_pb2 as pb
from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError, UnsupportedError
from hyperd.guest.base import Guest, OutputReader
from hyperd.guest.convert import MAX_CHUNK_BYTES, decode_chunk, decode_exit, decode_pid, encode_process
from hyperd.guest.failures import NonsenseError, agent_errors
from hyperd.guest.transport import WINDOW_BYTES, Port
from hyperd.model.guest import ContainerId, OutputChunk, ProcessExit, ProcessId, ProcessPlan

if TYPE_CHECKING:
    from hyper.agent.v1.agent_pb2_grpc import StreamServiceAsyncStub

_MAX_CHUNKS = 8192  # that nobody has taken yet; the agent's ring turns between the streams half as often
_END_S = 15.0


class SeparateRun:
    """By four calls: of a process that another connection has started, or of an agent that is older."""

    def __init__(self, guest: Guest, container_id: ContainerId, process_id: ProcessId) -> None:
        self._guest = guest
        self._target = (container_id, process_id)

    async def start(self, plan: ProcessPlan) -> int:
        return await self._guest.exec_process(*self._target, plan)

    def output(self, from_offset: int) -> OutputReader:
        return self._guest.read_output(*self._target, from_offset)

    async def carry(self) -> None:
        """Each call carries itself."""

    async def wait(self) -> ProcessExit:
        return await self._guest.wait_process(*self._target)

    async def end(self) -> None:
        await self._guest.forget_process(*self._target)

    def close(self) -> None:
        """Each call ends by itself."""


class AgentRun:
    """RunProcess, once it is started; by four calls until then, and for good where the agent does not know it.

    ``carry`` reads for both who wait for something of it, the output's reader and whoever wants the exit.
    """

    def __init__(
        self,
        stub: "StreamServiceAsyncStub",
        port: Port,
        request: pb.ExecProcessRequest,
        subject: str,
        start_timeout_s: float,
        separate: SeparateRun,
    ) -> None:
        self._stub = stub
        self._port = port
        self._request = request
        self._subject = subject
        self._start_timeout_s = start_timeout_s
        self._separate = separate
        self._call: grpc.aio.StreamStreamCall[pb.RunProcessRequest, pb.RunProcessResponse] | None = None
        self._responses: AsyncGenerator[pb.RunProcessResponse, None] | None = None
        self._changed = asyncio.Event()  # another one each time
        self._error: HyperError | None = None  # of the call
        self._output = _Output(self._wait_until)
        self._exit: ProcessExit | None = None
        self._is_over = False

    async def start(self, plan: ProcessPlan) -> int:
        self._port.require_alive(self._subject)
        self._request.process.CopyFrom(encode_process(plan))
        self._call = self._stub.RunProcess(self._requests())
        # Iterated, not read(): see AgentOutputReader.
        self._responses = cast("AsyncGenerator[pb.RunProcessResponse, None]", aiter(self._call))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                pid = self._started(await self._receive(self._responses))
        except TimeoutError as error:
            self.close()
            raise TimeoutExpiredError("the agent did not answer in time", subject=self._subject) from error
        except UnsupportedError:
            self.close()
            return await self._separate.start(plan)
        except BaseException:
            self.close()
            raise
        return pid

    def output(self, from_offset: int) -> OutputReader:
        return self._output if self._call is not None else self._separate.output(from_offset)

    async def carry(self) -> None:
        if (responses := self._responses) is None:
            return
        try:
            while self._exit is None or not self._output.has_ended:
                self._take(await self._receive(responses))
                self._tell()
        except HyperError as error:
            self._error = error
            self._tell()

    async def wait(self) -> ProcessExit:
        if self._call is None:
            return await self._separate.wait()
        await self._wait_until(lambda: self._exit is not None)
        assert self._exit is not None  # noqa: S101 - or it would be waited for
        return self._exit

    async def end(self) -> None:
        """The agent forgets it when our requests end; where the call is broken it is told so by another."""
        if self._exit is not None and await self._end_call():
            return
        await self._separate.end()

    def close(self) -> None:
        self._stop_asking()
        if self._call is not None:
            self._call.cancel()
        self._call = self._responses = None

    async def _end_call(self) -> bool:
        """Whether it ended as it should. One that was cancelled ends, too."""
        call, responses = self._call, self._responses
        if call is None or responses is None:
            return False
        self._stop_asking()
        try:
            async with asyncio.timeout(_END_S):
                with agent_errors(self._subject):
                    async for _ in responses:  # what nobody wants any more
                        continue
                    return await call.code() is grpc.StatusCode.OK
        except (TimeoutError, UnavailableError):
            return False
        finally:
            self.close()

    async def _wait_until(self, is_there: Callable[[], bool]) -> None:
        while not is_there():
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    def _tell(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _receive(self, responses: AsyncIterator[pb.RunProcessResponse]) -> pb.RunProcessResponse:
        with agent_errors(self._subject):
            response = await anext(responses, None)
            if response is None:
                raise NonsenseError("a process that stops without an end")
            return response

    def _started(self, response: pb.RunProcessResponse) -> int:
        with agent_errors(self._subject):
            if response.WhichOneof("kind") != "started":
                raise NonsenseError("a process that does something before it is started")
            return decode_pid(response.started.pid)

    def _take(self, response: pb.RunProcessResponse) -> None:
        with agent_errors(self._subject):
            match response.WhichOneof("kind"):
                case "output":
                    self._output.take(response.output)
                case "exit" if self._exit is None:
                    self._exit = decode_exit(response.exit)
                case other:
                    raise NonsenseError(f"{other} of a process that runs")

    async def _requests(self) -> AsyncIterator[pb.RunProcessRequest]:
        yield pb.RunProcessRequest(exec=self._request)
        while not self._is_over:
            await self._output.news.wait()
            self._output.news.clear()
            if not self._is_over:
                yield pb.RunProcessRequest(acknowledged_offset=self._output.acknowledged)

    def _stop_asking(self) -> None:
        # grpc.aio does not cancel the consumer of our requests when the agent ended the call.
        self._is_over = True
        self._output.news.set()


class _Output:
    """What was read and not taken yet; the agent sends no more than its ring holds before that is acknowledged."""

    def __init__(self, wait_until: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
        self.news = asyncio.Event()
        self.acknowledged = 0
        self._wait_until = wait_until
        self._received = 0
        self._chunks: deque[OutputChunk] = deque()
        self.has_ended = False

    def take(self, response: pb.ReadOutputResponse) -> None:
        if self.has_ended or (response.eof and (response.data or response.offset != self._received)):
            raise NonsenseError("output after its end")
        if response.eof:
            self.has_ended = True
            return
        chunk = decode_chunk(response, self._received)
        self._received = chunk.end_offset
        last = self._chunks[-1] if self._chunks else None
        if last and last.stream is chunk.stream and len(last.data) + len(chunk.data) <= MAX_CHUNK_BYTES:
            self._chunks[-1] = OutputChunk(last.offset, last.stream, last.data + chunk.data)
        else:
            self._chunks.append(chunk)
        if self._received - self.acknowledged > WINDOW_BYTES or len(self._chunks) > _MAX_CHUNKS:
            raise NonsenseError("more output than the agent keeps")

    async def __aiter__(self) -> AsyncIterator[OutputChunk]:
        while True:
            await self._wait_until(lambda: bool(self._chunks) or self.has_ended)
            if not self._chunks:
                return
            yield self._chunks.popleft()

    def acknowledge(self, offset: int) -> None:
        if self.acknowledged < offset <= self._received:
            self.acknowledged = offset
            self.news.set()
