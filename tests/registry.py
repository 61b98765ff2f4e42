# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on loopback, and how images made in a test get there."""

import asyncio
import contextlib
import http.client
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from hyperd.host import process
from tests.images import BuiltImage, BuiltIndex

USER, PASSWORD = "hyper", "secret"
HTPASSWD = "hyper:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


@dataclass(frozen=True)
class Registry:
    address: str  # 127.0.0.1:PORT
    root: Path

    async def push(self, built: BuiltImage | BuiltIndex, name: str) -> str:
        """Put the very bytes there; returns the full reference."""
        await asyncio.to_thread(self._push, built, name)
        return f"{self.address}/{name}"

    def blob_path(self, digest: str) -> Path:
        """Where the registry keeps a blob, for tests that damage it."""
        algorithm, _, value = digest.partition(":")
        return self.root / f"docker/registry/v2/blobs/{algorithm}/{value[:2]}/{value}/data"

    def _push(self, built: BuiltImage | BuiltIndex, name: str) -> None:
        repository, _, tag = name.partition(":")
        images = built.children if isinstance(built, BuiltIndex) else (built,)
        for image in images:
            for digest, blob in image.blobs.items():
                location = self._ask("POST", f"/v2/{repository}/blobs/uploads/")
                mark = "&" if "?" in location else "?"
                self._ask("PUT", f"{location}{mark}digest={digest}", blob, "application/octet-stream")
            self._ask(
                "PUT", f"/v2/{repository}/manifests/{image.manifest_digest}", image.manifest, image.media_type
            )
        self._ask("PUT", f"/v2/{repository}/manifests/{tag or 'latest'}", built.manifest, built.media_type)

    def _ask(self, method: str, url: str, body: bytes = b"", media_type: str = "") -> str:
        path = url.removeprefix(f"http://{self.address}")
        connection = http.client.HTTPConnection(self.address, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": media_type} if media_type else {})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status < 300, f"{method} {path}: {answer.status} {said[:500]!r}"
            return answer.headers.get("Location", "")


@contextlib.asynccontextmanager
async def registry(tmp_path: Path, *, locked: bool = False) -> AsyncIterator[Registry]:
    """Debian's docker-registry on a free loopback port, with everything it keeps under ``tmp_path``.

    ``locked``: only for USER with PASSWORD.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    root = tmp_path / "registry"
    root.mkdir(parents=True)
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}\n"
        "validation: {manifests: {urls: {allow: ['^https://']}}}\n"
        f"http: {{addr: '{address}'}}\n"
        + (f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n" if locked else "")
    )
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    log = tmp_path / "registry.log"
    argv = ["sh", "-c", f'exec docker-registry serve "$0" >"{log}" 2>&1', str(config)]
    async with process.spawn(argv) as child:
        async with asyncio.timeout(20):
            while True:
                assert child.returncode is None, log.read_text()
                try:
                    _, writer = await asyncio.open_connection(*address.split(":"))
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)  # a condition with a deadline: the port answers
                else:
                    writer.close()
                    await writer.wait_closed()
                    break
        yield Registry(address, root)
