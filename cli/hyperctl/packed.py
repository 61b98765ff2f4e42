# SPDX-License-Identifier: Apache-2.0
"""What somebody names as a source: a repository's address, or a tar that is packed by gzip, bzip2, xz or nothing."""

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

from hyperctl.errors import CliError, InvalidError
from hyperctl.pipes import CHUNK_BYTES

MAGIC_BYTES = 6
_GIT = re.compile(
    r"git\+\w+://|(?:git|ssh)://|github\.com/|https?://[^#?]+\.git(?:#|$)|[\w.-]+@[\w.-]+:", re.ASCII
)
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"


def split_repository(text: str) -> tuple[str, str] | None:
    """Its address, and what stands behind the #; None for what is none."""
    if not _GIT.match(text):
        return None
    url, _, fragment = text.removeprefix("git+").partition("#")
    return (f"https://{url}" if url.startswith("github.com/") else url), fragment


def is_packed(first: bytes, place: str, *, hint: str) -> bool:
    """By its first bytes. Raises InvalidError for what cannot be unpacked here."""
    if first.startswith(_ZSTD):
        raise InvalidError("is packed by zstd", subject=place, hint=hint)
    return first.startswith((_GZIP, _BZIP2, _XZ))


def unpacked(pieces: Iterator[bytes], place: str, *, hint: str) -> Iterator[bytes]:
    """In pieces of 1 MiB at the most, whatever they were packed to. Raises CliError."""
    import bz2
    import gzip
    import lzma

    raw = io.BufferedReader(_Stream(pieces), CHUNK_BYTES)
    first = raw.peek(MAGIC_BYTES)[:MAGIC_BYTES]
    opened: io.BufferedIOBase = raw
    if is_packed(first, place, hint=hint):
        if first.startswith(_GZIP):
            opened = gzip.GzipFile(fileobj=raw)
        elif first.startswith(_BZIP2):
            opened = bz2.BZ2File(raw)
        else:
            opened = lzma.LZMAFile(raw)  # noqa: SIM115 - ends with its pieces
    try:
        while data := opened.read(CHUNK_BYTES):
            yield data
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise CliError(f"cannot be unpacked: {error}", subject=place) from error


class _Stream(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
