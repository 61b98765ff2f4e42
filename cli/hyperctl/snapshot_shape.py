# SPDX-License-Identifier: Apache-2.0
"""Snapshots and templates as the listings and `inspect` show them, in Docker's manner."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from hyper.v1 import snapshot_pb2 as pb
from hyperctl.names import familiar_name, shorten_id
from hyperctl.render import render_binary_size, render_rfc3339, render_size, render_time
from hyperctl.shape import render_ago

SNAPSHOT_HEADERS = {
    "ID": "SNAPSHOT ID",
    "Name": "NAME",
    "Source": "SOURCE",
    "SourceID": "SOURCE ID",
    "Image": "IMAGE",
    "Memory": "MEMORY",
    "Size": "SIZE",
    "VirtualSize": "VIRTUAL SIZE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "LastUsed": "LAST USED",
    "PauseMs": "PAUSE",
}
SNAPSHOT_COLUMNS = ("ID", "Name", "Source", "Image", "Memory", "Size", "CreatedSince")

TEMPLATE_HEADERS = {
    "ID": "TEMPLATE ID",
    "Cpus": "CPUS",
    "Memory": "MEMORY",
    "Layout": "LAYOUT",
    "Accelerator": "ACCELERATOR",
    "Size": "SIZE",
    "VirtualSize": "VIRTUAL SIZE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "LastUsed": "LAST USED",
}
TEMPLATE_COLUMNS = ("ID", "Cpus", "Memory", "Size", "CreatedSince", "LastUsed", "Layout")


def snapshot_row(snapshot: pb.Snapshot, *, now_s: float, truncate: bool) -> dict[str, Any]:
    return {
        **_saved_row(snapshot, now_s=now_s, truncate=truncate),
        "Name": snapshot.name,
        "Source": f"volume {snapshot.volume}" if snapshot.volume else snapshot.source_name,
        "SourceID": shorten_id(snapshot.source_container_id) if truncate else snapshot.source_container_id,
        "Image": familiar_name(snapshot.image),
        "PauseMs": snapshot.pause_ms,
    }


def template_row(template: pb.Snapshot, *, now_s: float, truncate: bool) -> dict[str, Any]:
    return {
        **_saved_row(template, now_s=now_s, truncate=truncate),
        "Cpus": template.compatibility.vcpus,
        "Layout": template.compatibility.layout,
        "Accelerator": template.compatibility.accelerator,
    }


def _saved_row(saved: pb.Snapshot, *, now_s: float, truncate: bool) -> dict[str, Any]:
    """Size is what its files take on the disk: their length counts holes."""
    return {
        "ID": shorten_id(saved.id) if truncate else saved.id,
        "Memory": "" if saved.volume else render_binary_size(saved.compatibility.memory_mib << 20),
        "Size": render_size(saved.allocated_bytes),
        "VirtualSize": render_size(saved.size_bytes),
        "CreatedSince": render_ago(saved.created_at, now_s),
        "CreatedAt": render_time(datetime.fromtimestamp(saved.created_at.seconds, UTC)),
        "LastUsed": render_ago(saved.last_used_at, now_s) or "Never",
    }


def _volume_document(snapshot: pb.Snapshot) -> dict[str, Any]:
    return {
        "Id": snapshot.id,
        "Name": snapshot.name,
        "Created": _time(snapshot.created_at),
        "Volume": snapshot.volume,
        "Filesystem": snapshot.filesystem,
        "Consistency": snapshot.consistency,
        "Size": snapshot.allocated_bytes,
        "VirtualSize": snapshot.size_bytes,
    }


def snapshot_document(snapshot: pb.Snapshot) -> dict[str, Any]:
    if snapshot.volume:
        return _volume_document(snapshot)
    needs = snapshot.compatibility
    return {
        "Id": snapshot.id,
        "Name": snapshot.name,
        "Created": _time(snapshot.created_at),
        "LastUsed": _time(snapshot.last_used_at),
        "Source": {"Id": snapshot.source_container_id, "Name": snapshot.source_name},
        "Image": snapshot.image,
        "ImageId": snapshot.image_id,
        "PauseMs": snapshot.pause_ms,
        "Size": snapshot.allocated_bytes,
        "VirtualSize": snapshot.size_bytes,
        "Compatibility": {
            "QemuVersion": needs.qemu_version,
            "Machine": needs.machine,
            "CpuModel": needs.cpu_model,
            "Accelerator": needs.accelerator,
            "KernelSha256": needs.kernel_sha256,
            "InitramfsSha256": needs.initramfs_sha256,
            "Cmdline": needs.cmdline,
            "VcpuCount": needs.vcpus,
            "MemoryMiB": needs.memory_mib,
            "Layout": needs.layout,
            "Format": needs.format,
        },
        "Files": [
            {"Name": file.name, "Size": file.size_bytes, "Sha256": file.sha256} for file in snapshot.files
        ],
    }


def _time(moment: Timestamp) -> str:
    return render_rfc3339(moment.seconds, moment.nanos)
