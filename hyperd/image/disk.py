# SPDX-License-Identifier: Apache-2.0
"""An image's layers as one read-only disk: a GPT around EROFS files that are shared with other images.

    head.img | layer 1 | layer 2 | ... | tail.img        joined by disk.vmdk, FLAT extents, nothing copied

Layer files are padded to whole MiB (a hole, no block is used), so that every partition begins on one and no extra
extent lies between them: QEMU opens layers + 2 files. Pure functions; UEFI 2.10 chapter 5, VMDK 1.1.
"""

import binascii
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from hyperd.errors import HyperError, UnsupportedError
from hyperd.model.image import Digest, ImageId

SECTOR = 512
ALIGNMENT = 1 << 20
ENTRY_BYTES = 128
MAX_PARTITIONS = 255  # what Linux reads
HEAD_NAME, TAIL_NAME, DESCRIPTOR_NAME = "head.img", "tail.img", "disk.vmdk"

_NAMESPACE = uuid.UUID("5b5d6ec7-2f1c-5c8a-9d52-1d0b3f3a3c11")
_LINUX_FILESYSTEM = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_FORBIDDEN_IN_NAMES = frozenset('":\\\r\n')


@dataclass(frozen=True, slots=True)
class Extent:
    """A layer's file, as the descriptor names it: relative to the descriptor's directory."""

    name: str
    diff_id: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DiskFiles:
    head: bytes
    tail: bytes
    descriptor: bytes


def padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def filesystem_uuid(diff_id: Digest) -> uuid.UUID:
    """The same layer gets the same file, byte for byte, on every host."""
    return uuid.uuid5(_NAMESPACE, f"erofs {diff_id}")


def render_disk(image_id: ImageId, layers: Sequence[Extent]) -> DiskFiles:
    """Raises UnsupportedError for more layers than a guest can see."""
    if len(layers) > MAX_PARTITIONS:
        raise UnsupportedError(
            f"{len(layers)} layers, at most {MAX_PARTITIONS} fit on a disk", subject=image_id
        )
    for layer in layers:
        if layer.size_bytes <= 0 or layer.size_bytes % ALIGNMENT or _FORBIDDEN_IN_NAMES & set(layer.name):
            raise HyperError("a layer's file cannot be an extent", subject=layer.name)
    slots = max(128, -(-len(layers) // 4) * 4)
    table_sectors = slots * ENTRY_BYTES // SECTOR
    starts, position = [], ALIGNMENT // SECTOR
    for layer in layers:
        starts.append(position)
        position += layer.size_bytes // SECTOR
    total = position + table_sectors + 1
    table = b"".join(_entry(image_id, number, layer, starts[number]) for number, layer in enumerate(layers))
    table = table.ljust(slots * ENTRY_BYTES, b"\x00")
    first, last = 2 + table_sectors, position - 1

    def header(here: int, other: int, table_at: int) -> bytes:
        guid = uuid.uuid5(_NAMESPACE, f"disk {image_id}")
        return _header(here, other, (first, max(first, last)), guid, table_at, table)

    head = _protective_mbr(total) + header(1, total - 1, 2) + table
    tail = table + header(total - 1, 1, position)
    return DiskFiles(head.ljust(ALIGNMENT, b"\x00"), tail, _descriptor(image_id, layers, len(tail)))


def _entry(image_id: ImageId, number: int, layer: Extent, start: int) -> bytes:
    return struct.pack(
        "<16s16sQQQ72s",
        _LINUX_FILESYSTEM.bytes_le,
        uuid.uuid5(_NAMESPACE, f"partition {number} of {image_id}").bytes_le,
        start,
        start + layer.size_bytes // SECTOR - 1,
        1 << 60,  # read-only
        f"layer {layer.diff_id[7:19]}".encode("utf-16-le"),
    )


def _header(
    here: int, other: int, usable: tuple[int, int], guid: uuid.UUID, table_at: int, table: bytes
) -> bytes:
    def pack(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x00010000,
            92,
            crc,
            0,
            here,
            other,
            *usable,
            guid.bytes_le,
            table_at,
            len(table) // ENTRY_BYTES,
            ENTRY_BYTES,
            binascii.crc32(table),
        )

    return pack(binascii.crc32(pack(0))).ljust(SECTOR, b"\x00")


def _protective_mbr(total_sectors: int) -> bytes:
    record = struct.pack(
        "<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(total_sectors - 1, 0xFFFFFFFF)
    )
    return b"\x00" * 446 + record + b"\x00" * 48 + b"\x55\xaa"


def _descriptor(image_id: ImageId, layers: Sequence[Extent], tail_bytes: int) -> bytes:
    """QEMU reads an extent twice when an empty line stands before it, so none stands anywhere above them."""
    extents = [
        (HEAD_NAME, ALIGNMENT),
        *((layer.name, layer.size_bytes) for layer in layers),
        (TAIL_NAME, tail_bytes),
    ]
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        f"CID={binascii.crc32(image_id.encode()) & 0xFFFFFFFE:08x}",
        "parentCID=ffffffff",
        'createType="twoGbMaxExtentFlat"',
        *(f'RW {size // SECTOR} FLAT "{name}" 0' for name, size in extents),
        'ddb.virtualHWVersion = "4"',
        'ddb.adapterType = "ide"',
    ]
    return ("\n".join(lines) + "\n").encode()
