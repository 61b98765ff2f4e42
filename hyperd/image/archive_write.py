# SPDX-License-Identifier: Apache-2.0
"""One tar that is an OCI image layout and what `docker load` reads, with every blob in it once.

    oci-layout index.json manifest.json repositories blobs/sha256/HEX ...

The same images make the same bytes: fixed times, fixed order. Docker's schema 2 has no place in a layout that all tools
read, so such a manifest is written as OCI; the config is the same bytes, so the image id is the same.
"""

import contextlib
import hashlib
import json
import sqlite3
import tarfile
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hyperd.errors import HyperError, InvalidError, NotFoundError, UnavailableError
from hyperd.host import files
from hyperd.image import platform as platforms
from hyperd.image import records
from hyperd.image import reference as references
from hyperd.image.assemble import DOCKER_MANIFEST_TYPE, oci_manifest
from hyperd.image.content import Content, digest_of, hex_of
from hyperd.image.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST_TYPE,
    Manifest,
    load_object,
    parse_manifest,
)
from hyperd.image.pull import Parts
from hyperd.image.reference import Named, parse_named
from hyperd.model.image import Digest, Image, ImageId, Platform

CHUNK_BYTES = 1 << 20
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_BLOBS = "blobs/sha256"
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image and the names that it takes along."""

    image_id: ImageId
    manifest_digest: Digest
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """``data``: ready bytes; else it is the blob in the store."""

    name: str
    size_bytes: int
    digest: Digest | None = None
    data: bytes | None = None


def find_wanted(
    connection: sqlite3.Connection, images: Sequence[str], platform: Platform | None = None
) -> list[Wanted]:
    """A name without a tag is all the tags of its repository, as `docker save` has it; an id takes no names along.

    Raises ImageNotFoundError, NotFoundError (here, but not for ``platform``), InvalidError.
    """
    found: dict[ImageId, list[str]] = {}
    for text in images:
        for image_id, name in _find(connection, text):
            if platform is not None:
                _require_platform(records.get_image(connection, image_id), platform, name or text)
            names = found.setdefault(image_id, [])
            if name and name not in names:
                names.append(name)
    return [
        Wanted(each, records.get_image(connection, each).manifest_digest, tuple(sorted(names)))
        for each, names in found.items()
    ]


def _require_platform(image: Image, wanted: Platform, subject: str) -> None:
    """An image here is of one platform: of an index, the one that was pulled."""
    if not platforms.runs(image.platform, wanted):
        raise NotFoundError(
            f"image was found but does not provide the specified platform ({wanted})",
            subject=subject,
            evidence=f"it is for {image.platform}",
            hint=f"`hyper pull --platform {wanted}` gets that one in its place",
        )


def _find(connection: sqlite3.Connection, text: str) -> list[tuple[ImageId, str]]:
    named = _named(text)
    if named is not None and not named.digest and ":" not in text.rpartition("/")[2]:
        rows = connection.execute(
            "SELECT name, image_id FROM image_tag WHERE repository = ? ORDER BY name", (named.repository,)
        ).fetchall()
        if rows:
            return [(ImageId(row["image_id"]), row["name"]) for row in rows]
    image_id = records.find_id(connection, text)
    if named is not None and not named.digest and records.find_named(connection, named) == image_id:
        return [(image_id, str(named))]
    return [(image_id, "")]


def _named(text: str) -> Named | None:
    try:
        return None if references.is_full_id(text) else parse_named(text)
    except HyperError:  # the beginning of an id, or find_id says what is wrong with it
        return None


class Saving:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def save(
        self, images: Sequence[str], platform: Platform | None = None
    ) -> AsyncGenerator[bytes, None]:
        """As ``ImageStore.save``. Chunks are at most 1 MiB."""
        if not images:
            raise InvalidError("no image is named")
        parts = self._parts

        def find(connection: sqlite3.Connection) -> tuple[list[Wanted], set[Digest]]:
            wanted = find_wanted(connection, images, platform)
            return wanted, {each for one in wanted for each in records.digests_of(connection, one.image_id)}

        async with parts.garbage.held(find) as wanted:
            members = await parts.workers.call(lay_out, parts.content, wanted)
            for member in members:
                async for chunk in self._stream(member):
                    yield chunk
            yield bytes(2 * _BLOCK)

    async def _stream(self, member: Member) -> AsyncGenerator[bytes, None]:
        yield header(member)
        if member.data is not None:
            for at in range(0, len(member.data), CHUNK_BYTES):
                yield member.data[at : at + CHUNK_BYTES]
        elif member.digest is not None:
            async for chunk in self._stream_blob(member.digest, member.size_bytes):
                yield chunk
        if member.size_bytes % _BLOCK:
            yield bytes(-member.size_bytes % _BLOCK)

    async def _stream_blob(self, digest: Digest, size: int) -> AsyncGenerator[bytes, None]:
        """Read and hashed on a thread; a damaged blob ends the archive before its end."""
        workers, path = self._parts.workers, self._parts.content.path(digest)
        stack = contextlib.ExitStack()  # has the file even when nobody waits for it any more
        try:
            with files.file_errors(path):
                file = await workers.call_while_wanted(lambda _: stack.enter_context(path.open("rb", 0)))
            hashed, left = hashlib.sha256(), size

            def read() -> bytes:
                with files.file_errors(path):
                    data: bytes = file.read(min(CHUNK_BYTES, left))
                hashed.update(data)
                return data

            while left:
                chunk = await workers.call(read)
                if not chunk:
                    break
                left -= len(chunk)
                yield chunk
            if left or hashed.hexdigest() != hex_of(digest):
                raise _damaged(digest, "its content has changed")
        finally:
            stack.close()


def lay_out(content: Content, wanted: Sequence[Wanted]) -> list[Member]:
    """Blocks. Raises UnavailableError when a blob is not there."""
    entries: list[dict[str, Any]] = []
    archives: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    blobs: dict[Digest, Member] = {}
    for one in wanted:
        raw, manifest = _manifest(content, one.manifest_digest)
        digest = digest_of(raw)
        config = _read(content, Digest(one.image_id), MAX_CONFIG_BYTES)
        for member in (_ready(digest, raw), _ready(Digest(one.image_id), config)):
            blobs.setdefault(_digest(member), member)
        for layer in manifest.layers:
            blobs.setdefault(layer.digest, _stored(content, layer.digest, layer.size_bytes))
        entries += _index_entries(digest, len(raw), load_object(config, MAX_CONFIG_BYTES, "config", ""), one)
        layers = [f"{_BLOBS}/{hex_of(layer.digest)}" for layer in manifest.layers]
        tags = [parse_named(name).familiar for name in one.names]
        archives.append(
            {"Config": f"{_BLOBS}/{hex_of(one.image_id)}", "RepoTags": tags or None, "Layers": layers}
        )
        for tag in tags if manifest.layers else []:
            name, _, version = tag.rpartition(":")
            repositories.setdefault(name, {})[version] = hex_of(manifest.layers[-1].digest)
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": entries}
    return [
        _file("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        _file("index.json", index),
        _file("manifest.json", archives),
        *([_file("repositories", repositories)] if repositories else []),
        Member("blobs/", 0),
        Member(f"{_BLOBS}/", 0),
        *blobs.values(),
    ]


def header(member: Member) -> bytes:
    info = tarfile.TarInfo(member.name.rstrip("/"))
    info.size = member.size_bytes
    info.mode = 0o755 if member.name.endswith("/") else 0o644
    info.type = tarfile.DIRTYPE if member.name.endswith("/") else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT)


def _index_entries(
    digest: Digest, size: int, config: dict[str, Any], one: Wanted
) -> Iterator[dict[str, Any]]:
    platform = {key: config[key] for key in ("architecture", "os", "variant") if config.get(key)}
    entry: dict[str, Any] = {"mediaType": OCI_MANIFEST_TYPE, "digest": digest, "size": size}
    if "os" in platform and "architecture" in platform:
        entry["platform"] = platform
    for name in one.names:
        names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
        yield {**entry, "annotations": names}
    if not one.names:
        yield entry


def _manifest(content: Content, digest: Digest) -> tuple[bytes, Manifest]:
    raw = _read(content, digest, MAX_MANIFEST_BYTES)
    body = load_object(raw, MAX_MANIFEST_BYTES, "manifest", digest)
    if body.get("mediaType") == DOCKER_MANIFEST_TYPE:
        raw = oci_manifest(body)
    manifest = parse_manifest(raw, digest)
    if not isinstance(manifest, Manifest):
        raise _damaged(digest, "it is an index")
    return raw, manifest


def _read(content: Content, digest: Digest, limit: int) -> bytes:
    try:
        return content.read(digest, limit=limit)
    except HyperError as error:
        raise _damaged(digest, str(error)) from error


def _stored(content: Content, digest: Digest, size: int) -> Member:
    if not content.has(digest) or content.size(digest) != size:
        raise _damaged(digest, "it is not there, or not whole")
    return Member(f"{_BLOBS}/{hex_of(digest)}", size, digest)


def _ready(digest: Digest, data: bytes) -> Member:
    return Member(f"{_BLOBS}/{hex_of(digest)}", len(data), digest, data)


def _digest(member: Member) -> Digest:
    return member.digest or Digest("")


def _file(name: str, body: object) -> Member:
    data = json.dumps(body, separators=(",", ":")).encode()
    return Member(name, len(data), None, data)


def _damaged(digest: Digest, why: str) -> UnavailableError:
    return UnavailableError(
        "a stored part of the image is damaged",
        subject=digest,
        evidence=why,
        hint="`hyper pull` the image again",
    )
