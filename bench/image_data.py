# SPDX-License-Identifier: Apache-2.0
"""Images to measure with, and a registry on loopback to pull them from.

The same sizes and seeds give the same bytes. Of a layer's files, 256 KiB each, one in four is random bytes, one in four
their hexadecimal digits, two are lines of a small stock: gzip makes some 40 % of it, as of most images.
"""

import hashlib
import io
import json
import random
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import igzip

from bench.measure import CannotMeasureError

FILE_BYTES = 256 << 10
GZIP_LEVEL = 2
LISTENS_S = 20.0
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Layer:
    digest: str
    diff_id: str
    size_bytes: int  # compressed


class _Counted:
    """A file whose bytes are hashed and counted on their way."""

    def __init__(self, file: Any) -> None:
        self.hash, self.size_bytes = hashlib.sha256(), 0
        self._file = file

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size_bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"


class Layout:
    """An OCI image layout that grows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = directory / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._manifests: list[dict[str, Any]] = []

    def path(self, digest: str) -> Path:
        return self.blobs / digest.removeprefix("sha256:")

    def add_layer(self, seed: int, size_bytes: int) -> Layer:
        draft = self.directory / "draft"
        with draft.open("wb") as file:
            packed = _Counted(file)
            with igzip.IGzipFile(  # type: ignore[no-untyped-call]
                fileobj=packed, mode="wb", compresslevel=GZIP_LEVEL, mtime=0
            ) as compressor:
                plain = _Counted(compressor)
                write_tar(plain, seed, size_bytes)
        draft.rename(self.path(packed.digest))
        return Layer(packed.digest, plain.digest, packed.size_bytes)

    def add_image(self, name: str, layers: Sequence[Layer]) -> None:
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        described = [
            {"mediaType": _LAYER_TYPE, "digest": layer.digest, "size": layer.size_bytes} for layer in layers
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": self._put(config, "application/vnd.oci.image.config.v1+json"),
            "layers": described,
        }
        named = {"annotations": {"org.opencontainers.image.ref.name": name}}
        self._manifests.append(self._put(manifest, _MANIFEST_TYPE) | named)
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self.directory / "index.json").write_text(json.dumps(index))

    def _put(self, body: object, media_type: str) -> dict[str, Any]:
        data = json.dumps(body).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def write_tar(sink: Any, seed: int, size_bytes: int) -> None:
    """A directory of files, ``size_bytes`` of them in all."""
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for number, data in enumerate(contents(seed, size_bytes)):
            info = tarfile.TarInfo(f"srv/{seed}/{number // 100}/{number}")
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))


def contents(seed: int, size_bytes: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    stock = [chance.randbytes(50).hex() for _ in range(64)]
    kinds: list[Callable[[], bytes]] = [
        lambda: chance.randbytes(FILE_BYTES),
        lambda: chance.randbytes(FILE_BYTES // 2).hex().encode(),
        lambda: "\n".join(chance.choices(stock, k=FILE_BYTES // 101 + 1)).encode()[:FILE_BYTES],
    ]
    for number in range(max(1, size_bytes // FILE_BYTES)):
        yield kinds[min(number % 4, 2)]()


@contextmanager
def running_registry(directory: Path) -> Iterator[str]:
    """Debian's docker-registry; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    directory.mkdir()
    config = directory / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
        try:
            _wait_listens(address, server)
            yield address
        finally:
            server.terminate()
            server.wait(LISTENS_S)


def _wait_listens(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + LISTENS_S
    host, port = address.split(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise CannotMeasureError("docker-registry does not listen") from error
            time.sleep(0.02)
        else:
            return


def publish(layout: Layout, name: str, target: str) -> None:
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
    subprocess.run([*copy, f"oci:{layout.directory}:{name}", f"docker://{target}"], check=True)
