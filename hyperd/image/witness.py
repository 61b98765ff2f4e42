# SPDX-License-Identifier: Apache-2.0
"""A registry of one call, that sees which manifest the signature policy lets through.

    registry --skopeo copy, under the policy--> witness      HEAD blob: it is here      PUT manifest: the one

skopeo checks signatures only when it copies, and says nothing of what it has checked. So it copies to us: every blob
is said to be here, so that none is moved, and the manifest that it puts, unchanged (``--preserve-digests``), is the one
whose signatures were good. It listens on loopback for a few requests, which have to know a secret that no
command line has.
"""

import asyncio
import base64
import contextlib
import hmac
import json
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from hyperd.image.content import digest_of
from hyperd.image.manifest import MAX_MANIFEST_BYTES
from hyperd.model.image import Digest

REQUEST_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 32
_TLS_HANDSHAKE = b"\x16"
_MAX_HEAD_BYTES = 64 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,10})\r", re.IGNORECASE)
_SECRET = re.compile(rb"\r\nauthorization: *basic +([A-Za-z0-9+/=]+)\r", re.IGNORECASE)
_BLOB = re.compile(r"/v2/image/blobs/(sha256:[0-9a-f]{64})")
_CHALLENGE = 'WWW-Authenticate: Basic realm="hyper"'


@dataclass(slots=True)
class Witness:
    """``manifest``: the digest of what was put, as soon as it was."""

    address: str = ""
    manifest: Digest | None = None
    _login: bytes = field(default_factory=lambda: base64.b64encode(f"hyper:{secrets.token_hex(32)}".encode()))
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTIONS))

    @property
    def reference(self) -> str:
        return f"docker://{self.address}/image:1"

    def render_authfile(self) -> bytes:
        """What lets a client in (containers-auth.json(5))."""
        return json.dumps({"auths": {self.address: {"auth": self._login.decode()}}}).encode()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        connections: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.add(writer)
            try:
                # A client that breaks off or talks nonsense is told nothing: skopeo's end says what went wrong.
                with contextlib.suppress(
                    OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
                ):
                    async with self._places, asyncio.timeout(REQUEST_TIMEOUT_S):
                        writer.write(await self._answer(reader))
                        await writer.drain()
            finally:
                connections.discard(writer)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()
            for writer in list(connections):
                writer.transport.abort()
            await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(1)
        if head == _TLS_HANDSHAKE:  # skopeo tries that first, and waits ten seconds for an answer
            raise ValueError("TLS is not spoken here")
        head += await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        given = _SECRET.search(head)
        if given is None or not hmac.compare_digest(given[1], self._login):
            return _reply("401 Unauthorized", _CHALLENGE)
        if method == "GET" and path == "/v2/":
            return _reply("200 OK")
        if method == "HEAD" and (blob := _BLOB.fullmatch(path)):
            return _reply("200 OK", f"Docker-Content-Digest: {blob[1]}")
        if method == "PUT" and path == "/v2/image/manifests/1" and self.manifest is None:
            length = _LENGTH.search(head)
            if length is not None and int(length[1]) <= MAX_MANIFEST_BYTES:
                self.manifest = digest_of(await reader.readexactly(int(length[1])))
                return _reply("201 Created", f"Docker-Content-Digest: {self.manifest}")
        return _reply("404 Not Found")


def _reply(status: str, *headers: str) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        "Content-Length: 0",
        "Connection: close",
        "Docker-Distribution-Api-Version: registry/2.0",
        *headers,
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
