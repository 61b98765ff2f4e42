# SPDX-License-Identifier: Apache-2.0
"""The content of one regular file, out of the tar in which a guest sends it. The guest is hostile: all is bounded."""

import tarfile
from collections.abc import AsyncGenerator, AsyncIterator

from hyperd.errors import InvalidError
from hyperd.image import read_records

BLOCK = 512
MAX_HEADERS_BYTES = 128 << 10  # they are read anew with each piece
_LONG = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


async def content_of(pieces: AsyncIterator[bytes], limit_bytes: int) -> AsyncGenerator[bytes, None]:
    """Raises InvalidError when it is no tar of one file, is larger than the limit, or ends too early."""
    kept = bytearray()
    left: int | None = None
    async for piece in pieces:
        kept += piece
        if left is None:
            left = _take_headers(kept)
            if left is None:
                if len(kept) > MAX_HEADERS_BYTES:
                    raise _unexpected("its headers are too long")
                continue
            if left > limit_bytes:
                raise InvalidError(f"the builder sent a file of {left} bytes, {limit_bytes} are taken")
        if left and kept:
            data = bytes(kept[:left])
            left -= len(data)
            yield data
        kept.clear()
    if left is None or left:
        raise _unexpected("it ends too early")


def _take_headers(kept: bytearray) -> int | None:
    """The size of the file whose content ``kept`` then begins with; None while there is too little of it."""
    at, size = 0, None
    while len(kept) >= at + BLOCK:
        try:
            header = tarfile.TarInfo.frombuf(bytes(kept[at : at + BLOCK]), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _unexpected(str(error)) from error
        if header.type not in _LONG:
            if not header.isreg():
                raise _unexpected("it is no regular file")
            del kept[: at + BLOCK]
            return header.size if size is None else size
        end = at + BLOCK + -(-header.size // BLOCK) * BLOCK
        if header.size < 0 or end > MAX_HEADERS_BYTES:
            raise _unexpected("its headers are too long")
        if len(kept) < end:
            return None
        if header.type == tarfile.XHDTYPE:
            size = _size_in(bytes(kept[at + BLOCK : at + BLOCK + header.size]), size)
        at = end
    return None


def _size_in(header: bytes, before: int | None) -> int | None:
    records = read_records(header)
    if not records.is_whole:
        raise _unexpected("its extended header is malformed")
    for key, value in records.pairs:
        if key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise _unexpected("its size is malformed")
            before = int(value)
    return before


def _unexpected(why: str) -> InvalidError:
    return InvalidError("the builder did not send the file that it was asked for", evidence=why)
