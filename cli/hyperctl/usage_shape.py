# SPDX-License-Identifier: Apache-2.0
"""Disk usage as `docker system df` shapes it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyper.v1 import container_pb2, image_pb2, system_pb2
from hyperctl.image_shape import IMAGE_HEADERS, NONE, image_rows
from hyperctl.names import shorten_id
from hyperctl.render import render_size
from hyperctl.shape import CONTAINER_HEADERS, container_row

HEADERS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
COLUMNS = ("Type", "TotalCount", "Active", "Size", "Reclaimable")
GROWTH_HEADERS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Size": "SIZE",
    "Allocated": "ALLOCATED",
    "Growth": "CAN GROW",
}
GROWTH_COLUMNS = ("Type", "TotalCount", "Size", "Allocated", "Growth")
VOLUME_HEADERS = {"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}
SAVED_HEADERS = {"ID": "ID", "Name": "NAME", "Size": "SIZE"}
# Kinds of saved machines: a hibernated container's lies with the container, the others are things of their own.
HIBERNATION, TEMPLATE = "hibernation", "template"


@dataclass(frozen=True, slots=True)
class Everything:
    usage: system_pb2.GetDiskUsageResponse
    images: Mapping[str, image_pb2.Image]
    containers: Mapping[str, container_pb2.Container]


@dataclass(frozen=True, slots=True)
class Part:
    key: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[str]
    headers: Mapping[str, str]


def budget_line(usage: system_pb2.GetDiskUsageResponse) -> str:
    """Empty where there is no budget for images."""
    if not usage.HasField("image_budget"):
        return ""
    budget = usage.image_budget
    return (
        f"\nImages: budget {render_size(budget.high_bytes)}, down to {render_size(budget.low_bytes)}; "
        f"removed for it since hyperd started: {budget.removed} ({render_size(budget.removed_bytes)})"
    )


def summary_rows(usage: system_pb2.GetDiskUsageResponse) -> list[dict[str, str]]:
    """What could be had back is what the prune commands would remove, and for the rest what `rm` would."""
    images, containers = usage.images, usage.containers
    unused = sum(image.unique_bytes for image in images if not image.containers)
    hibernated = [saved for saved in usage.snapshots if saved.kind == HIBERNATION]
    asleep = sum(saved.bytes for saved in hibernated)
    sizes = {each.id: each.writable_bytes + each.log_bytes for each in containers}
    stopped = sum(sizes[each.id] for each in containers if not each.running)
    rows = [
        _row(
            "Images",
            len(images),
            sum(bool(image.containers) for image in images),
            usage.layers_bytes + usage.unowned_bytes,
            unused + usage.unowned_bytes,
        ),
        _row(
            "Containers",
            len(containers),
            sum(each.running for each in containers),
            sum(sizes.values()) + asleep,
            stopped,
        ),
    ]
    volumes = usage.volumes
    rows.append(
        _row(
            "Local Volumes",
            len(volumes),
            sum(bool(volume.containers) for volume in volumes),
            sum(volume.bytes for volume in volumes),
            sum(volume.bytes for volume in volumes if not volume.containers),
        )
    )
    for title, templates in (("Snapshots", False), ("Templates", True)):
        saved = [
            each
            for each in usage.snapshots
            if each.kind != HIBERNATION and (each.kind == TEMPLATE) == templates
        ]
        total = sum(each.bytes for each in saved)
        rows.append(_row(title, len(saved), 0, total, total))
    return rows


def _row(title: str, count: int, active: int, size_bytes: int, reclaimable_bytes: int) -> dict[str, str]:
    reclaimable = render_size(reclaimable_bytes, digits=4)
    if size_bytes:
        reclaimable += f" ({100 * reclaimable_bytes // size_bytes}%)"
    return {
        "Type": title,
        "TotalCount": str(count),
        "Active": str(active),
        "Size": render_size(size_bytes, digits=4),
        "Reclaimable": reclaimable,
    }


def growth_rows(usage: system_pb2.GetDiskUsageResponse) -> list[dict[str, str]]:
    """What is sparse: how much of it is there, and how much its guests may still write."""
    disks = [
        (each.writable_size_bytes, each.writable_bytes)
        for each in usage.containers
        if each.writable_size_bytes
    ]
    volumes = [(each.size_bytes, each.bytes) for each in usage.volumes if each.size_bytes]
    return [_growth_row("Writable disks", disks), _growth_row("Local Volumes", volumes)]


def _growth_row(title: str, disks: Sequence[tuple[int, int]]) -> dict[str, str]:
    return {
        "Type": title,
        "TotalCount": str(len(disks)),
        "Size": render_size(sum(size for size, _ in disks), digits=4),
        "Allocated": render_size(sum(allocated for _, allocated in disks), digits=4),
        "Growth": render_size(sum(_growth(disk) for disk in disks), digits=4),
    }


def _growth(disk: tuple[int, int]) -> int:
    size_bytes, allocated_bytes = disk
    return max(0, size_bytes - allocated_bytes)


def describe_commitment(usage: system_pb2.GetDiskUsageResponse) -> str:
    """Whether the host has what it has promised."""
    disks = [(each.writable_size_bytes, each.writable_bytes) for each in usage.containers]
    growth = sum(
        _growth(disk) for disk in (*disks, *((each.size_bytes, each.bytes) for each in usage.volumes))
    )
    free = f"{render_size(usage.free_bytes, digits=4)} free"
    if growth <= usage.free_bytes:
        return f"{free}: enough for all that they may still write"
    return f"{free}: over-committed by {render_size(growth - usage.free_bytes, digits=4)}"


def detailed_rows(everything: Everything, *, now_s: float) -> list[Part]:
    usage = everything.usage
    saved = {
        title: [
            {"ID": shorten_id(each.id), "Name": each.name, "Size": render_size(each.bytes)}
            for each in usage.snapshots
            if each.kind != HIBERNATION and (each.kind == TEMPLATE) == templates
        ]
        for title, templates in (("Snapshots", False), ("Templates", True))
    }
    return [
        Part(
            "Images",
            "Images",
            list(_image_rows(everything, now_s)),
            ("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers"),
            IMAGE_HEADERS,
        ),
        Part(
            "Containers",
            "Containers",
            list(_container_rows(everything, now_s)),
            ("ID", "Image", "Command", "Size", "RunningFor", "Status", "Names"),
            CONTAINER_HEADERS,
        ),
        Part(
            "Volumes",
            "Local Volumes",
            [
                {"Name": volume.name, "Links": str(volume.containers), "Size": render_size(volume.bytes)}
                for volume in usage.volumes
            ],
            ("Name", "Links", "Size"),
            VOLUME_HEADERS,
        ),
        *(Part(title, title, rows, ("ID", "Name", "Size"), SAVED_HEADERS) for title, rows in saved.items()),
    ]


def _image_rows(everything: Everything, now_s: float) -> Iterator[dict[str, Any]]:
    for usage in everything.usage.images:
        image = everything.images.get(usage.id) or image_pb2.Image(id=usage.id, tags=usage.tags)
        named = list(image_rows(image, now_s=now_s, truncate=True))
        yield {
            **named[0],
            "Tag": named[0]["Tag"] or NONE,
            "Size": render_size(usage.shared_bytes + usage.unique_bytes),
            "SharedSize": render_size(usage.shared_bytes),
            "UniqueSize": render_size(usage.unique_bytes),
            "Containers": str(usage.containers),
        }


def _container_rows(everything: Everything, now_s: float) -> Iterator[dict[str, Any]]:
    for usage in everything.usage.containers:
        container = everything.containers.get(usage.id)
        if container is None:  # gone between the two questions
            continue
        row = {
            key: value
            for key, value in container_row(container, now_s=now_s, truncate=True).items()
            if not callable(value)
        }
        yield {**row, "Size": render_size(usage.writable_bytes + usage.log_bytes)}
