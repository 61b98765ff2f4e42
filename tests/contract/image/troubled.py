# SPDX-License-Identifier: Apache-2.0
"""A registry with trouble: a loopback proxy in front of a real one, which answers some requests itself, or not at all.

async with troubled(hub.address, lambda request, seen: STALL if request.method == "PATCH" else None) as between:
    ... f"{between.address}/name:1" ...
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

# Instead of an answer: nothing, for ever; the connection ends in the middle of the body; more and more of a blob;
# what the real one answers, but for the last byte, which comes when it is `released`.
STALL, CUT, FLOOD, HOLD = b"stall", b"cut", b"flood", b"hold"
FLOOD_BYTES = 1 << 30


@dataclass(frozen=True)
class Request:
    method: str
    path: str


Answer = Callable[
    [Request, int], bytes | None
]  # and how often this method and path, without its query, were asked


@dataclass
class Troubled:
    address: str = ""
    seen: list[Request] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def troubled(upstream: str, decide: Answer) -> AsyncIterator[Troubled]:
    it = Troubled()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await _serve(it, upstream, decide, reader, writer)
        writers.discard(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    it.address = f"{host}:{port}"
    try:
        yield it
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        await server.wait_closed()


async def _serve(
    it: Troubled, upstream: str, decide: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    head = await reader.readexactly(1)
    if head == b"\x16":
        return  # TLS: skopeo tries that first, and would wait ten seconds for an answer
    head += await reader.readuntil(b"\r\n\r\n")
    method, path = head.split(b" ", 2)[:2]
    request = Request(method.decode(), path.decode())
    it.seen.append(request)
    bare = request.path.partition("?")[0]
    seen = sum(one.method == request.method and one.path.partition("?")[0] == bare for one in it.seen)
    decided = decide(request, seen)
    if decided == STALL:
        await reader.read(-1)  # until the other side gives up, or the test ends
        return
    if decided == CUT:
        await reader.read(1000)
        writer.transport.abort()
        return
    if decided == FLOOD:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(FLOOD_BYTES >> 20):
            writer.write(bytes(1 << 20))
            await writer.drain()
        return
    body = await _body(head, reader)
    is_held = decided == HOLD
    if decided is None or is_held:
        far, towards = await asyncio.open_connection(*upstream.split(":"))
        towards.write(re.sub(rb"\r\nConnection:[^\r]*", b"", head[:-2]) + b"Connection: close\r\n\r\n" + body)
        decided = await far.read(-1)
        towards.close()
    if is_held:
        writer.write(decided[:-1])
        await writer.drain()
        await it.released.wait()
        decided = decided[-1:]
    writer.write(decided)
    await writer.drain()


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """As it came, chunks and all."""
    if found := re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE):
        return await reader.readexactly(int(found[1]))
    body = b""
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        while True:
            size = await reader.readline()
            chunk = await reader.readexactly(int(size, 16) + 2)
            body += size + chunk
            if chunk == b"\r\n":
                return body
    return body
