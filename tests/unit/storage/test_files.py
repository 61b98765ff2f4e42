# SPDX-License-Identifier: Apache-2.0
import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperd.errors import DeniedError, ExhaustedError, ExistsError, NotFoundError, UnavailableError
from hyperd.host import files
from hyperd.host.workers import NotWantedError, Wanted
from tests.mounts import allocated_bytes, dig, names_in


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ExhaustedError),
        (errno.EDQUOT, ExhaustedError),
        (errno.ENOENT, NotFoundError),
        (errno.EEXIST, ExistsError),
        (errno.EACCES, DeniedError),
        (errno.EIO, UnavailableError),
    ],
)
def test_an_os_error_crosses_as_what_the_caller_does_next(number, kind):
    with pytest.raises(kind) as caught, files.file_errors("somewhere"):
        raise OSError(number, os.strerror(number))
    assert caught.value.subject == "somewhere"
    assert isinstance(caught.value.__cause__, OSError)


def test_a_write_replaces_whole_files_with_the_mode_asked_for(tmp_path):
    target = tmp_path / "x"
    files.write_atomic(target, b"one", mode=0o644)
    files.write_atomic(target, b"two", mode=0o600)
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert names_in(tmp_path) == ["x"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        files.write_atomic(tmp_path / "x", b"data")
    assert names_in(tmp_path) == ["x"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 63), st.binary(min_size=1, max_size=5000)), max_size=6),
    st.integers(0, 9000),
)
def test_a_sparse_copy_has_the_same_bytes_and_no_more_blocks(tmp_path, writes, tail):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for block, data in writes:
            file.seek(block * 65536)
            file.write(data)
        file.truncate(file.seek(0, os.SEEK_END) + tail)
    files.copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert allocated_bytes(target) <= allocated_bytes(source) + 8192
    assert names_in(tmp_path) == ["source", "target"]


def test_removing_a_tree_does_not_follow_links(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "link").symlink_to("kept")
    files.remove_tree(tmp_path / "link")
    files.remove_tree(tmp_path / "absent")
    assert (tmp_path / "kept/file").exists()


def test_a_tree_that_is_too_deep_for_a_path_or_a_stack_is_removed(tmp_path):
    dig(tmp_path / "tree", 2500)
    files.remove_tree(tmp_path / "tree")
    assert names_in(tmp_path) == []


def test_a_wide_tree_is_removed_and_what_its_links_lead_to_stays(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    for number in range(2300):
        (tmp_path / f"tree/{number}/below").mkdir(parents=True)
        (tmp_path / f"tree/{number}/link").symlink_to(tmp_path / "kept")
    files.remove_tree(tmp_path / "tree")
    assert names_in(tmp_path) == ["kept"]
    assert names_in(tmp_path / "kept") == ["file"]


def test_a_directory_that_becomes_a_link_while_it_is_removed_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "tree/inner").mkdir(parents=True)
    opened = os.open

    def swapping(path, *args, **fields):
        if path == "inner":
            (tmp_path / "tree/inner").rename(tmp_path / "tree/moved")
            (tmp_path / "tree/inner").symlink_to(tmp_path / "kept")
        return opened(path, *args, **fields)

    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(OSError):
        files.remove_tree(tmp_path / "tree")
    monkeypatch.undo()
    files.remove_tree(tmp_path / "tree")
    assert names_in(tmp_path) == ["kept"]
    assert names_in(tmp_path / "kept") == ["file"]


@pytest.mark.parametrize("existing", [True, False])
def test_a_copy_that_nobody_wants_any_more_leaves_the_target_as_it_was(tmp_path, existing):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    if existing:
        target.write_bytes(b"old")
    wanted = Wanted()
    files.copy_sparse(source, tmp_path / "other", wanted=wanted)
    wanted.withdraw()
    before = names_in(tmp_path)
    with pytest.raises(NotWantedError):
        files.copy_sparse(source, target, wanted=wanted)
    assert names_in(tmp_path) == before
    assert not existing or target.read_bytes() == b"old"
