# SPDX-License-Identifier: Apache-2.0
"""RunContainer, AttachContainer and ExecContainer: one process's streams over one call."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from hyper.v1 import container_pb2 as wire
from hyperd.api import convert
from hyperd.errors import InvalidError
from hyperd.host.groups import first_error
from hyperd.model.container import Exit
from hyperd.model.guest import Stream
from hyperd.sandbox import Fleet, Session

MAX_STDIN_BYTES = 1 << 20  # of one request
QUEUED_INPUTS = 4  # requests with standard input that wait for a process that does not read

Requests = AsyncIterator[wire.SessionRequest]
Respond = Callable[[wire.SessionResponse], Awaitable[None]]


async def serve_session(fleet: Fleet, requests: Requests, respond: Respond, expected: str) -> None:
    """Raises InvalidError when the first request is not of the kind of this call."""
    first = await anext(aiter(requests), wire.SessionRequest())
    if first.WhichOneof("kind") != expected:
        raise InvalidError(f"the first request of the call must be {expected!r}")
    started = wire.SessionStarted()
    session, detach = await _open(fleet, first, started)
    if session is None:
        await respond(wire.SessionResponse(started=started))
        return
    started.tty = session.tty
    try:
        await respond(wire.SessionResponse(started=started))
        if not detach:
            await _stream(session, requests, respond)
    finally:
        await session.aclose()


async def _open(
    fleet: Fleet, first: wire.SessionRequest, started: wire.SessionStarted
) -> tuple[Session | None, bool]:
    """The session, if one is wanted, and whether the caller only wants to have started it."""
    session: Session | None
    if first.HasField("run"):
        view, warnings = await fleet.create(convert.decode_spec(first.run.spec))
        started.warnings.extend(warnings)
        handle, detach = fleet.get(view.record.sandbox_id), first.run.detach
        if detach:
            await handle.start()
            session, started.tty = None, view.record.spec.tty
        else:
            session = await handle.attach(start=True)
    elif first.HasField("attach"):
        handle, detach = fleet.get(first.attach.container), False
        session = await handle.attach(start=first.attach.start, stdin=not first.attach.no_stdin)
        if first.attach.HasField("terminal_size"):
            await session.resize(convert.decode_size(first.attach.terminal_size))
    else:
        handle, detach = fleet.get(first.exec.container), first.exec.detach
        session = await handle.exec(convert.decode_exec(first.exec))
        started.exec_id = session.exec_id
    started.container_id, started.name = handle.record.sandbox_id, handle.record.name
    return session, detach


async def _stream(session: Session, requests: Requests, respond: Respond) -> None:
    inputs: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_INPUTS)
    async with _in_background(_take(session, requests, inputs), _feed(session, inputs)):
        async for item in session:
            if isinstance(item, Exit):
                await respond(wire.SessionResponse(exit=convert.encode_exit(item)))
            elif item.stream is Stream.STDOUT:
                await respond(wire.SessionResponse(stdout=item.data))
            else:
                await respond(wire.SessionResponse(stderr=item.data))


async def _take(session: Session, requests: Requests, inputs: "asyncio.Queue[bytes | None]") -> None:
    """Standard input goes into a queue: what comes behind it waits only when so much is in there that nobody reads.

    Then this waits as well, which is what has the caller wait; a signal that must not has a call of its own.
    """
    async for request in requests:
        match request.WhichOneof("kind"):
            case "stdin":
                if len(request.stdin) > MAX_STDIN_BYTES:
                    raise InvalidError(f"more than {MAX_STDIN_BYTES} bytes of standard input in one request")
                await inputs.put(request.stdin)
            case "close_stdin":
                await inputs.put(None)
            case "resize":
                await session.resize(convert.decode_size(request.resize))
            case "signal":
                await session.signal(request.signal)
            case other:
                raise InvalidError(f"{other!r} cannot come after the first request")


async def _feed(session: Session, inputs: "asyncio.Queue[bytes | None]") -> None:
    while True:
        data = await inputs.get()
        if data is None:
            await session.close_stdin()
        else:
            await session.write(data)


@contextlib.asynccontextmanager
async def _in_background(*work: "asyncio._CoroutineLike[None]") -> AsyncIterator[None]:
    """Run ``work`` beside the block, end it with the block; its error is the block's."""
    async with first_error(), asyncio.TaskGroup() as group:
        tasks = [group.create_task(item) for item in work]
        yield
        for task in tasks:
            task.cancel()
