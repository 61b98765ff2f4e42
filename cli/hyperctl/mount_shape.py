# SPDX-License-Identifier: Apache-2.0
"""What a container mounts, as `ps` and `inspect` show it in Docker's manner."""

from typing import Any

from hyper.v1 import container_pb2
from hyperctl.names import SHORT_ID


def mount_documents(spec: container_pb2.ContainerSpec) -> list[dict[str, Any]]:
    documents = []
    for mount in spec.mounts:
        is_volume = mount.type == container_pb2.MOUNT_TYPE_VOLUME
        document: dict[str, Any] = {"Type": "volume" if is_volume else "bind"}
        if is_volume:
            document["Name"] = mount.source
        document |= {
            "Source": "" if is_volume else mount.source,
            "Destination": mount.destination,
            "Mode": "ro" if mount.readonly else "",
            "RW": not mount.readonly,
            "Propagation": "" if is_volume else "rprivate",
        }
        if is_volume:
            document["Driver"] = mount.driver or "local"
        documents.append(document)
    return documents


def mount_names(spec: container_pb2.ContainerSpec, *, truncate: bool) -> str:
    names = [
        mount.source[:SHORT_ID] if truncate and mount.anonymous else mount.source for mount in spec.mounts
    ]
    return ",".join(names)


def local_volumes(spec: container_pb2.ContainerSpec) -> int:
    return sum(mount.type == container_pb2.MOUNT_TYPE_VOLUME for mount in spec.mounts)
