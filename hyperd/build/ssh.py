# SPDX-License-Identifier: Apache-2.0
"""The caller's ssh-agents, for steps with `RUN --mount=type=ssh`, while the engine runs and no longer.

    ssh of a step -> buildah's socket for it -> ssh-relay in the builder -> here -> the caller's command -> his agent

Requests go one way and answers the other, never a key. What the builder says is a stranger's word: frames, messages and
connections are bounded, and one that breaks the rules ends the build. What may be asked is for the caller to say.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from hyperd.build import plan
from hyperd.build.builder import EVIDENCE_BYTES, Builder
from hyperd.errors import TimeoutExpiredError, UnavailableError
from hyperd.host.groups import first_error
from hyperd.model.build import AgentMessage

AskAgent = Callable[[AgentMessage], Awaitable[bytes]]
"""A request and its answer; b"" where there is none, and for the end of a connection."""

PROGRAM = "/usr/libexec/hyper/ssh-relay"
MAX_MESSAGE_BYTES = 256 << 10  # ssh-agent's own
MAX_CONNECTIONS = 64
READY_TIMEOUT_S = 60.0
_HEADER = struct.Struct(">III")  # which id, connection, length


class Frames:
    """What ssh-relay writes, taken apart as it comes."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        self._kept = bytearray()

    def take(self, data: bytes) -> list[AgentMessage]:
        """Those that are whole now. Raises UnavailableError."""
        self._kept += data
        found = []
        while len(self._kept) >= _HEADER.size:
            which, connection, size = _HEADER.unpack_from(self._kept)
            if size > MAX_MESSAGE_BYTES or which >= len(self._ids):
                raise _unexpected(f"a message of {size} bytes for agent {which}")
            end = _HEADER.size + size
            if len(self._kept) < end:
                break
            found.append(AgentMessage(self._ids[which], connection, bytes(self._kept[_HEADER.size : end])))
            del self._kept[:end]
        return found


def frame(which: int, connection: int, message: bytes) -> bytes:
    return _HEADER.pack(which, connection, len(message)) + message


@contextlib.asynccontextmanager
async def relayed(builder: Builder, ids: Sequence[str], ask: AskAgent) -> AsyncIterator[None]:
    """The sockets are there inside of this. Raises UnavailableError, TimeoutExpiredError, and what ``ask`` raises."""
    if not ids:
        yield
        return
    async with first_error(), asyncio.TaskGroup() as tasks:
        relay = _Relay(builder, ids, ask, tasks)
        running = tasks.create_task(relay.run())
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await relay.ready.wait()
        except TimeoutError as error:
            raise TimeoutExpiredError(f"not ready in {READY_TIMEOUT_S:g} s", subject=PROGRAM) from error
        yield
        running.cancel()
        relay.cancel()


class _Relay:
    def __init__(self, builder: Builder, ids: Sequence[str], ask: AskAgent, tasks: asyncio.TaskGroup) -> None:
        self._builder = builder
        self._ids = ids
        self._ask = ask
        self._tasks = tasks
        self._frames = Frames(ids)
        self._asked: dict[int, asyncio.Task[None]] = {}
        # As many as there are connections, and one for the end.
        self._answers: asyncio.Queue[bytes] = asyncio.Queue(MAX_CONNECTIONS + 1)
        self._errors = bytearray()
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled: it does not end by itself."""
        code = await self._builder.run(
            [PROGRAM, plan.SSH, *self._ids],
            hear=self._hear,
            hear_errors=self._keep,
            stdin=self._input(),
            timeout_s=plan.BUILD_TIMEOUT_S,
        )
        raise UnavailableError(
            f"`ssh-relay` ended with status {code} in the builder",
            evidence=self._errors.decode(errors="replace").strip(),
        )

    def cancel(self) -> None:
        for task in self._asked.values():
            task.cancel()

    async def _hear(self, data: bytes) -> None:
        for message in self._frames.take(data):
            if not message.message:
                self.ready.set()
                if message.connection:
                    await self._ask(message)
            elif message.connection in self._asked or len(self._asked) >= MAX_CONNECTIONS:
                raise _unexpected("more than one request of a connection, or too many connections")
            else:
                self._asked[message.connection] = self._tasks.create_task(self._answer(message))

    async def _answer(self, message: AgentMessage) -> None:
        try:
            answer = await self._ask(message)
        finally:
            del self._asked[message.connection]
        await self._answers.put(frame(self._ids.index(message.id), message.connection, answer))

    async def _keep(self, data: bytes) -> None:
        self._errors.extend(data)
        del self._errors[:-EVIDENCE_BYTES]

    async def _input(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._answers.get()


def _unexpected(evidence: str) -> UnavailableError:
    return UnavailableError("what the builder asks an ssh-agent makes no sense", evidence=evidence)
