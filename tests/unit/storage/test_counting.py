# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from hyperd.host import files
from hyperd.storage import counting
from tests.mounts import dig, names_in


@pytest.fixture
def tree(tmp_path):
    """64 KiB, and a link to more."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/much").write_bytes(b"x" * (1 << 20))
    (tmp_path / "tree/inner").mkdir(parents=True)
    (tmp_path / "tree/inner/file").write_bytes(b"x" * (64 << 10))
    (tmp_path / "tree/link").symlink_to(tmp_path / "beside")
    return tmp_path / "tree"


def test_what_is_below_is_counted_and_no_link_followed(tree):
    assert 64 << 10 <= counting.allocated_below(tree) < 1 << 20
    assert counting.allocated_below(tree / "link") == 0
    assert counting.allocated_below(tree / "absent") == 0


def test_a_tree_that_is_too_deep_for_a_path_is_counted_as_far_as_it_goes(tree):
    before = len(names_in(Path("/proc/self/fd")))
    dig(tree / "deep", 2500)
    assert counting.allocated_below(tree) >= 64 << 10
    assert len(names_in(Path("/proc/self/fd"))) == before
    files.remove_tree(tree / "deep")


def test_a_wide_tree_is_counted_until_it_is_enough(tree, monkeypatch):
    monkeypatch.setattr(counting, "MOST_COUNTED", 8)
    for number in range(100):
        (tree / f"{number}").write_bytes(b"x" * 4096)
    assert counting.allocated_below(tree) <= 8 * (64 << 10)


def test_a_directory_that_becomes_a_link_meanwhile_counts_for_nothing(tree, monkeypatch):
    opened = os.open

    def swapping(path, *args, **fields):
        if path == "inner":
            (tree / "inner").rename(tree.parent / "moved")
            (tree / "inner").symlink_to(tree.parent / "beside")
        return opened(path, *args, **fields)

    monkeypatch.setattr(os, "open", swapping)
    assert counting.allocated_below(tree) < 64 << 10
