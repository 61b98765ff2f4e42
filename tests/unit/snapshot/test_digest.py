# SPDX-License-Identifier: Apache-2.0
"""The digest of a sparse file against its definition, written down a second time here."""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import UnavailableError
from hyperd.snapshot import digest
from tests.saved import write_sparse

BLOCK = 64 << 10


def defined(data: bytes) -> str:
    parts = [b"hyper sparse file 1\n"]
    for offset in range(0, len(data), BLOCK):
        block = data[offset : offset + BLOCK]
        if block.strip(b"\0"):
            parts += [offset.to_bytes(8, "big"), block]
    return hashlib.sha256(b"".join([*parts, len(data).to_bytes(8, "big")])).hexdigest()


sparse_files = st.integers(0, 6 * BLOCK).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(st.tuples(st.integers(0, max(size - 1, 0)), st.binary(min_size=1, max_size=64)), max_size=6),
    )
)


@given(sparse_files)
def test_it_is_as_defined_and_the_same_for_holes_and_zeros(file):
    size, pieces = file
    with tempfile.TemporaryDirectory() as directory:
        holes, zeros = Path(directory, "holes"), Path(directory, "zeros")
        write_sparse(holes, size, pieces)
        os.truncate(holes, size)
        data = holes.read_bytes()
        zeros.write_bytes(data)
        assert digest.measure(holes)[0] == digest.measure(zeros)[0] == defined(data)


def test_data_that_moves_or_a_size_that_changes_is_seen(tmp_path):
    digests = set()
    for number, (size, offset) in enumerate([(BLOCK * 3, 0), (BLOCK * 3, BLOCK), (BLOCK * 3 + 1, 0)]):
        write_sparse(tmp_path / str(number), size, [(offset, b"data")])
        digests.add(digest.measure(tmp_path / str(number))[0])
    assert len(digests) == 3


def test_a_huge_hole_costs_nothing(tmp_path):
    write_sparse(tmp_path / "file", 8 << 40, [((8 << 40) - 5, b"data")])
    assert digest.measure(tmp_path / "file")[1].size_bytes == 8 << 40


def test_a_pipe_or_a_link_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnavailableError, match="not a regular file"):
        digest.measure(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links"):
        digest.measure(tmp_path / "link")
