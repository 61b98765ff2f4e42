# SPDX-License-Identifier: Apache-2.0
"""One GET of a registry's API: bounded, with a deadline for all of it. What else registries are asked is skopeo's.

HTTP/1.1 without keep-alive. TLS with the host's certificates; through `https_proxy`, unless `no_proxy` says otherwise.
"""

import asyncio
import base64
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote, urljoin, urlsplit

from hyperd.errors import UnavailableError
from hyperd.host.workers import Workers
from hyperd.model.image import Credentials

ANSWER_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 8 << 20
MAX_REDIRECTS = 5
_MAX_LINE_BYTES = 64 << 10  # and of all of a head
_REDIRECTS = {301, 302, 303, 307, 308}
# What one gets who speaks TLS to a server that does not.
_NO_TLS = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)


@dataclass(frozen=True, slots=True)
class Asked:
    host: str  # with its port, where that is not the scheme's
    path: str
    credentials: Credentials | None = None
    insecure: bool = False  # any certificate, and plain http where there is no TLS
    scheme: str = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


async def fetch(asked: Asked, workers: Workers) -> Answer:
    """Whatever status the answer has, redirects followed. ``workers`` read certificates. Raises UnavailableError."""
    limit = asyncio.timeout(ANSWER_TIMEOUT_S)
    try:
        async with limit:
            answer = await _fetch_either(asked, workers)
            for _ in range(MAX_REDIRECTS):
                if answer.status not in _REDIRECTS or "location" not in answer.headers:
                    break
                asked = _redirected(asked, answer.headers["location"])
                answer = await _fetch_either(asked, workers)
            return answer
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
        # The kernel's own ETIMEDOUT, of a host that does not answer, is a TimeoutError too.
        why = f"no whole answer after {ANSWER_TIMEOUT_S:g} s" if limit.expired() else str(error)
        raise _unreachable(asked, why) from error


async def _fetch_either(asked: Asked, workers: Workers) -> Answer:
    try:
        return await _fetch(asked, workers)
    except _NO_TLS:
        if not asked.insecure or asked.scheme == "http":
            raise
    return await _fetch(replace(asked, scheme="http"), workers)


def _redirected(asked: Asked, location: str) -> Asked:
    """A secret is for the host that it was given for, and TLS is not given up."""
    target = urlsplit(urljoin(asked.url, location))
    if target.scheme not in ("https", "http") or (target.scheme == "http" and not asked.insecure):
        raise ValueError(f"it redirects to {location[:200]!r}")
    same = target.netloc == asked.host
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    return Asked(target.netloc, path, asked.credentials if same else None, asked.insecure, target.scheme)


async def _fetch(asked: Asked, workers: Workers) -> Answer:
    reader, writer = await _connect(asked, workers)
    try:
        writer.write(_request(asked))
        await writer.drain()
        status, headers = await _read_head(reader)
        return Answer(status, headers, await _read_body(reader, headers))
    finally:
        writer.transport.abort()


async def _connect(asked: Asked, workers: Workers) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    target = urlsplit(f"{asked.scheme}://{asked.host}")
    host, port = target.hostname or "", target.port or {"https": 443, "http": 80}[asked.scheme]
    if asked.scheme == "http":
        return await asyncio.open_connection(host, port, limit=_MAX_LINE_BYTES)
    context = await workers.call(ssl.create_default_context)  # some hundred certificates
    if asked.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https", "")
    if not proxy or asked.insecure:
        return await asyncio.open_connection(host, port, ssl=context, limit=_MAX_LINE_BYTES)
    between = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    reader, writer = await asyncio.open_connection(
        between.hostname, between.port or 80, limit=_MAX_LINE_BYTES
    )
    try:
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n".encode())
        if between.username is not None:
            user, password = unquote(between.username), unquote(between.password or "")
            writer.write(f"Proxy-Authorization: {_basic(user, password)}\r\n".encode())
        writer.write(b"\r\n")
        _require_tunnel((await _read_head(reader))[0], between.hostname)
        await writer.start_tls(context, server_hostname=host)
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


def _require_tunnel(status: int, proxy: str | None) -> None:
    if status != 200:
        raise ValueError(f"the proxy {proxy} answers {status}")


def _request(asked: Asked) -> bytes:
    lines = [
        f"GET {asked.path} HTTP/1.1",
        f"Host: {asked.host}",
        "Accept: application/json",
        "Connection: close",
    ]
    given = asked.credentials
    if given is not None and given.username:
        lines.append(f"Authorization: {_basic(given.username, given.password)}")
    return ("\r\n".join([*lines, "User-Agent: hyper", "", ""])).encode("ascii")


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ValueError("it does not speak HTTP")
    fields = (line.partition(":") for line in lines)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in fields}


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    body = bytearray()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\n")).partition(b";")[0], 16):
            _require_bounded(len(body) + size)
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        return bytes(body)
    if "content-length" in headers:
        size = int(headers["content-length"])
        _require_bounded(size)
        return await reader.readexactly(size)
    while data := await reader.read(_MAX_LINE_BYTES):
        body += data
        _require_bounded(len(body))
    return bytes(body)


def _require_bounded(size: int) -> None:
    if not 0 <= size <= MAX_ANSWER_BYTES:
        raise ValueError(f"its answer is larger than {MAX_ANSWER_BYTES >> 20} MiB")


def _unreachable(asked: Asked, why: str) -> UnavailableError:
    if "certificate" in why.lower():
        return UnavailableError(
            "the registry has no certificate that this host trusts",
            subject=asked.host,
            evidence=why[:300],
            hint="--tls-insecure allows plain http and unknown certificates",
        )
    return UnavailableError("the registry does not answer a search", subject=asked.host, evidence=why[:300])
