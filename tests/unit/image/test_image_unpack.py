# SPDX-License-Identifier: Apache-2.0
"""Streams that are cut off, wherever, are never taken for whole ones."""

import io
import random
from pathlib import Path

import pytest
import zstandard

from hyperd.errors import InvalidError
from hyperd.host.workers import Workers
from hyperd.image.stream import Limits, open_layer
from hyperd.image.unpack import Unpacker
from tests import images
from tests.images import file

CHANCE = random.Random(5)
TAR = images.layer_tar([file(f"f{number}", CHANCE.randbytes(700)) for number in range(400)])
PACKED = zstandard.compress(TAR, 3)


async def plain(data: bytes, tmp_path: Path) -> bytes:
    workers = Workers("test", 1)

    async def chunks():
        yield data

    try:
        unpacker = Unpacker(tmp_path, workers, Limits(1 << 30, 1), stall_timeout_s=30)
        return b"".join([chunk async for chunk in unpacker.plain(chunks())])
    finally:
        workers.close()


@pytest.mark.parametrize("cut", CHANCE.sample(range(10, len(PACKED)), 40))
async def test_zstd_that_is_cut_off(cut, tmp_path):
    with pytest.raises(InvalidError, match="cannot be decompressed"):
        await plain(PACKED[:cut], tmp_path)


async def test_frames_one_after_the_other_and_some_that_are_to_be_skipped(tmp_path):
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    half = len(TAR) // 2
    frames = zstandard.compress(TAR[:half]) + skippable + zstandard.compress(TAR[half:], 19)
    assert await plain(frames, tmp_path) == TAR


def test_a_bomb_is_unpacked_as_far_as_it_is_asked_for():
    """256 MiB of zeros: neither what is read at once nor what is kept is much more than was asked for."""
    bomb = io.BytesIO(zstandard.compress(bytes(256 << 20), 1))
    with open_layer(bomb, "bomb") as reader:
        assert reader.read(1 << 20) == bytes(1 << 20)
        assert bomb.tell() < len(bomb.getvalue()) // 2
