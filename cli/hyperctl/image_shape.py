# SPDX-License-Identifier: Apache-2.0
"""Images as Docker shapes them: the rows of `images` and the documents of `inspect`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from hyper.v1 import image_pb2 as pb
from hyperctl.names import familiar_name, shorten_id, split_reference
from hyperctl.render import ellipsis, render_rfc3339, render_size, render_time
from hyperctl.shape import parse_healthcheck, render_ago
from hyperctl.template import OpenMap

NONE = "<none>"
IMAGE_HEADERS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "StoredSize": "STORED SIZE",
    "VirtualSize": "VIRTUAL SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "Containers": "CONTAINERS",
}
IMAGE_COLUMNS = ("Repository", "Tag", "ID", "CreatedSince", "Size")
HISTORY_HEADERS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
HISTORY_COLUMNS = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
CREATED_BY_CELLS = 45
MISSING = "<missing>"
IMAGE_COLUMNS_DIGESTS = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")


def image_rows(image: pb.Image, *, now_s: float, truncate: bool) -> Iterator[dict[str, Any]]:
    """One row a tag; an image without any has one row, by digest if it has that."""
    digests = dict(_split_digest(text) for text in image.digests)
    named = [split_reference(tag)[:2] for tag in image.tags]
    names = named or [(name, NONE) for name in digests] or [(NONE, NONE)]
    for name, tag in names:
        yield {
            "Repository": familiar_name(name),
            "Tag": tag,
            "Digest": digests.get(name, NONE),
            "ID": shorten_id(image.id) if truncate else image.id,
            "CreatedSince": render_ago(image.created_at, now_s) or "N/A",
            "CreatedAt": _local_time(image.created_at),
            "Size": render_size(image.size_bytes),
            "StoredSize": render_size(image.stored_bytes),
            "VirtualSize": render_size(image.size_bytes),
            "SharedSize": "N/A",  # as Docker's: `system df -v` knows
            "UniqueSize": "N/A",
            "Containers": "N/A",
        }


def history_rows(image: pb.Image, *, now_s: float, truncate: bool, human: bool) -> Iterator[dict[str, Any]]:
    """The latest step first. Only the image itself has an id; a layer's size is that of its step."""
    sizes = list(image.layer_bytes)
    made = sum(not entry.empty_layer for entry in image.history)
    steps = []
    for entry in image.history:
        size_bytes = sizes.pop(0) if not entry.empty_layer and made == len(image.layer_bytes) else 0
        steps.append((entry, size_bytes))
    identifier = shorten_id(image.id) if truncate else image.id
    for entry, size_bytes in reversed(steps):
        created_by = entry.created_by.replace("\t", " ")
        created_at = render_rfc3339(entry.created_at.seconds, 0)
        yield {
            "ID": identifier,
            "CreatedAt": created_at,
            "CreatedSince": (render_ago(entry.created_at, now_s) or "N/A") if human else created_at,
            "CreatedBy": ellipsis(created_by, CREATED_BY_CELLS) if truncate else created_by,
            "Size": render_size(size_bytes) if human else str(size_bytes),
            "Comment": entry.comment,
        }
        identifier = MISSING


def image_document(image: pb.Image) -> dict[str, Any]:
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": [familiar_name(tag) for tag in image.tags],
        "RepoDigests": [familiar_name(digest) for digest in image.digests],
        "Parent": "",
        "Comment": image.history[-1].comment if image.history else "",
        "Created": render_rfc3339(image.created_at.seconds, image.created_at.nanos),
        "DockerVersion": "",
        "Author": image.author,
        "Architecture": image.architecture,
        "Variant": image.variant,
        "Os": image.os,
        "Size": image.size_bytes,
        "StoredSize": image.stored_bytes,
        "ManifestDigest": image.manifest_digest,
        "Trust": [_admission_document(admission) for admission in image.admissions],
        "Config": {
            "User": config.user,
            "Env": list(config.env),
            "Entrypoint": list(config.entrypoint) or None,
            "Cmd": list(config.cmd) or None,
            "WorkingDir": config.working_directory,
            "Labels": OpenMap(sorted(config.labels.items())),
            "ExposedPorts": OpenMap((port, {}) for port in config.exposed_ports),
            "Volumes": OpenMap((volume, {}) for volume in config.volumes),
            "StopSignal": config.stop_signal,
            "Healthcheck": parse_healthcheck(config.healthcheck_json),
        },
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "History": [
            {
                "Created": render_rfc3339(entry.created_at.seconds, entry.created_at.nanos),
                "CreatedBy": entry.created_by,
                "Comment": entry.comment,
                "EmptyLayer": entry.empty_layer,
            }
            for entry in image.history
        ],
    }


def _admission_document(admission: pb.Admission) -> dict[str, Any]:
    return {
        "Reference": admission.reference,
        "ManifestDigest": admission.manifest_digest,
        "Scope": admission.scope,
        "Requirements": [
            {"Type": each.kind, "Keys": list(each.keys), "SignedIdentity": each.identity}
            for each in admission.requirements
        ],
        "AdmittedAt": render_rfc3339(admission.admitted_at.seconds, admission.admitted_at.nanos),
    }


def _split_digest(text: str) -> tuple[str, str]:
    name, _, digest = text.partition("@")
    return name, digest


def _local_time(moment: Timestamp) -> str:
    return render_time(datetime.fromtimestamp(moment.seconds, UTC)) if moment.seconds else "N/A"
