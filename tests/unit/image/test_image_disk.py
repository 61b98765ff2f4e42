# SPDX-License-Identifier: Apache-2.0
import binascii
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.errors import HyperError, UnsupportedError
from hyperd.image.disk import ALIGNMENT, SECTOR, Extent, filesystem_uuid, padded, render_disk
from hyperd.image.disks import EMPTY_LAYER, EMPTY_TAR
from hyperd.model.image import Digest, ImageId
from tests.images import digest_of

IMAGE = ImageId("sha256:" + "c" * 64)


def extents(sizes):
    return [
        Extent(f"../../layers/{number:064x}.erofs", Digest(f"sha256:{number:064x}"), mib << 20)
        for number, mib in enumerate(sizes)
    ]


def read_gpt(disk: bytes, header_sector: int):
    """A reader of its own, after UEFI 2.10 table 5.5 and 5.6."""
    raw = disk[header_sector * SECTOR :][:92]
    fields = struct.unpack("<8sIIIIQQQQ16sQIII", raw)
    signature, revision, size, crc, zero, here, other, first, last, _, table_at, slots, entry, table_crc = (
        fields
    )
    assert (signature, revision, size, zero, here, entry) == (b"EFI PART", 0x10000, 92, 0, header_sector, 128)
    assert crc == binascii.crc32(raw[:16] + bytes(4) + raw[20:])
    table = disk[table_at * SECTOR :][: slots * 128]
    assert table_crc == binascii.crc32(table)
    partitions = []
    for number in range(slots):
        kind, _, start, end, flags, name = struct.unpack("<16s16sQQQ72s", table[number * 128 :][:128])
        if any(kind):
            assert first <= start <= end <= last
            assert flags == 1 << 60
            partitions.append((start, end, name.decode("utf-16-le").rstrip("\x00")))
    return partitions, other, slots


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=6))
def test_every_layer_is_a_partition_between_two_good_tables(sizes):
    layers = extents(sizes)
    files = render_disk(IMAGE, layers)
    disk = files.head + b"".join(bytes(layer.size_bytes) for layer in layers) + files.tail
    partitions, backup, slots = read_gpt(disk, 1)
    assert (backup + 1) * SECTOR == len(disk)
    assert read_gpt(disk, backup)[:2] == (partitions, 1)
    assert slots == 128
    assert [(end - start + 1) * SECTOR for start, end, _ in partitions] == [
        layer.size_bytes for layer in layers
    ]
    assert all(start * SECTOR % ALIGNMENT == 0 for start, _, _ in partitions)
    assert disk[510:512] == b"\x55\xaa"
    assert disk[450] == 0xEE


@pytest.mark.parametrize("count", [128, 129, 255])
def test_many_layers_get_a_larger_table(count):
    layers = extents([1] * count)
    files = render_disk(IMAGE, layers)
    disk = files.head + bytes(count << 20) + files.tail
    partitions, backup, slots = read_gpt(disk, 1)
    assert len(partitions) == count <= slots
    assert read_gpt(disk, backup)[0] == partitions


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
