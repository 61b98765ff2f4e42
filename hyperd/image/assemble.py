# SPDX-License-Identifier: Apache-2.0
"""The config and the manifest of an image that is made here. Pure.

The base's config is worked on as the JSON it is, so that fields which nobody here knows stay. Media types are of one
family, the base's: Docker's schema 2 stays that, unless a layer (zstd) has no name in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.image.changes import apply_changes
from hyperd.image.config import ParsedConfig, parse_config
from hyperd.image.content import digest_of
from hyperd.image.manifest import (
    MAX_CONFIG_BYTES,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST_TYPE,
    Manifest,
    load_object,
    parse_manifest,
)
from hyperd.image.overrides import overridden
from hyperd.model.image import Digest, ImageId, NewImage, Platform

DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG_TYPE = {
    OCI_MANIFEST_TYPE: "application/vnd.oci.image.config.v1+json",
    DOCKER_MANIFEST_TYPE: "application/vnd.docker.container.image.v1+json",
}
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_TO_OCI = {_DOCKER_LAYER: _OCI_LAYER, f"{_DOCKER_LAYER}.gzip": f"{_OCI_LAYER}+gzip"}
_TO_DOCKER = {oci: docker for docker, oci in _TO_OCI.items()}


@dataclass(frozen=True, slots=True)
class Base:
    """Both as bytes; the manifest is None for an image that begins here."""

    config: bytes
    manifest: bytes | None


@dataclass(frozen=True, slots=True)
class Blob:
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Assembled:
    config: bytes
    parsed: ParsedConfig
    manifest: bytes
    parsed_manifest: Manifest

    @property
    def image_id(self) -> ImageId:
        return ImageId(self.parsed_manifest.config.digest)

    @property
    def manifest_digest(self) -> Digest:
        return digest_of(self.manifest)


def from_nothing(platform: Platform) -> Base:
    body: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        body["variant"] = platform.variant
    return Base(_encoded({**body, "config": {}}), None)


def assemble(base: Base, diff_id: Digest, blob: Blob, new: NewImage, now: datetime) -> Assembled:
    """``base`` with a gzip layer on top.

    Raises InvalidError (``changes``, too large), UnsupportedError (too many layers).
    """
    return join(base, _config(base, diff_id, new, now), [blob])


def join(base: Base, config: bytes, blobs: Sequence[Blob]) -> Assembled:
    """An image whose config is ready: ``base``'s layers, and gzip layers on top. Raises InvalidError."""
    manifest = _manifest(base, Blob(digest_of(config), len(config)), blobs)
    parsed_manifest = parse_manifest(manifest, "the new image")
    if not isinstance(parsed_manifest, Manifest):
        raise InvalidError("the base's manifest is an index")
    parsed = parse_config(config, "the new image")
    if len(parsed.diff_ids) != len(parsed_manifest.layers):
        raise InvalidError(
            "the base's manifest and config do not agree",
            evidence=f"{len(parsed_manifest.layers)} layers, {len(parsed.diff_ids)} diff_ids",
        )
    return Assembled(config, parsed, manifest, parsed_manifest)


def oci_manifest(body: Mapping[str, Any]) -> bytes:
    """An image manifest of either family, as OCI: the config and the layers, so the image id, stay."""
    return _rendered(OCI_MANIFEST_TYPE, dict(body["config"]), [dict(layer) for layer in body["layers"]])


def _config(base: Base, diff_id: Digest, new: NewImage, now: datetime) -> bytes:
    body = load_object(base.config, MAX_CONFIG_BYTES, "image config", "the base image")
    rootfs = dict(body.get("rootfs") or {})
    diff_ids = [*(rootfs.get("diff_ids") or []), diff_id]
    if len(diff_ids) > MAX_LAYERS:
        raise UnsupportedError(
            f"the image would have {len(diff_ids)} layers, at most {MAX_LAYERS} can be joined",
            hint="`hyper export` and `hyper import` make one layer of them",
        )
    created = now.astimezone(UTC).isoformat().replace("+00:00", "Z")
    entry = {
        "created": created,
        "created_by": new.created_by,
        "author": new.author,
        "comment": new.message,
    }
    body["created"] = created
    if new.author:
        body["author"] = new.author
    body["config"] = apply_changes(overridden(body.get("config") or {}, new.overrides), new.changes)
    body["rootfs"] = {**rootfs, "type": "layers", "diff_ids": diff_ids}
    body["history"] = [
        *(body.get("history") or []),
        {key: value for key, value in entry.items() if value},
    ]
    return _bounded(_encoded(body), MAX_CONFIG_BYTES, "config")


def _manifest(base: Base, config: Blob, blobs: Sequence[Blob]) -> bytes:
    layers: list[dict[str, Any]] = []
    kind = OCI_MANIFEST_TYPE
    if base.manifest is not None:
        body = load_object(base.manifest, MAX_MANIFEST_BYTES, "manifest", "the base image")
        layers = [dict(layer) for layer in body.get("layers") or []]
        if body.get("mediaType") == DOCKER_MANIFEST_TYPE and all(map(_has_docker_type, layers)):
            kind = DOCKER_MANIFEST_TYPE
    top = [
        {"mediaType": f"{_OCI_LAYER}+gzip", "digest": blob.digest, "size": blob.size_bytes} for blob in blobs
    ]
    described = {"digest": config.digest, "size": config.size_bytes}
    return _bounded(_rendered(kind, described, [*layers, *top]), MAX_MANIFEST_BYTES, "manifest")


def _rendered(kind: str, config: Mapping[str, Any], layers: list[dict[str, Any]]) -> bytes:
    names = _TO_OCI if kind == OCI_MANIFEST_TYPE else _TO_DOCKER
    for layer in layers:
        layer["mediaType"] = names.get(layer["mediaType"], layer["mediaType"])
    body = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {**config, "mediaType": _CONFIG_TYPE[kind]},
        "layers": layers,
    }
    return _encoded(body)


def _has_docker_type(layer: Mapping[str, Any]) -> bool:
    return layer["mediaType"] in _TO_OCI or layer["mediaType"] in _TO_DOCKER


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _bounded(data: bytes, limit: int, what: str) -> bytes:
    if len(data) > limit:
        raise InvalidError(f"the new image's {what} would be larger than {limit >> 20} MiB")
    return data
