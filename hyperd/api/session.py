# SPDX-License-Identifier: Apache-2.0
"""RunContainer, AttachContainer and ExecContainer: one process's streams over one call."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from hyper.v1 import container_pb2 as wire
from hyperd.api import convert
from hyperd.errors import HyperError, InvalidError
from hyperd.model.container import Exit
from hyperd.model.guest import Stream
from hyperd.sandbox import Fleet, Session

MAX_STDIN_BYTES = 1 << 20


async def serve_session(
    fleet: Fleet, requests: AsyncIterator[wire.SessionRequest], expected: str
) -> AsyncIterator[wire.SessionResponse]:
    """Raises InvalidError when the first request is not of the kind of this call."""
    first = await anext(aiter(requests), wire.SessionRequest())
    if first.WhichOneof("kind") != expected:
        raise InvalidError(f"the first request of the call must be {expected!r}")
    started = wire.SessionStarted()
    detach = False
    if expected == "run":
        view, warnings = await fleet.create(convert.decode_spec(first.run.spec))
        driver = fleet.get(view.record.sandbox_id)
        started.warnings.extend(warnings)
        detach = first.run.detach
        if detach:
            await driver.start()
            session = None
        else:
            session = await driver.attach(start=True)
    elif expected == "attach":
        driver = fleet.get(first.attach.container)
        session = await driver.attach(start=first.attach.start)
        if first.attach.HasField("terminal_size"):
            await session.resize(convert.decode_size(first.attach.terminal_size))
    else:
        driver = fleet.get(first.exec.container)
        session = await driver.exec(convert.decode_exec(first.exec))
        detach = first.exec.detach
        started.exec_id = session.exec_id
    started.container_id, started.name = driver.record.sandbox_id, driver.record.name
    started.tty = session.tty if session else driver.record.spec.tty
    yield wire.SessionResponse(started=started)
    if session is None:
        return
    try:
        if not detach:
            async for response in _stream(session, requests):
                yield response
    finally:
        await session.aclose()


async def _stream(
    session: Session, requests: AsyncIterator[wire.SessionRequest]
) -> AsyncIterator[wire.SessionResponse]:
    async with _in_background(_carry_input(session, requests)):
        async for item in session:
            if isinstance(item, Exit):
                yield wire.SessionResponse(exit=convert.encode_exit(item))
            elif item.stream is Stream.STDOUT:
                yield wire.SessionResponse(stdout=item.data)
            else:
                yield wire.SessionResponse(stderr=item.data)


@contextlib.asynccontextmanager
async def _in_background(work: "asyncio._CoroutineLike[None]") -> AsyncIterator[None]:
    """Run ``work`` beside the block, end it with the block; its error is the block's."""
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work)
            yield
            task.cancel()
    except BaseExceptionGroup as group:
        errors = [error for error in group.exceptions if isinstance(error, HyperError)]
        raise (errors[0] if errors else group) from group


async def _carry_input(session: Session, requests: AsyncIterator[wire.SessionRequest]) -> None:
    async for request in requests:
        match request.WhichOneof("kind"):
            case "stdin":
                if len(request.stdin) > MAX_STDIN_BYTES:
                    raise InvalidError(f"more than {MAX_STDIN_BYTES} bytes of standard input in one request")
                await session.write(request.stdin)
            case "close_stdin":
                await session.close_stdin()
            case "resize":
                await session.resize(convert.decode_size(request.resize))
            case "signal":
                await session.signal(request.signal)
            case other:
                raise InvalidError(f"{other!r} cannot come after the first request")
