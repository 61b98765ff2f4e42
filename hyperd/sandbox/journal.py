# SPDX-License-Identifier: Apache-2.0
"""A container's output on disk, in frames that survive a kill at any byte.

    frame = time (u64, ns since 1970) | end offset (u64) | length (u32) | stream (u8) | data

Little endian. The end offset is the agent's numbering of the process's output, so that the last whole frame says from
where to ask again after a restart. A frame of stream 0 and no data begins a new run, whose offsets start at 0 again.
A frame cut short by a crash is dropped when the file is opened. Two files of at most half the bound each: the older one
goes when the newer one is full. Marks (marks.py) say where reading can begin: a start looks at the end alone, and so do
those who want the last lines.
"""

import asyncio
import contextlib
import errno
import os
import struct
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from hyperd.errors import ExhaustedError, UnavailableError
from hyperd.model.guest import OutputChunk, Stream
from hyperd.sandbox.marks import Marks, path_of
from hyperd.sandbox.pulse import Pulse

_HEADER = struct.Struct("<QQIB")
_MAX_DATA_BYTES = 1 << 20
_NEW_RUN = 0  # in place of a stream
_READ_BATCH = 64  # frames between two looks at the loop


@dataclass(frozen=True, slots=True)
class LogEntry:
    time_ns: int
    stream: Stream
    data: bytes
    end_offset: int


@dataclass(slots=True)
class Cursor:
    """A place between two entries; the default is before the first."""

    sequence: int = -1
    position: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """What is there already: the newest file, its bytes in whole frames, and the output's end as they tell it."""

    sequence: int
    whole_bytes: int
    end_offset: int


class Journal:
    """Appending and following. One writer; any number of readers, none of which can slow the writer down."""

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self.directory = directory
        self._half = max(max_bytes // 2, _MAX_DATA_BYTES)
        self._file: FileIO | None = None
        self._size = 0
        self._sequence = 0
        self._marks = Marks(self._path(0), 0)
        self._grown = Pulse()
        self.end_offset = 0
        self.closed = True

    def examine(self) -> "Kept":
        """Look through what an earlier run left; reads only, so that it may run in a thread of its own."""
        try:
            files = self._files()
            if not files:
                return Kept(0, 0, 0)
            sequence, path = files[-1]
            whole_bytes, end_offset = _scan(path)
            if not whole_bytes and len(files) > 1:  # killed between rotating and writing
                end_offset = _scan(files[-2][1])[1]
        except OSError as error:
            raise _translated(error, self.directory) from error
        return Kept(sequence, whole_bytes, end_offset)

    def open(self, kept: "Kept", *, fresh: bool, base: int = 0) -> None:
        """Open for appending. ``fresh``: a new run, whose offsets begin at ``base``; older output stays readable."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sequence, self._size = kept.sequence, kept.whole_bytes
            self._file = self._path(self._sequence).open("ab", buffering=0)
            self._file.truncate(self._size)
            self._marks = Marks(self._path(self._sequence), self._size)
        except OSError as error:
            raise _translated(error, self.directory) from error
        self.closed = False
        self.end_offset = base if fresh else kept.end_offset
        if fresh:
            self._write(_HEADER.pack(time.time_ns(), base, 0, _NEW_RUN), base)

    def append(self, chunk: OutputChunk) -> None:
        """Raises ExhaustedError when the disk is full. A chunk already here is ignored; part of one is cut."""
        if chunk.end_offset <= self.end_offset or self._file is None:
            return
        data = chunk.data[max(0, self.end_offset - chunk.offset) :]
        self._write(
            _HEADER.pack(time.time_ns(), chunk.end_offset, len(data), chunk.stream) + data, chunk.end_offset
        )
        self.end_offset = chunk.end_offset
        self._grown.beat()

    def close(self) -> None:
        """No more output will come: followers end."""
        self.closed = True
        if self._file is not None:
            self._file.close()
            self._file = None
        self._grown.beat()

    async def read(self, cursor: Cursor | None = None, *, follow: bool = False) -> AsyncIterator[LogEntry]:
        """Every entry still kept from the cursor on, oldest first; with ``follow`` also those to come until ``close``.

        The cursor moves along: a second call with the same one goes on where the first ended.
        """
        at = cursor or Cursor()
        if at.sequence < 0:
            at.sequence = (self._files() or [(0, self._path(0))])[0][0]
        while True:
            count = 0
            for entry, position_after in _entries(self._path(at.sequence), at.position):
                at.position = position_after
                yield entry
                count += 1
                if count % _READ_BATCH == 0:
                    await asyncio.sleep(0)  # let others run: not a wait
            newer = [number for number, _ in self._files() if number > at.sequence]
            if count:
                continue
            if newer:
                at.sequence, at.position = newer[0], 0
            elif follow and not self.closed:
                await self._grown.wait()
            else:
                return

    async def read_back(self, cursor: Cursor) -> AsyncIterator[list[LogEntry]]:
        """Every entry still kept, from the end to the beginning, in pieces of which each is in its own order.

        The cursor is at the end, before the first piece comes.
        """
        cursor.sequence, cursor.position = (self._files() or [(0, self._path(0))])[-1][0], 0
        for sequence, path in reversed(self._files()):
            end = _size_of(path)
            for mark in Marks(path, end).newest_first():
                piece, whole = [], mark.position
                for entry, position_after in _entries(path, mark.position):
                    if position_after > end:
                        break
                    whole = position_after
                    piece.append(entry)
                    if len(piece) % _READ_BATCH == 0:
                        await asyncio.sleep(0)  # let others run: not a wait
                if sequence == cursor.sequence:
                    cursor.position = max(cursor.position, whole)
                end = mark.position
                yield piece

    def _write(self, frame: bytes, end_offset: int) -> None:
        """All of the frame or none: into the page cache, which outlives a killed hyperd, not a host without power."""
        try:
            if self._size + len(frame) > self._half and self._size:
                self._rotate()
            if self._file is not None:
                try:
                    written = 0
                    while written < len(frame):  # a disk that fills takes a part first
                        written += self._file.write(frame[written:])
                except OSError:
                    self._file.truncate(self._size)
                    raise
        except OSError as error:
            raise _translated(error, self.directory) from error
        self._size += len(frame)
        if self._size >= self._marks.due:
            with contextlib.suppress(
                OSError
            ):  # a full disk, say: the frame is written, a mark only saves time
                self._marks.note(self._size, end_offset)

    def _rotate(self) -> None:
        for number, path in self._files():
            if number < self._sequence:
                path.unlink(missing_ok=True)
                path_of(path).unlink(missing_ok=True)
        fresh = self._path(self._sequence + 1).open("ab", buffering=0)
        if self._file is not None:
            self._file.close()
        self._file, self._sequence, self._size = fresh, self._sequence + 1, 0
        self._marks = Marks(self._path(self._sequence), 0)

    def _path(self, sequence: int) -> Path:
        return self.directory / f"output.{sequence:08d}"

    def _files(self) -> list[tuple[int, Path]]:
        found = [
            (int(path.suffix[1:]), path)
            for path in self.directory.glob("output.*")
            if path.suffix[1:].isdigit()
        ]
        return sorted(found)


def _entries(path: Path, position: int) -> Iterator[tuple[LogEntry, int]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return  # rotated away under a slow reader
    with file:
        file.seek(position)
        while True:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            time_ns, end_offset, length, stream = _HEADER.unpack(header)
            if length > _MAX_DATA_BYTES or stream not in (_NEW_RUN, Stream.STDOUT, Stream.STDERR):
                return
            data = file.read(length)
            if len(data) < length:
                return
            position += _HEADER.size + length
            if stream == _NEW_RUN:
                continue
            yield LogEntry(time_ns, Stream(stream), data, end_offset), position


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # rotated away under a slow reader


def _scan(path: Path) -> tuple[int, int]:
    """(bytes in whole frames, end offset of the last of them). From the last mark on: all before it is whole."""
    size = path.stat().st_size
    mark = Marks(path, size).last
    whole, offset = mark.position, mark.end_offset
    with path.open("rb") as file:
        file.seek(whole)
        while whole + _HEADER.size <= size:
            _time, end_offset, length, _stream = _HEADER.unpack(file.read(_HEADER.size))
            if length > _MAX_DATA_BYTES or whole + _HEADER.size + length > size:
                break
            file.seek(length, os.SEEK_CUR)
            whole += _HEADER.size + length
            offset = end_offset
    return whole, offset


def _translated(error: OSError, directory: Path) -> ExhaustedError | UnavailableError:
    kind = ExhaustedError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else UnavailableError
    return kind("the container's log cannot be written", subject=str(directory), evidence=str(error))
