# SPDX-License-Identifier: Apache-2.0
"""Searching real and scripted registries on loopback."""

import asyncio
import contextlib
import json
import ssl
import subprocess

import pytest

from hyperd.errors import DeniedError, InvalidError, UnavailableError, UnsupportedError
from hyperd.image import search as searches
from hyperd.image import web
from hyperd.model.image import Credentials, FoundImage
from tests import images
from tests.contract.image.troubled import STALL, answer, troubled
from tests.images import file

RESULTS = [
    {
        "name": "busybox",
        "description": "Small",
        "star_count": 3000,
        "is_official": True,
        "is_automated": False,
    },
    {"name": "user/busybox", "star_count": -1, "is_official": "yes", "description": None},
    {"name": ""},
    {"name": ["busybox"]},
    "busybox",
    {"name": "other/busybox", "star_count": 10, "is_automated": True},
]


def listed(results) -> bytes:
    return answer("200 OK", "Content-Type: application/json", body=json.dumps({"results": results}).encode())


async def test_what_a_registry_finds_is_read_with_care(store):
    asked = []

    def decide(request, _):
        asked.append(request.path)
        return listed(RESULTS)

    async with troubled("", decide) as registry:
        found = await store.search(f"{registry.address}/busy box&x", limit=5)
        assert found == [
            FoundImage(f"{registry.address}/busybox", "Small", 3000, is_official=True),
            FoundImage(f"{registry.address}/user/busybox"),
        ]
        assert asked == ["/v1/search?q=busy%20box%26x&n=5"]
        assert len(await store.search(f"{registry.address}/busybox")) == 3


async def test_a_registry_without_a_search_is_looked_through(hub, store):
    for name in ("app/one:1", "app/two:1", "other:1"):
        await hub.push(images.build([[file("a")]]), name)
    found = await store.search(f"{hub.address}/app")
    assert [image.name for image in found] == [f"{hub.address}/app/one", f"{hub.address}/app/two"]
    assert [image.name for image in await store.search(f"{hub.address}/o", limit=1)] == [
        f"{hub.address}/app/one"
    ]
    assert await store.search(f"{hub.address}/nothing") == []


async def test_a_catalog_is_read_page_by_page(store):
    def decide(request, _):
        if not request.path.startswith("/v2/_catalog"):
            return answer("404 Not Found")
        last = int(request.path.partition("last=")[2] or 0)
        link = f'Link: <http://elsewhere.invalid/v2/_catalog?n=1000&last={last + 1}>; rel="next"'
        return answer("200 OK", link, body=json.dumps({"repositories": [f"app{last}", None]}).encode())

    async with troubled("", decide) as registry:
        found = await store.search(f"{registry.address}/app", limit=3)
        assert [image.name for image in found] == [f"{registry.address}/app{number}" for number in range(3)]
        assert await store.search(f"{registry.address}/none") == []
        assert len(registry.seen) == 4 + 1 + searches.MAX_PAGES


async def test_a_registry_that_cannot_be_searched_says_so(store):
    async with troubled("", lambda *_: answer("404 Not Found")) as registry:
        with pytest.raises(UnsupportedError, match="cannot be searched") as caught:
            await store.search(f"{registry.address}/app")
        assert caught.value.subject == registry.address


async def test_a_login_is_sent_to_the_registry_and_no_further(store):
    heads = []

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n") if (await reader.readexactly(1)) == b"G" else b""
        if head:
            heads.append(head)
            away = f"Location: http://localhost:{port}/v1/search?q=moved"
            writer.write(answer("302 Found", away) if b"q=moved" not in head else listed(RESULTS[:1]))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await store.search(f"127.0.0.1:{port}/x", credentials=Credentials("me", "secret"))
        assert len(found) == 1
    assert [b"Authorization: Basic bWU6c2VjcmV0" in head for head in heads] == [True, False]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer("401 Unauthorized"), DeniedError),
        (answer("429 Too Many Requests"), UnavailableError),
        (answer("500 Internal Server Error", body=b"<html>"), UnavailableError),
        (answer("200 OK", body=b"\x00garbage"), UnavailableError),
        (answer("200 OK", body=b"[" * 100_000), UnavailableError),
        (answer("200 OK", body=b'{"results": {}}'), UnavailableError),
        (answer("302 Found", "Location: /v1/search?round"), UnavailableError),
        (answer("302 Found", "Location: file:///etc/passwd"), UnavailableError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n", UnavailableError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", UnavailableError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", UnavailableError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", UnavailableError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", UnavailableError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, UnavailableError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", UnavailableError),
        (b"", UnavailableError),
    ],
)
async def test_a_troubled_registry_ends_in_a_clear_error(store, reply, kind):
    async with troubled("", lambda *_: reply) as registry:
        with pytest.raises(kind) as caught:
            await store.search(f"{registry.address}/app")
        assert caught.value.subject.split(":")[0] == "127.0.0.1"


async def test_a_registry_that_stands_still_is_given_up(store, monkeypatch):
    monkeypatch.setattr(web, "ANSWER_TIMEOUT_S", 0.2)
    async with troubled("", lambda *_: STALL) as registry:
        with pytest.raises(UnavailableError, match="does not answer"):
            await store.search(f"{registry.address}/app")


async def test_an_answer_in_chunks_is_read(store):
    body = json.dumps({"results": RESULTS[:1]}).encode()
    parts = b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
    async with troubled("", lambda *_: reply) as registry:
        assert len(await store.search(f"{registry.address}/app")) == 1


@pytest.mark.parametrize(
    ("term", "limit"), [("", 25), ("https://x.y/z", 25), ("a\nb", 25), ("a", 0), ("a", 101), ("a" * 300, 25)]
)
async def test_what_cannot_be_asked_is_refused(store, term, limit):
    with pytest.raises(InvalidError):
        await store.search(term, limit=limit)


async def test_a_registry_that_is_not_there_is_said(store):
    with pytest.raises(UnavailableError, match="does not answer"):
        await store.search("127.0.0.1:1/app")
    with pytest.raises(UnavailableError, match="does not answer"):
        await store.search("alpine")  # Docker Hub, from where there is no network


@pytest.fixture
def certificate(tmp_path):
    """Of registry.test, self-signed; with its key in one file."""
    key, own = tmp_path / "key.pem", tmp_path / "cert.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=registry.test", "-addext", "subjectAltName=DNS:registry.test"]
    argv = ["openssl", "req", *kind, *name, "-keyout", key, "-out", own]
    subprocess.run(argv, check=True, capture_output=True)
    return own, key


@contextlib.asynccontextmanager
async def secured(certificate):
    """A registry that speaks only TLS; yields its port."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(listed(RESULTS[:1]))
        await writer.drain()
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_certificate_is_looked_at_and_a_proxy_used(store, certificate, monkeypatch):
    asked = []

    async def between(reader, writer):
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        far, towards = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def move(source, target):
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
                target.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(move(reader, towards))
            tasks.create_task(move(far, writer))

    async with secured(certificate) as port, await asyncio.start_server(between, "127.0.0.1", 0) as proxy:
        place = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("https_proxy", f"http://me:p%40ss@127.0.0.1:{place}")
        with pytest.raises(UnavailableError, match="no certificate that this host trusts"):
            await store.search("registry.test/app")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert [image.name for image in await store.search("registry.test/app")] == ["registry.test/busybox"]
    assert {head.splitlines()[0] for head in asked} == {"CONNECT registry.test:443 HTTP/1.1"}
    assert all("Proxy-Authorization: Basic bWU6cEBzcw==" in head for head in asked)


async def test_any_certificate_will_do_where_that_is_said(store, certificate):
    async with secured(certificate) as port:
        assert len(await store.search(f"127.0.0.1:{port}/app", tls_insecure=True)) == 1
