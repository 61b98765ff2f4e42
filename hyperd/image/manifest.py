# SPDX-License-Identifier: Apache-2.0
"""Manifests, indexes and configs from anywhere, made into values that the rest of the room can trust.

OCI image-spec 1.1 (manifest.md, image-index.md, config.md) and Docker's schema 2. Every size is bounded, every
digest checked for form, and what cannot be run is refused here, before a byte of a layer is fetched.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.image import platform as platforms
from hyperd.image.reference import parse_digest
from hyperd.model.image import Digest, Platform, RawManifest

MAX_MANIFEST_BYTES = 4 << 20  # what registries accept
MAX_CONFIG_BYTES = 8 << 20
MAX_CHILDREN = 1000
MAX_LAYERS = 250  # the guest kernel reads at most 255 partitions of a disk
MAX_BLOB_BYTES = 1 << 40

MAX_TYPE_LENGTH = 255

OCI_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
INDEX_TYPES = frozenset({OCI_INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json"})
SCHEMA_1_TYPE = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_TYPES = frozenset({OCI_MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"})
CONFIG_TYPES = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
_LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.v1\.tar(?:\+gzip|\+zstd)?|docker\.image\.rootfs\.diff\.tar(?:\.gzip)?)"
)
_ATTESTATION = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class Descriptor:
    digest: Digest
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Manifest:
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]  # lowest first


@dataclass(frozen=True, slots=True)
class Child:
    descriptor: Descriptor
    platform: Platform


@dataclass(frozen=True, slots=True)
class Index:
    media_type: str
    children: tuple[Child, ...]


def parse_manifest(raw: bytes, subject: str) -> Manifest | Index:
    """Raises InvalidError (malformed), UnsupportedError (foreign layers, schema 1, not an image)."""
    body = load_object(raw, MAX_MANIFEST_BYTES, "manifest", subject)
    try:
        media_type = _media_type_of(body)
        if media_type in INDEX_TYPES:
            return _parse_index(body, media_type)
        return _parse_image_manifest(body, media_type)
    except HyperError as error:
        error.subject = error.subject or subject
        raise


def choose(index: Index, wanted: Platform, subject: str) -> Descriptor:
    """The child to run. Raises UnsupportedError naming what is offered and what is wanted."""
    fitting = [child for child in index.children if platforms.runs(child.platform, wanted)]
    if not fitting:
        offered = ", ".join(sorted({str(child.platform) for child in index.children})) or "nothing"
        raise wrong_platform(offered, wanted, subject)
    return min(fitting, key=lambda child: platforms.preference(child.platform, wanted)).descriptor


def described(raw: bytes, subject: str) -> RawManifest:
    """Any manifest, of an artifact too, by what it says of itself. Raises InvalidError."""
    body = load_object(raw, MAX_MANIFEST_BYTES, "manifest", subject)
    said = body.get("mediaType")
    if not isinstance(said, str) or not said or len(said) > MAX_TYPE_LENGTH:
        if body.get("schemaVersion") == 1:
            said = SCHEMA_1_TYPE
        else:
            said = OCI_INDEX_TYPE if "manifests" in body else OCI_MANIFEST_TYPE
    return RawManifest(raw, said, Digest(f"sha256:{hashlib.sha256(raw).hexdigest()}"))


def wrong_platform(offered: str, wanted: Platform, subject: str) -> UnsupportedError:
    return UnsupportedError(
        f"the image is for {offered}, wanted is {wanted}",
        subject=subject,
        hint="an image runs only on the architecture that it was built for",
    )


def load_object(raw: bytes, limit: int, what: str, subject: str) -> dict[str, Any]:
    """Bounded JSON whose top is an object. Raises InvalidError."""
    if len(raw) > limit:
        raise InvalidError(f"the {what} is larger than {limit >> 20} MiB", subject=subject)
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"the {what} is not JSON", subject=subject, evidence=str(error)[:200]) from error
    if not isinstance(body, dict):
        raise InvalidError(f"the {what} is not a JSON object", subject=subject)
    return body


def _media_type_of(body: Mapping[str, Any]) -> str:
    """Absent media types are told by shape; a document of two shapes at once is refused (CVE-2021-41190)."""
    if body.get("schemaVersion") == 1:
        raise UnsupportedError(
            "the manifest has Docker's schema 1", hint="push the image again with a tool of this decade"
        )
    if body.get("schemaVersion") != 2:
        raise InvalidError("the manifest's schemaVersion is not 2")
    said = body.get("mediaType", "")
    many, one = "manifests" in body, "config" in body or "layers" in body
    if many and one:
        raise InvalidError("the manifest is an index and an image at once")
    if not said:
        said = OCI_INDEX_TYPE if many else OCI_MANIFEST_TYPE
    if not isinstance(said, str) or said not in (INDEX_TYPES if many else MANIFEST_TYPES):
        raise UnsupportedError("the manifest is of an unknown kind", evidence=repr(said)[:200])
    return said


def _parse_index(body: Mapping[str, Any], media_type: str) -> Index:
    children = []
    for item in _list(body, "manifests", MAX_CHILDREN):
        descriptor = _parse_descriptor(item, "manifest in the index")
        annotations = item.get("annotations")
        if isinstance(annotations, dict) and _ATTESTATION in annotations:
            continue
        if descriptor.media_type not in MANIFEST_TYPES or descriptor.size_bytes > MAX_MANIFEST_BYTES:
            continue  # an index of indexes, an artifact
        offered = item.get("platform") or {}
        if not isinstance(offered, dict):
            raise InvalidError("a platform in the index is not an object")
        found = Platform(_text(offered, "os"), _text(offered, "architecture"), _text(offered, "variant"))
        if found.os != "unknown":
            children.append(Child(descriptor, found))
    return Index(media_type, tuple(children))


def _parse_image_manifest(body: Mapping[str, Any], media_type: str) -> Manifest:
    config = _parse_descriptor(body.get("config"), "config")
    if config.media_type not in CONFIG_TYPES:
        raise UnsupportedError("this is an artifact, not a container image", evidence=config.media_type[:200])
    if config.size_bytes > MAX_CONFIG_BYTES:
        raise InvalidError(f"the image config is larger than {MAX_CONFIG_BYTES >> 20} MiB")
    layers = tuple(_parse_layer(item) for item in _list(body, "layers", 1 << 16))
    if len(layers) > MAX_LAYERS:
        raise UnsupportedError(f"the image has {len(layers)} layers, at most {MAX_LAYERS} can be joined")
    return Manifest(media_type, config, layers)


def _parse_layer(item: object) -> Descriptor:
    descriptor = _parse_descriptor(item, "layer")
    foreign = "foreign" in descriptor.media_type or "nondistributable" in descriptor.media_type
    if foreign or (isinstance(item, dict) and item.get("urls")):
        raise UnsupportedError(
            "the image has a foreign layer, kept outside of its registry", evidence=descriptor.digest
        )
    if not _LAYER_TYPE.fullmatch(descriptor.media_type):
        raise UnsupportedError(
            "the image has a layer of an unknown kind", evidence=descriptor.media_type[:200]
        )
    return descriptor


def _parse_descriptor(item: object, what: str) -> Descriptor:
    if not isinstance(item, dict):
        raise InvalidError(f"the {what} is not an object")
    size = item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB_BYTES:
        raise InvalidError(f"the {what} has no sensible size", evidence=repr(size)[:100])
    return Descriptor(parse_digest(item.get("digest"), f"{what}'s digest"), size, _text(item, "mediaType"))


def _list(body: Mapping[str, Any], key: str, limit: int) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list):
        raise InvalidError(f"the manifest has no list of {key}")
    if len(value) > limit:
        raise InvalidError(f"the manifest lists more than {limit} {key}")
    return value


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key) or ""
    if not isinstance(value, str) or len(value) > 1000:
        raise InvalidError(f"{key} is not a text", evidence=repr(value)[:100])
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
