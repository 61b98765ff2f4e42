# SPDX-License-Identifier: Apache-2.0
"""Files and pipes that a command reads or writes, `-` being its standard streams."""

import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperctl import terminal
from hyperctl.errors import INVALID, CliError, InvalidError
from hyperctl.progress import ByteProgress
from hyperctl.streams import OutputStream

if TYPE_CHECKING:
    import grpc.aio

STANDARD = "-"
CHUNK_BYTES = 1 << 20


def refuse_terminal_output(
    subject: str, what: str, path: str = STANDARD, hint: str = "use -o FILE, or redirect"
) -> None:
    if path == STANDARD and terminal.is_terminal(1):
        raise InvalidError(f"refusing to write {what} to a terminal", subject=subject, hint=hint)


def refuse_terminal_input(
    subject: str, what: str, path: str = STANDARD, hint: str = "use -i FILE, or redirect"
) -> None:
    if path == STANDARD and terminal.is_terminal(0):
        raise InvalidError(f"refusing to read {what} from a terminal", subject=subject, hint=hint)


@contextlib.contextmanager
def open_output(path: str) -> Iterator[int]:
    """A descriptor to write to. A regular file gets its name when all went well, and is its owner's alone."""
    if path == STANDARD:
        yield 1
        return
    place = Path(path)
    try:
        if place.exists() and not place.is_file():  # a pipe, /dev/null
            with place.open("wb", buffering=0) as file:
                yield file.fileno()
            return
        place = place.resolve()
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}.", delete=False) as draft:
            try:
                yield draft.fileno()
                Path(draft.name).replace(place)
            except BaseException:
                Path(draft.name).unlink()
                raise
    except OSError as error:
        raise InvalidError(f"cannot be written: {error.strerror}", subject=path) from error


@contextlib.contextmanager
def open_input(path: str) -> Iterator[int]:
    if path == STANDARD:
        yield 0
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", subject=path) from error
    try:
        yield fd
    finally:
        os.close(fd)


class Input:
    """A descriptor in pieces. grpc swallows what fails while it reads for an upload, so the failure is kept here."""

    def __init__(self, fd: int, place: str, on_read: Callable[[int], None] = lambda _: None) -> None:
        self._fd = fd
        self._place = place
        self._on_read = on_read
        self._lost: OSError | None = None

    def chunks(self) -> Iterator[bytes]:
        try:
            while data := os.read(self._fd, CHUNK_BYTES):
                yield data
                self._on_read(len(data))
        except OSError as error:
            self._lost = error
            raise

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Around the call: what could not be read is told rather than what the daemon said to half an upload."""
        try:
            yield
        except CliError as error:
            if self._lost is not None:
                brief = f"cannot be read: {self._lost.strerror or self._lost}"
                raise CliError(brief, subject=self._place) from error
            if (
                error.exit_status == INVALID and self._place != STANDARD
            ):  # hyperd does not know the file's name
                error.subject = f"{self._place}: {error.subject}" if error.subject else self._place
            raise


async def write_stream(
    call: "grpc.aio.UnaryStreamCall[Any, Any]", fd: int, place: str, verb: str, *, quiet: bool = False
) -> None:
    """The ``data`` of each response of ``call``, 1 MiB behind at the most. BrokenPipeError: the reader has gone."""
    lost: list[OSError] = []
    out = OutputStream(fd, lost.append)
    progress = ByteProgress(sys.stderr, verb, quiet=quiet)
    responses: AsyncIterator[Any] = call.__aiter__()
    try:
        async for response in responses:
            await out.write(response.data)
            progress.add(len(response.data))
            if lost:
                break
        await out.finish()
    finally:
        call.cancel()
        progress.finish()
    for error in lost:
        if isinstance(error, BrokenPipeError):
            raise error
        raise CliError(f"cannot be written: {error.strerror or error}", subject=place) from error
