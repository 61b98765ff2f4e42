# SPDX-License-Identifier: Apache-2.0
"""A volume's stream: there and back whole, and nothing else is taken."""

import os
import tarfile
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.errors import InvalidError
from hyperd.host.members import member
from hyperd.storage import volume_archive as archive
from tests.mounts import allocated_bytes

SIZE = 32 << 20


def disk_of(path, parts):
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
    return path


def stream_of(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return b"".join(archive.packed(descriptor, archive.Manifest(SIZE, "ext4")))
    finally:
        os.close(descriptor)


def unpacked(stream, target, piece=70_000):
    target.touch()
    unpacker = archive.Unpacker(target)
    for at in range(0, len(stream), piece):
        unpacker.feed(stream[at : at + piece])
    return unpacker.finish()


PARTS = {0: b"first", 70_000: b"x" * 200_000, SIZE - 4096: b"last" * 1024}


@pytest.fixture
def stream(tmp_path):
    return stream_of(disk_of(tmp_path / "disk.img", PARTS))


@pytest.mark.parametrize("piece", [1, 511, 4096, 1 << 20])
def test_a_disk_comes_back_whole_in_pieces_of_any_size(tmp_path, piece):
    source = disk_of(tmp_path / "disk.img", {0: b"first", SIZE - 512: b"last"})
    manifest = unpacked(stream_of(source), tmp_path / "back.img", piece)
    assert manifest == archive.Manifest(SIZE, "ext4")
    assert (tmp_path / "back.img").read_bytes() == source.read_bytes()
    assert allocated_bytes(tmp_path / "back.img") < 1 << 20


def test_other_tools_list_it_and_equal_disks_give_equal_streams(stream, tmp_path):
    with tarfile.open(fileobj=BytesIO(stream)) as listed:
        names = listed.getnames()
    assert (names[0], names[1], names[-1]) == ("manifest.json", "disk/000000000000", "sha256")
    with (tmp_path / "disk.img").open("r+b") as file:  # zeros instead of a hole
        file.seek(8 << 20)
        file.write(bytes(1 << 20))
    assert stream_of(tmp_path / "disk.img") == stream


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_stream_that_was_changed_anywhere_is_refused(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("changed")
    stream = stream_of(disk_of(directory / "disk.img", {0: b"first", 1 << 20: b"second"}))
    at = data.draw(st.integers(0, len(stream) - 1))
    changed = bytearray(stream)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidError):
        unpacked(bytes(changed), directory / "back.img")


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 5000, -1, -1024, -1536])
def test_a_stream_that_ends_too_early_or_too_late_is_refused(stream, tmp_path, cut):
    with pytest.raises(InvalidError, match=r"ends before|no such"):
        unpacked(stream[:cut], tmp_path / "back.img")
    with pytest.raises(InvalidError, match="goes on after"):
        unpacked(stream + b"x", tmp_path / "back2.img")


@pytest.mark.parametrize(
    "fields",
    [
        b"{}",
        b"[" * 4000,
        b'{"filesystem": "ext4", "format": 2, "size_bytes": 33554432}',
        b'{"filesystem": "zfs", "format": 1, "size_bytes": 33554432}',
        b'{"filesystem": "ext4", "format": 1, "size_bytes": 1}',
        b'{"filesystem": "ext4", "format": 1, "size_bytes": 99999999999999999}',
        b'{"filesystem": "ext4", "format": 1, "size_bytes": 33554433}',
        b'{"size_bytes": 33554432, "filesystem": "ext4", "format": 1}',
    ],
)
def test_a_manifest_that_lies_makes_nothing(fields, tmp_path):
    with pytest.raises(InvalidError):
        unpacked(member("manifest.json", fields), tmp_path / "back.img")
    assert (tmp_path / "back.img").stat().st_size == 0


@pytest.mark.parametrize("offsets", [(65536, 0), (0, 0), (1,), (SIZE,), (1 << 46,)])
def test_a_part_that_is_out_of_place_is_refused(offsets, tmp_path):
    members = b"".join(member(f"disk/{offset:012x}", b"data") for offset in offsets)
    manifest = member("manifest.json", archive.Manifest(SIZE, "ext4").encode())
    with pytest.raises(InvalidError, match="out of place"):
        unpacked(manifest + members, tmp_path / "back.img")
