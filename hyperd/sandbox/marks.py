# SPDX-License-Identifier: Apache-2.0
"""Places in a file of a log that it can be read from, so that who wants its end need not read it all.

    beside output.NNNNNNNN, output.NNNNNNNN.marks: position (u64) | end offset (u64), again and again

Little endian. A place is between two whole frames; the end offset is the output's there. A mark that is missing, as in
logs of before there were any, costs time and nothing else.
"""

import contextlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_MARK = struct.Struct("<QQ")
EVERY_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Mark:
    position: int = 0
    end_offset: int = 0


BEGINNING = Mark()


class Marks:
    """Of one file. ``size``: of the file; a mark behind its end counts no more."""

    def __init__(self, log: Path, size: int) -> None:
        self._path = path_of(log)
        self._marks: list[Mark] = []
        data = b""
        if size:
            with contextlib.suppress(FileNotFoundError):
                data = self._path.read_bytes()
        for position, end_offset in _MARK.iter_unpack(data[: len(data) // _MARK.size * _MARK.size]):
            if not self.last.position < position <= size:
                break
            self._marks.append(Mark(position, end_offset))
        self.due = self.last.position + EVERY_BYTES  # the file's size by which the next one is noted

    @property
    def last(self) -> Mark:
        return self._marks[-1] if self._marks else BEGINNING

    def newest_first(self) -> list[Mark]:
        """The last is the file's beginning."""
        return [*reversed(self._marks), BEGINNING]

    def note(self, position: int, end_offset: int) -> None:
        """How far the file has grown, when that is ``due``. Raises OSError."""
        self.due = position + EVERY_BYTES
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:  # what is behind it is of a file that was longer
            at = len(self._marks) * _MARK.size
            os.ftruncate(file, at)
            if os.pwrite(file, _MARK.pack(position, end_offset), at) == _MARK.size:
                self._marks.append(Mark(position, end_offset))
        finally:
            os.close(file)


def path_of(log: Path) -> Path:
    return log.with_name(f"{log.name}.marks")
