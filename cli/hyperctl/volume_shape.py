# SPDX-License-Identifier: Apache-2.0
"""Volumes as the listings and `inspect` show them, in Docker's manner."""

from typing import Any

from hyper.v1 import volume_pb2
from hyperctl.render import render_binary_size, render_pairs, render_rfc3339, render_size
from hyperctl.shape import render_ago
from hyperctl.template import OpenMap

VOLUME_HEADERS = {
    "Name": "VOLUME NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Mountpoint": "MOUNTPOINT",
    "Labels": "LABELS",
    "Size": "SIZE",
    "Allocated": "ON DISK",
    "Links": "LINKS",
    "UsedBy": "USED BY",
    "CreatedSince": "CREATED",
}
VOLUME_COLUMNS = ("Driver", "Name", "Size", "Allocated", "UsedBy", "CreatedSince")


def volume_row(volume: volume_pb2.Volume, *, now_s: float) -> dict[str, Any]:
    return {
        "Name": volume.name,
        "Driver": volume.driver,
        "Scope": "local",
        "Mountpoint": volume.path,
        "Labels": render_pairs(volume.labels),
        "Size": render_binary_size(volume.size_bytes) if volume.size_bytes else "-",
        "Allocated": render_size(volume.allocated_bytes),
        "Links": len(volume.users),
        "UsedBy": ",".join(user.container_name for user in volume.users),
        "CreatedSince": render_ago(volume.created_at, now_s),
        "Label": lambda key: volume.labels.get(key, ""),
    }


def volume_document(volume: volume_pb2.Volume) -> dict[str, Any]:
    """What `docker volume inspect` prints, plus who has it. Mountpoint is a disk image, or the
    directory of one that is shared."""
    return {
        "CreatedAt": render_rfc3339(volume.created_at.seconds, volume.created_at.nanos),
        "Driver": volume.driver,
        "Labels": OpenMap(sorted(volume.labels.items())),
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": None,
        "Scope": "local",
        "Anonymous": volume.anonymous,
        "Filesystem": volume.filesystem,
        "Size": volume.size_bytes,
        "UsageData": {"RefCount": len(volume.users), "Size": volume.allocated_bytes},
        "Users": [
            {
                "Id": user.container_id,
                "Name": user.container_name,
                "RW": not user.readonly,
                "Attached": user.attached,
            }
            for user in volume.users
        ],
    }
