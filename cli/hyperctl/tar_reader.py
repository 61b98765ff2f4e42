# SPDX-License-Identifier: Apache-2.0
"""A tar stream from a stranger, entry by entry, in bounded memory.

Not `tarfile`: it reads an extended header as large as the stream says it is, and keeps every member it has seen.
Its decoding of one header block is used. ustar, GNU and PAX; sparse files are not understood.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from hyperctl.errors import CliError

BLOCK = 512
CHUNK_BYTES = 1 << 20
# Of all extended headers of one entry; names have at most 4096 bytes, extended attributes 64 KiB.
MAX_EXTENDED_BYTES = 1 << 20
MAX_NAME_BYTES = 4096
MAX_LENGTH_DIGITS = 7
ENCODING, ERRORS = "utf-8", "surrogateescape"
FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_KNOWN = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_SPARSE = "GNU.sparse."
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_EXTENDED = frozenset({*_LONG, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE})


@dataclass(frozen=True, slots=True)
class Entry:
    """``data`` gives its content, once, before the next entry is asked for."""

    name: str
    kind: bytes  # as in tarfile: REGTYPE, DIRTYPE, ...
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_s: float
    link_target: str
    data: Iterator[bytes]


class BrokenTarError(CliError):
    def __init__(self, brief: str) -> None:
        super().__init__(f"not a tar that can be trusted: {brief}")


class Source:
    """Chunks as they come -> exactly as many bytes as are asked for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def some(self, most: int) -> bytes:
        """At least one byte, or b"" at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        taken, self._rest = self._rest[:most], self._rest[most:]
        return bytes(taken)

    def exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.some(count)
            if not part:
                raise BrokenTarError("it ends in the middle")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def drain(self) -> None:
        while self.some(CHUNK_BYTES):
            pass


def read_entries(chunks: Iterator[bytes]) -> Iterator[Entry]:
    """Raises BrokenTarError. What comes after the end of the archive is read and thrown away."""
    source = Source(chunks)
    extended: dict[str, str] = {}
    room = MAX_EXTENDED_BYTES
    while True:
        block = source.exactly(BLOCK)
        if not any(block):
            break
        header = _decode(block)
        if header.type not in _EXTENDED:
            yield from _entry(source, header, extended)
            extended, room = {}, MAX_EXTENDED_BYTES
            continue
        data = _extended(source, header.size, room)
        room -= BLOCK + header.size
        if header.type in _LONG:
            extended[_LONG[header.type]] = _text(data.partition(b"\0")[0])
        elif header.type != tarfile.XGLTYPE:  # which is a comment of git's, at most
            extended |= _records(data)
    source.drain()


def _entry(source: Source, header: tarfile.TarInfo, extended: dict[str, str]) -> Iterator[Entry]:
    name, link = extended.get("path", header.name), extended.get("linkpath", header.linkname)
    for text in (name, link):
        if len(text.encode(ENCODING, ERRORS)) > MAX_NAME_BYTES or "\0" in text:
            raise BrokenTarError("a name that cannot be")
    if _SPARSE in extended or header.type == tarfile.GNUTYPE_SPARSE:
        raise BrokenTarError("sparse files are not understood")
    size = _number(extended, "size", header.size) if header.type in FILES else 0
    left = [size]
    yield Entry(
        name=name,
        kind=header.type,
        mode=header.mode & 0o7777,
        uid=_number(extended, "uid", header.uid),
        gid=_number(extended, "gid", header.gid),
        size_bytes=size,
        mtime_s=_seconds(extended, header.mtime),
        link_target=link,
        data=_content(source, left),
    )
    for _ in _content(source, left):  # what nobody wanted
        pass
    source.exactly(-size % BLOCK)


def _content(source: Source, left: list[int]) -> Iterator[bytes]:
    while left[0]:
        data = source.some(min(left[0], CHUNK_BYTES))
        if not data:
            raise BrokenTarError("it ends in the middle of a file")
        left[0] -= len(data)
        yield data


def _decode(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, ENCODING, ERRORS)
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        raise BrokenTarError(f"a header is broken ({error})") from error
    if header.size < 0 or header.size >= 1 << 62:
        raise BrokenTarError("a size that cannot be")
    return header


def _extended(source: Source, size: int, room: int) -> bytes:
    if size > room:
        raise BrokenTarError(f"an extended header of {size} bytes, or many of them")
    data = source.exactly(size)
    source.exactly(-size % BLOCK)
    return data


def _records(data: bytes) -> dict[str, str]:
    """PAX: `LENGTH KEY=VALUE\\n`, LENGTH counting itself."""
    records = {}
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        space = data.find(b" ", at, at + MAX_LENGTH_DIGITS + 1)
        length_text = data[at : max(at, space)]
        if not length_text.isdigit():
            raise BrokenTarError("an extended header is broken")
        after = at + int(length_text)
        equals = data.find(b"=", space, after)
        if after > len(data) or equals < 0 or data[after - 1 : after] != b"\n":
            raise BrokenTarError("an extended header is broken")
        # Only what is looked at is kept: the rest is the stranger's to choose, and as much as it likes.
        key = data[space + 1 : equals]
        if key.startswith(_SPARSE.encode()):
            records[_SPARSE] = ""
        elif key in _KNOWN:
            records[_text(key)] = _text(data[equals + 1 : after - 1])
        at = after
    return records


def _text(data: bytes) -> str:
    return data.decode(ENCODING, ERRORS)


def _number(extended: dict[str, str], key: str, otherwise: int) -> int:
    text = extended.get(key)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BrokenTarError(f"a {key} that cannot be")
    return int(text)


def _seconds(extended: dict[str, str], otherwise: float) -> float:
    try:
        return float(extended.get("mtime", otherwise))
    except (ValueError, OverflowError):
        return 0.0
