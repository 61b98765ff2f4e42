# SPDX-License-Identifier: Apache-2.0
"""Blobs under their digests, in an OCI image layout that other tools read (image-spec image-layout.md).

    ROOT/oci-layout  ROOT/index.json  ROOT/blobs/sha256/HEX

A blob is there whole or not at all: it is written aside, checked, synced and renamed, by us and by skopeo alike.
"""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import InvalidError, NotFoundError
from hyperd.host import files
from hyperd.model.image import Digest

_HEX = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class IndexEntry:
    digest: Digest
    media_type: str
    name: str  # "" for an image without one


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(digest: str) -> str:
    """The file name of a digest that was checked when it was parsed."""
    return digest.removeprefix("sha256:")


class Content:
    """Everything here blocks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared_blob_dir = root / "blobs"  # as skopeo's --dest-shared-blob-dir wants it
        self._blobs = root / "blobs" / "sha256"

    def open(self) -> None:
        files.make_directory(self.shared_blob_dir, 0o700)
        files.make_directory(self._blobs, 0o700)
        for half_made in self._blobs.glob(f"*{files.TEMPORARY_SUFFIX}"):
            half_made.unlink()
        marker = self.root / "oci-layout"
        if not marker.is_file():
            files.write_atomic(marker, b'{"imageLayoutVersion":"1.0.0"}')

    def path(self, digest: Digest) -> Path:
        return self._blobs / hex_of(digest)

    def has(self, digest: Digest) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: Digest) -> int:
        return self.path(digest).stat().st_size

    def read(self, digest: Digest, *, limit: int) -> bytes:
        """Raises NotFoundError, InvalidError (too large, or not what its name says)."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError as error:
            raise NotFoundError("no such blob", subject=digest) from error
        if len(data) > limit:
            raise InvalidError(f"the blob is larger than {limit} bytes", subject=digest)
        if digest_of(data) != digest:
            raise InvalidError("the stored blob is damaged", subject=digest)
        return data

    def put(self, digest: Digest, data: bytes) -> None:
        if digest_of(data) != digest:
            raise InvalidError("the blob does not have its digest", subject=digest)
        if not self.has(digest):
            files.write_atomic(self.path(digest), data, mode=0o644)

    def is_intact(self, digest: Digest) -> bool:
        """Read the whole blob again."""
        hashed = hashlib.sha256()
        try:
            with self.path(digest).open("rb") as file:
                while chunk := file.read(_READ_BYTES):
                    hashed.update(chunk)
        except FileNotFoundError:
            return False
        return hashed.hexdigest() == hex_of(digest)

    def remove(self, digest: Digest) -> None:
        self.path(digest).unlink(missing_ok=True)

    def list_older_than(self, age_s: float) -> list[Digest]:
        return digests_older_than(self._blobs, "", age_s)

    def write_index(self, entries: Sequence[IndexEntry]) -> None:
        manifests = [
            {
                "mediaType": entry.media_type,
                "digest": entry.digest,
                "size": self.size(entry.digest),
                **({"annotations": {"org.opencontainers.image.ref.name": entry.name}} if entry.name else {}),
            }
            for entry in entries
            if self.has(entry.digest)
        ]
        body = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        }
        files.write_atomic(self.root / "index.json", json.dumps(body, indent=1).encode())


def digests_older_than(directory: Path, suffix: str, age_s: float) -> list[Digest]:
    """What in a directory is named HEX + suffix and was last changed that long ago."""
    before = time.time() - age_s
    found = []
    for path in directory.iterdir():
        digest = digest_in(path.name, suffix)
        if digest is not None and path.stat().st_mtime <= before:
            found.append(digest)
    return found


def digest_in(name: str, suffix: str) -> Digest | None:
    """Of a file that is named HEX + suffix."""
    stem = name.removesuffix(suffix)
    return Digest(f"sha256:{stem}") if name.endswith(suffix) and _HEX.fullmatch(stem) else None
