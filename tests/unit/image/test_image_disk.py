# SPDX-License-Identifier: Apache-2.0
import binascii
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.errors import HyperError, UnsupportedError
from hyperd.image.disk import ALIGNMENT, SECTOR, DiskFiles, Extent, filesystem_uuid, padded, render_disk
from hyperd.image.disks import EMPTY_LAYER, EMPTY_TAR
from hyperd.model.image import Digest, ImageId
from tests.images import digest_of

IMAGE = ImageId("sha256:" + "c" * 64)


def extents(sizes):
    return [
        Extent(f"../../layers/{number:064x}.erofs", Digest(f"sha256:{number:064x}"), mib << 20)
        for number, mib in enumerate(sizes)
    ]


@dataclass
class Joined:
    """A disk whose layers are not there: nobody looks into them."""

    files: DiskFiles
    layers: list[Extent]

    @property
    def sectors(self) -> int:
        between = sum(layer.size_bytes for layer in self.layers)
        return (len(self.files.head) + between + len(self.files.tail)) // SECTOR

    def read(self, sector: int, size: int) -> bytes:
        tail_at = self.sectors - len(self.files.tail) // SECTOR
        part, start = (self.files.tail, sector - tail_at) if sector >= tail_at else (self.files.head, sector)
        data = part[start * SECTOR :][:size]
        assert len(data) == size
        return data

    def gpt(self, header_sector: int):
        """A reader of its own, after UEFI 2.10 tables 5-5 and 5-6."""
        raw = self.read(header_sector, 92)
        fields = struct.unpack("<8sIIIIQQQQ16sQIII", raw)
        (
            signature,
            revision,
            size,
            crc,
            zero,
            here,
            other,
            first,
            last,
            _,
            table_at,
            slots,
            entry,
            table_crc,
        ) = fields
        assert (signature, revision, size, zero, here, entry) == (
            b"EFI PART",
            0x10000,
            92,
            0,
            header_sector,
            128,
        )
        assert crc == binascii.crc32(raw[:16] + bytes(4) + raw[20:])
        table = self.read(table_at, slots * 128)
        assert table_crc == binascii.crc32(table)
        partitions = []
        for number in range(slots):
            kind, _, start, end, flags, name = struct.unpack("<16s16sQQQ72s", table[number * 128 :][:128])
            if any(kind):
                assert first <= start <= end <= last
                assert flags == 1 << 60
                partitions.append((start, end, name.decode("utf-16-le").rstrip("\x00")))
        return partitions, other, slots


@settings(max_examples=50)
@given(st.lists(st.integers(1, 3000), max_size=255))
def test_every_layer_is_a_partition_between_two_good_tables(sizes):
    disk = Joined(render_disk(IMAGE, extents(sizes)), extents(sizes))
    partitions, backup, slots = disk.gpt(1)
    assert backup + 1 == disk.sectors
    assert disk.gpt(backup)[:2] == (partitions, 1)
    assert slots == max(128, -(-len(sizes) // 4) * 4)
    assert [(end - start + 1) * SECTOR for start, end, _ in partitions] == [mib << 20 for mib in sizes]
    assert all(start * SECTOR % ALIGNMENT == 0 for start, _, _ in partitions)
    assert disk.files.head[510:512] == b"\x55\xaa"
    assert disk.files.head[450] == 0xEE


def test_more_than_a_guest_can_see_is_refused():
    with pytest.raises(UnsupportedError):
        render_disk(IMAGE, extents([1] * 256))


def test_the_descriptor_lists_extents_right_under_its_type():
    text = render_disk(IMAGE, extents([1, 2])).descriptor.decode()
    lines = text.splitlines()
    at = lines.index('createType="twoGbMaxExtentFlat"')
    assert lines[at + 1 : at + 5] == [
        'RW 2048 FLAT "head.img" 0',
        f'RW 2048 FLAT "../../layers/{0:064x}.erofs" 0',
        f'RW 4096 FLAT "../../layers/{1:064x}.erofs" 0',
        'RW 33 FLAT "tail.img" 0',
    ]
    assert "" not in lines


@pytest.mark.parametrize(
    "bad", [Extent('a"b', EMPTY_LAYER, 1 << 20), Extent("x", EMPTY_LAYER, 5), Extent("x", EMPTY_LAYER, 0)]
)
def test_an_extent_that_would_break_the_disk_is_a_bug(bad):
    with pytest.raises(HyperError):
        render_disk(IMAGE, [bad])


def test_names_and_uuids_depend_on_content_alone():
    assert render_disk(IMAGE, extents([1, 2])) == render_disk(IMAGE, extents([1, 2]))
    assert filesystem_uuid(EMPTY_LAYER) == filesystem_uuid(Digest(str(EMPTY_LAYER)))
    assert digest_of(EMPTY_TAR) == EMPTY_LAYER
    assert [padded(size) for size in (0, 1, ALIGNMENT, ALIGNMENT + 1)] == [
        0,
        ALIGNMENT,
        ALIGNMENT,
        2 * ALIGNMENT,
    ]
