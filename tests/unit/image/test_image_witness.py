# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import json

import pytest

from hyperd.image import witness as subject
from hyperd.image.content import digest_of
from hyperd.image.witness import Witness


async def ask(witness: Witness, head: str, body: bytes = b"", *, login: str | None = None) -> str:
    """The status line; "" when the connection just ends."""
    if login is None:
        login = json.loads(witness.render_authfile())["auths"][witness.address]["auth"]
    reader, writer = await asyncio.open_connection(*witness.address.split(":"))
    writer.write(
        f"{head} HTTP/1.1\r\nAuthorization: Basic {login}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    try:
        return (await reader.read(-1)).decode().partition("\r\n")[0].removeprefix("HTTP/1.1 ")
    finally:
        writer.close()


async def test_it_has_every_blob_and_sees_one_manifest():
    witness = Witness()
    async with witness.listening():
        assert await ask(witness, "GET /v2/") == "200 OK"
        assert await ask(witness, f"HEAD /v2/image/blobs/sha256:{'0' * 64}") == "200 OK"
        assert witness.manifest is None
        assert await ask(witness, "PUT /v2/image/manifests/1", b"first") == "201 Created"
        assert await ask(witness, "PUT /v2/image/manifests/1", b"second") == "404 Not Found"
    assert witness.manifest == digest_of(b"first")


@pytest.mark.parametrize("login", ["", "AAAA", "eA=="])
async def test_nobody_else_is_let_in(login):
    witness, other = Witness(), Witness()
    theirs = json.loads(other.render_authfile())["auths"][""]["auth"]
    async with witness.listening():
        for wrong in (login, theirs):
            assert await ask(witness, "PUT /v2/image/manifests/1", b"x", login=wrong) == "401 Unauthorized"
            assert await ask(witness, "GET /v2/", login=wrong) == "401 Unauthorized"
    assert witness.manifest is None


@pytest.mark.parametrize(
    "head",
    [
        "PUT /v2/image/manifests/2",
        "PUT /v2/other/manifests/1",
        "POST /v2/image/blobs/uploads/",
        "GET /v2/image/manifests/1",
        f"HEAD /v2/image/blobs/sha256:{'0' * 63}",
    ],
)
async def test_it_knows_nothing_else(head):
    witness = Witness()
    async with witness.listening():
        assert await ask(witness, head, b"x") == "404 Not Found"
    assert witness.manifest is None


async def test_a_manifest_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(subject, "MAX_MANIFEST_BYTES", 3)
    witness = Witness()
    async with witness.listening():
        assert await ask(witness, "PUT /v2/image/manifests/1", b"1234") == "404 Not Found"
        assert await ask(witness, "PUT /v2/image/manifests/1", b"123") == "201 Created"


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01 a TLS handshake", b"nonsense\r\n\r\n", b"\xff \xff \xff\r\n\r\n", b"a" * 100_000]
)
async def test_nonsense_ends_the_connection_at_once(said):
    witness = Witness()
    async with witness.listening():
        reader, writer = await asyncio.open_connection(*witness.address.split(":"))
        writer.write(said)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):  # it was not read to its end
                assert await reader.read(-1) == b""
        writer.close()
        assert await ask(witness, "GET /v2/") == "200 OK"
