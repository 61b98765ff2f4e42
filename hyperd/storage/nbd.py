# SPDX-License-Identifier: Apache-2.0
"""What an NBD server says of an export, before any QEMU is made to wait for it. The server is not trusted.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: fixed newstyle, NBD_OPT_INFO.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

from hyperd.errors import (
    DeniedError,
    HyperError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
)
from hyperd.model.vm import NbdExport

DEADLINE_S = 5.0  # for all of it
MAX_REPLY_BYTES = 4096
MAX_REPLIES = 16
START_BYTES = 4096
_GREETING = b"NBDMAGIC" + b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_ABORT, _OPT_INFO, _OPT_GO = 2, 6, 7
_INFO_EXPORT = 0
_REPLY_MAGIC = 0x3E889045565A9
_REP_ACK, _REP_INFO = 1, 3
_ERR = 1 << 31
_ERR_POLICY, _ERR_TLS, _ERR_UNKNOWN = _ERR | 2, _ERR | 5, _ERR | 6
_REQUEST_MAGIC, _ANSWER_MAGIC = 0x25609513, 0x67446698
_READ, _DISCONNECT = 0, 2
_FLAG_READ_ONLY, _FLAG_SEND_FLUSH = 1 << 1, 1 << 2


@dataclass(frozen=True, slots=True)
class Export:
    size_bytes: int
    readonly: bool
    flushes: bool


async def describe(export: NbdExport, *, deadline_s: float = DEADLINE_S) -> Export:
    """Raises TimeoutExpiredError (no answer), UnavailableError, NotFoundError (no such export), DeniedError."""
    async with _connected(export, deadline_s) as (reader, writer, subject):
        found = await _ask(reader, writer, export.name, subject, _OPT_INFO)
        writer.write(b"IHAVEOPT" + struct.pack(">II", _OPT_ABORT, 0))
        return found


async def read_start(export: NbdExport, *, deadline_s: float = DEADLINE_S) -> bytes:
    """The first ``START_BYTES`` of an export that has as many. Raises as ``describe``."""
    async with _connected(export, deadline_s) as (reader, writer, subject):
        await _ask(reader, writer, export.name, subject, _OPT_GO)
        writer.write(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _READ, 0, 0, START_BYTES))
        magic, failure, _handle = struct.unpack(">IIQ", await reader.readexactly(16))
        if magic != _ANSWER_MAGIC or failure:
            raise UnavailableError("the server does not let it be read", subject=subject)
        start = await reader.readexactly(START_BYTES)
        writer.write(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        return start


@contextlib.asynccontextmanager
async def _connected(
    export: NbdExport, deadline_s: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, str]]:
    subject = str(export)
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await _connect(export)
            try:
                yield reader, writer, subject
            finally:
                writer.close()
    except TimeoutError as error:
        raise TimeoutExpiredError(
            f"the server did not answer within {deadline_s:g} s",
            subject=subject,
            hint="is it there, and does it let this host in?",
        ) from error
    except (OSError, asyncio.IncompleteReadError) as error:
        what = "it hung up" if isinstance(error, asyncio.IncompleteReadError) else error.strerror or error
        raise UnavailableError(f"the server cannot be reached: {what}", subject=subject) from error


async def _connect(export: NbdExport) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if export.socket is not None:
        return await asyncio.open_unix_connection(export.socket, limit=MAX_REPLY_BYTES)
    return await asyncio.open_connection(export.host, export.port, limit=MAX_REPLY_BYTES)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, subject: str, option: int
) -> Export:
    greeting = await reader.readexactly(len(_GREETING) + 2)
    (flags,) = struct.unpack(">H", greeting[-2:])
    if not greeting.startswith(_GREETING) or not flags & _FIXED_NEWSTYLE:
        raise UnsupportedError("is no NBD server that negotiates", subject=subject)
    writer.write(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
    encoded = name.encode()
    request = struct.pack(">I", len(encoded)) + encoded + struct.pack(">H", 0)
    writer.write(b"IHAVEOPT" + struct.pack(">II", option, len(request)) + request)
    found: Export | None = None
    for _ in range(MAX_REPLIES):
        magic, _option, kind, length = struct.unpack(">QIII", await reader.readexactly(20))
        if magic != _REPLY_MAGIC or length > MAX_REPLY_BYTES:
            raise UnavailableError("the server talks nonsense", subject=subject)
        data = await reader.readexactly(length)
        if kind == _REP_INFO and len(data) == 12 and data[:2] == struct.pack(">H", _INFO_EXPORT):
            size_bytes, transmission = struct.unpack(">QH", data[2:])
            found = Export(
                size_bytes, bool(transmission & _FLAG_READ_ONLY), bool(transmission & _FLAG_SEND_FLUSH)
            )
        elif kind == _REP_ACK and found is not None:
            return found
        elif kind & _ERR:
            raise _refusal(kind, subject)
    raise UnavailableError("the server does not say how large the export is", subject=subject)


def _refusal(kind: int, subject: str) -> HyperError:
    if kind == _ERR_UNKNOWN:
        return NotFoundError("the server has no such export", subject=subject)
    if kind in (_ERR_POLICY, _ERR_TLS):
        return DeniedError("the server does not let this host in, or only with TLS", subject=subject)
    return UnavailableError(f"the server refuses: error {kind & ~_ERR}", subject=subject)
