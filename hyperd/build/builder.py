# SPDX-License-Identifier: Apache-2.0
"""A builder that runs: programs in it, and files out of it. Whatever it says is a stranger's word."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

from hyperd.build.member import content_of
from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError
from hyperd.host.groups import first_error
from hyperd.model.container import ExecSpec, Exit, ExitReason
from hyperd.model.guest import PathStat, Stream, WriteOptions
from hyperd.sandbox import SandboxHandle, Session

Hear = Callable[[bytes], Awaitable[None]]

STEP_TIMEOUT_S = 600.0
TRANSFER_TIMEOUT_S = 6 * 3600.0
EVIDENCE_BYTES = 2000
QUEUED_PIECES = 4
HOME = ("HOME=/root",)


class Builder:
    def __init__(self, handle: SandboxHandle) -> None:
        self._handle = handle

    async def run(
        self,
        args: Sequence[str],
        *,
        hear: Hear,
        hear_errors: Hear | None = None,
        stdin: AsyncIterator[bytes] | None = None,
        timeout_s: float = STEP_TIMEOUT_S,
    ) -> int:
        """Its exit status. ``hear_errors``: standard error, else ``hear`` gets that, too.

        Raises UnavailableError when the machine ends under it, TimeoutExpiredError.
        """
        async with _in_time(args[0], timeout_s):
            session = await self._handle.exec(ExecSpec(tuple(args), env=HOME, stdin=stdin is not None))
            try:
                async with first_error(), asyncio.TaskGroup() as tasks:
                    feeding = tasks.create_task(_feed(session, stdin)) if stdin is not None else None
                    exit_ = await _listen(session, hear, hear_errors or hear)
                    if feeding is not None:
                        feeding.cancel()
            finally:
                await session.aclose()
        if exit_.reason is not ExitReason.EXITED:
            raise UnavailableError("the builder ended in the middle", evidence=exit_.message)
        return exit_.code

    async def ask(
        self,
        args: Sequence[str],
        *,
        stdin: AsyncIterator[bytes] | None = None,
        timeout_s: float = STEP_TIMEOUT_S,
        keep_bytes: int = EVIDENCE_BYTES,
    ) -> str:
        """The end of what it said, ``keep_bytes`` of it. Raises UnavailableError when it fails, too."""
        code, said = await self.attempt(args, stdin=stdin, timeout_s=timeout_s, keep_bytes=keep_bytes)
        if code:
            raise UnavailableError(
                f"`{args[0]}` ended with status {code} in the builder",
                evidence=said,
                hint="`hyper volume rm hyper-build-cache` gives the next build a new cache",
            )
        return said

    async def attempt(
        self,
        args: Sequence[str],
        *,
        stdin: AsyncIterator[bytes] | None = None,
        timeout_s: float = STEP_TIMEOUT_S,
        keep_bytes: int = EVIDENCE_BYTES,
    ) -> tuple[int, str]:
        tail = bytearray()

        async def hear(data: bytes) -> None:
            tail.extend(data)
            del tail[:-keep_bytes]

        code = await self.run(args, hear=hear, stdin=stdin, timeout_s=timeout_s)
        return code, tail.decode(errors="replace").strip()

    async def write(self, directory: str, tar: AsyncIterator[bytes]) -> None:
        """A tar into a directory. Raises InvalidError (no tar), ExhaustedError (full)."""
        async with _in_time("the build context", TRANSFER_TIMEOUT_S):
            await self._handle.files.write(WriteOptions(directory.encode()), tar)

    async def read(self, path: str, limit_bytes: int) -> bytes:
        """Raises NotFoundError, InvalidError (larger than that, or no file)."""
        content = bytearray()
        async with self.opened(path, limit_bytes) as pieces:
            async for piece in pieces:
                content += piece
        return bytes(content)

    @contextlib.asynccontextmanager
    async def opened(self, path: str, limit_bytes: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """A file's content, as it comes. ``files.read`` answers to a callback: a queue of a few pieces turns it round.

        Not a generator: nobody could leave one early whose reader is a task of its own.
        """
        pieces: asyncio.Queue[bytes | HyperError | None] = asyncio.Queue(QUEUED_PIECES)

        async def respond(item: PathStat | bytes) -> None:
            if isinstance(item, bytes):
                await pieces.put(item)

        async def read() -> None:
            try:
                await self._handle.files.read(path.encode(), respond)
            except HyperError as error:
                await pieces.put(error)
            else:
                await pieces.put(None)

        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read())
            try:
                async with (
                    contextlib.aclosing(_taken(pieces)) as tar,
                    contextlib.aclosing(content_of(tar, limit_bytes)) as content,
                ):
                    yield content
            except Exception as error:  # noqa: BLE001 - whoever reads hears his own error, not a group of it
                failure = error
            finally:
                reading.cancel()
        if failure is not None:
            raise failure


async def _taken(pieces: "asyncio.Queue[bytes | HyperError | None]") -> AsyncGenerator[bytes, None]:
    while (piece := await pieces.get()) is not None:
        if isinstance(piece, HyperError):
            raise piece
        yield piece


async def _feed(session: Session, data: AsyncIterator[bytes]) -> None:
    async for piece in data:
        await session.write(piece)
    await session.close_stdin()


async def _listen(session: Session, hear: Hear, hear_errors: Hear) -> Exit:
    async for item in session:
        if isinstance(item, Exit):
            return item
        await (hear_errors if item.stream is Stream.STDERR else hear)(item.data)
    raise UnavailableError("the builder's program ended without a status")


@contextlib.asynccontextmanager
async def _in_time(what: str, timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise TimeoutExpiredError(f"not done in {timeout_s:g} s", subject=what) from error
