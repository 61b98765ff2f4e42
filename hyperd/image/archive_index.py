# SPDX-License-Identifier: Apache-2.0
"""Which images are in an archive: by its OCI index, or by Docker's manifest.json where there is none.

An archive of both kinds (ours, Docker's since 25) is read by its index, which has the very manifests, and takes the
names of both. What manifest.json alone describes gets an OCI manifest made here; the config, so the image id, is
the same.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.image import manifest as manifests
from hyperd.image.archive_read import Archive, Entry
from hyperd.image.assemble import oci_manifest
from hyperd.image.config import parse_config
from hyperd.image.content import digest_of
from hyperd.image.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Child,
    Descriptor,
    Index,
    Manifest,
    load_object,
    parse_manifest,
)
from hyperd.image.reference import Named, parse_digest, parse_named
from hyperd.model.image import Digest, ImageId, Platform

MAX_IMAGES = 1000
MAX_NAMES = 1000
_SUBJECT = "archive"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_ATTESTATION = "vnd.docker.reference.type"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """All of it is in the archive. ``blobs``: manifest and config apart."""

    manifest: bytes
    media_type: str
    config: bytes
    diff_ids: tuple[Digest, ...]
    blobs: Mapping[Digest, Entry]
    names: tuple[Named, ...]

    @property
    def manifest_digest(self) -> Digest:
        return digest_of(self.manifest)

    @property
    def image_id(self) -> ImageId:
        return ImageId(digest_of(self.config))

    @property
    def digests(self) -> set[Digest]:
        return {self.manifest_digest, Digest(self.image_id), *self.diff_ids, *self.blobs}


def find_images(archive: Archive, platform: Platform) -> list[ArchivedImage]:
    """In the archive's order. Blocks.

    Raises InvalidError (no such archive, something is missing or damaged), UnsupportedError (platform, Docker before
    1.10, no image).
    """
    described = archive.find("manifest.json")
    listed = [] if described is None else _docker_list(archive.read(described, MAX_MANIFEST_BYTES))
    if archive.find("index.json") is not None:
        found = _by_index(archive, platform, _names_by_config(archive, listed))
    elif described is not None:
        found = [_by_description(archive, item) for item in listed]
    elif archive.find("repositories") is not None:
        raise UnsupportedError(
            "the archive was written by Docker before 1.10", hint="save the image again with a newer one"
        )
    else:
        raise InvalidError(
            "this is not an image archive",
            evidence="it has neither an index.json nor a manifest.json",
            hint="a root file system is imported, not loaded",
        )
    if not found:
        raise InvalidError("there is no image in the archive")
    return found


def _by_index(
    archive: Archive, platform: Platform, more: Mapping[Digest, tuple[Named, ...]]
) -> list[ArchivedImage]:
    index = load_object(
        archive.read(archive.get("index.json"), MAX_MANIFEST_BYTES), MAX_MANIFEST_BYTES, "index", ""
    )
    items = index.get("manifests")
    if (
        not isinstance(items, list)
        or len(items) > MAX_IMAGES
        or not all(isinstance(each, dict) for each in items)
    ):
        raise InvalidError("the archive's index has no sensible list of manifests")
    names: dict[Digest, list[Named]] = {}
    for name, group in _grouped(item for item in items if not _is_attestation(item)).items():
        for digest in _chosen(archive, group, platform):
            kept = names.setdefault(digest, [])
            if name is not None and name not in kept:
                kept.append(name)
    found = []
    for digest, own in names.items():
        raw = archive.read(archive.blob(digest), MAX_MANIFEST_BYTES)
        manifest = parse_manifest(raw, _SUBJECT)
        if not isinstance(manifest, Manifest):
            raise UnsupportedError("the archive's index leads to an index in an index")
        blobs = {layer.digest: _sized(archive.blob(layer.digest), layer) for layer in manifest.layers}
        config = archive.read(archive.blob(manifest.config.digest), MAX_CONFIG_BYTES)
        diff_ids = parse_config(config, _SUBJECT).diff_ids
        every = dict.fromkeys([*own, *more.get(manifest.config.digest, ())])
        found.append(ArchivedImage(raw, manifest.media_type, config, diff_ids, blobs, tuple(every)))
    return found


def _grouped(items: Iterable[dict[str, Any]]) -> dict[Named | None, list[dict[str, Any]]]:
    groups: dict[Named | None, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(_name_of(item), []).append(item)
    return groups


def _name_of(item: Mapping[str, Any]) -> Named | None:
    """A name of ours only when it is written as one: `latest` alone says nothing."""
    annotations = item.get("annotations")
    for key in _NAMES:
        text = annotations.get(key) if isinstance(annotations, dict) else None
        named = _parsed(text) if isinstance(text, str) and ("/" in text or ":" in text) else None
        if named is not None:
            return named
    return None


def _parsed(text: object) -> Named | None:
    try:
        named = parse_named(text) if isinstance(text, str) else None
    except HyperError:
        return None
    return None if named is None or named.digest else named


def _chosen(archive: Archive, group: list[dict[str, Any]], platform: Platform) -> list[Digest]:
    """One name's manifests: one for each platform, or, without a name, images that have nothing in common."""
    found: list[Digest] = []
    children: list[Child] = []
    for item in group:
        digest = parse_digest(item.get("digest"), "digest in the archive's index")
        kind = str(item.get("mediaType"))
        if kind in INDEX_TYPES:
            raw = archive.read(archive.blob(digest), MAX_MANIFEST_BYTES)
            nested = parse_manifest(raw, _SUBJECT)
            if not isinstance(nested, Index):
                raise InvalidError("the archive calls an image an index", evidence=digest)
            found.append(manifests.choose(nested, platform, _SUBJECT).digest)
        elif kind in MANIFEST_TYPES:
            children.append(Child(Descriptor(digest, 0, kind), _platform_of(item)))
    if len(children) > 1 and len({child.platform for child in children}) == len(children):
        found.append(manifests.choose(Index("", tuple(children)), platform, _SUBJECT).digest)
    else:
        found += [child.descriptor.digest for child in children]
    return found


def _platform_of(item: Mapping[str, Any]) -> Platform:
    said = item.get("platform")
    said = said if isinstance(said, dict) else {}
    return Platform(*(str(said.get(key) or "")[:100] for key in ("os", "architecture", "variant")))


def _is_attestation(item: Mapping[str, Any]) -> bool:
    annotations = item.get("annotations")
    return _platform_of(item).os == "unknown" or (
        isinstance(annotations, dict) and _ATTESTATION in annotations
    )


def _sized(entry: Entry, layer: Descriptor) -> Entry:
    if entry.size_bytes != layer.size_bytes:
        raise InvalidError(
            "a layer in the archive has another size than its manifest says", evidence=layer.digest
        )
    return entry


def _docker_list(raw: bytes) -> list[dict[str, Any]]:
    try:
        items = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidError("the archive's manifest.json is not JSON", evidence=str(error)[:200]) from error
    if (
        not isinstance(items, list)
        or len(items) > MAX_IMAGES
        or not all(isinstance(each, dict) for each in items)
    ):
        raise InvalidError("the archive's manifest.json is not a sensible list of images")
    return items


def _names_by_config(archive: Archive, listed: list[dict[str, Any]]) -> dict[Digest, tuple[Named, ...]]:
    found: dict[Digest, tuple[Named, ...]] = {}
    for item in listed:
        config = archive.get(item.get("Config")).digest
        found[config] = (*found.get(config, ()), *_repo_tags(item))
    return found


def _repo_tags(item: Mapping[str, Any]) -> list[Named]:
    tags = item.get("RepoTags") or []
    if not isinstance(tags, list) or len(tags) > MAX_NAMES:
        raise InvalidError("the archive's manifest.json has no sensible RepoTags")
    return [named for named in map(_parsed, tags) if named is not None]


def _by_description(archive: Archive, item: Mapping[str, Any]) -> ArchivedImage:
    config = archive.read(archive.get(item.get("Config")), MAX_CONFIG_BYTES)
    diff_ids = parse_config(config, _SUBJECT).diff_ids
    said = item.get("Layers") or []
    if not isinstance(said, list) or len(said) != len(diff_ids):
        raise InvalidError(
            "the archive's manifest.json does not fit the image's config",
            evidence=f"{len(diff_ids)} diff_ids",
        )
    layers = [archive.get(name) for name in said]
    body = {
        "config": {"digest": digest_of(config), "size": len(config)},
        "layers": [
            {"mediaType": _layer_type(layer), "digest": layer.digest, "size": layer.size_bytes}
            for layer in layers
        ],
    }
    manifest = oci_manifest(body)
    blobs = {layer.digest: layer for layer in layers}
    names = tuple(dict.fromkeys(_repo_tags(item)))
    return ArchivedImage(manifest, manifests.OCI_MANIFEST_TYPE, config, diff_ids, blobs, names)


def _layer_type(layer: Entry) -> str:
    if layer.magic.startswith(b"\x1f\x8b"):
        return f"{_OCI_LAYER}+gzip"
    return f"{_OCI_LAYER}+zstd" if layer.magic.startswith(b"\x28\xb5\x2f\xfd") else _OCI_LAYER
