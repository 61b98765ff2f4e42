# SPDX-License-Identifier: Apache-2.0
"""Which paths of the host may be shared: by what they lead to, not by how they are written."""

import os
import socket

import pytest

from hyperd.errors import DeniedError, InvalidError, UnsupportedError, WrongStateError
from hyperd.model.share import ShareRequest
from hyperd.storage import Places


def request(path, **fields):
    return ShareRequest("bind0", str(path), **fields)


@pytest.fixture
def places(tmp_path):
    for name in ("allowed/sub", "other", "state/volumes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "allowed/file").write_text("x")
    return Places([tmp_path / "allowed"], [tmp_path / "state"])


def test_what_is_there_is_found_without_its_links(places, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "allowed")
    found = places.find(request(tmp_path / "link/sub/"))
    assert (found.path, found.is_file, found.entry) == (tmp_path / "allowed/sub", False, "")
    file = places.find(request(tmp_path / "allowed/./file"))
    assert (file.is_file, file.entry) == (True, "file")


def test_nothing_but_what_is_allowed_and_below_it_however_it_is_named(places, tmp_path):
    (tmp_path / "allowed/out").symlink_to(tmp_path / "other")
    (tmp_path / "allowedtoo").mkdir()
    for path in ("other", "allowed/out", "allowed/../other", "allowedtoo"):
        with pytest.raises(DeniedError) as caught:
            places.find(request(tmp_path / path))
        assert str(tmp_path / "allowed") in caught.value.hint
    with pytest.raises(DeniedError, match=f"which is {tmp_path}/other"):
        places.require_possible(request(tmp_path / "allowed/out"))


def test_without_a_list_everything_is_allowed_but_what_is_hyperd_s_own(tmp_path):
    (tmp_path / "state/volumes").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "state")
    places = Places([], [tmp_path / "state"])
    for path in (tmp_path / "state", tmp_path / "state/volumes", tmp_path, "/", tmp_path / "link/volumes"):
        with pytest.raises(DeniedError, match="hyperd's own"):
            places.find(request(path))
    assert places.find(request("/usr")).path.is_dir()
    assert places.find(request(tmp_path / "state/volumes", ours=True)).path == tmp_path / "state/volumes"


def test_a_missing_directory_is_made_where_that_is_allowed_and_asked_for(places, tmp_path):
    new = tmp_path / "allowed/a/b"
    with pytest.raises(InvalidError, match=f"bind source path does not exist: {new}"):
        places.find(request(new))
    places.require_possible(request(new, create_source=True))
    assert not new.exists()
    assert places.find(request(new, create_source=True)).path.is_dir()
    with pytest.raises(DeniedError):
        places.find(request(tmp_path / "other/a", create_source=True))
    assert not (tmp_path / "other/a").exists()


def test_a_link_to_nothing_is_judged_by_where_it_leads(places, tmp_path):
    (tmp_path / "allowed/dangling").symlink_to(tmp_path / "other/new")
    with pytest.raises(DeniedError):
        places.find(request(tmp_path / "allowed/dangling", create_source=True))
    assert not (tmp_path / "other/new").exists()


def test_what_is_neither_file_nor_directory_means_nothing_in_a_guest(places, tmp_path):
    os.mkfifo(tmp_path / "allowed/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "allowed/socket"))
    for name, kind in (("pipe", "a pipe"), ("socket", "a socket")):
        with pytest.raises(UnsupportedError, match=f"is {kind}"):
            places.find(request(tmp_path / "allowed" / name))


@pytest.mark.parametrize("path", ["srv", "", "/s\0"])
def test_a_source_is_an_absolute_path(places, path):
    with pytest.raises(InvalidError, match="is not an absolute path"):
        places.find(request(path))


class Swapped(Places):
    """Somebody is at work between the look at the path and the one at what is there."""

    def __init__(self, swap, *args):
        super().__init__(*args)
        self.swap = swap

    def _allowed_path(self, request):
        path = super()._allowed_path(request)
        self.swap()
        return path


@pytest.mark.parametrize("name", ["allowed/sub", "allowed/sub/below"])
def test_a_link_that_is_put_there_after_the_look_is_not_followed(tmp_path, name):
    (tmp_path / "allowed/sub/below").mkdir(parents=True)
    (tmp_path / "other/below").mkdir(parents=True)

    def swap():
        (tmp_path / "allowed/sub").rename(tmp_path / "moved")
        (tmp_path / "allowed/sub").symlink_to(tmp_path / "other")

    places = Swapped(swap, [tmp_path / "allowed"], [])
    with pytest.raises(WrongStateError, match="a link, or a file, in its way"):
        places.find(request(tmp_path / name))


def test_nothing_is_made_where_a_link_leads_that_is_put_there_after_the_look(tmp_path):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "other").mkdir()
    places = Swapped(
        lambda: (tmp_path / "allowed/sub").symlink_to(tmp_path / "other"), [tmp_path / "allowed"], []
    )
    with pytest.raises(WrongStateError):
        places.find(request(tmp_path / "allowed/sub/new", create_source=True))
    assert list((tmp_path / "other").iterdir()) == []


def test_below_a_file_there_is_nothing_and_nothing_is_made(places, tmp_path):
    with pytest.raises(InvalidError, match="does not exist"):
        places.find(request(tmp_path / "allowed/file/sub"))
    with pytest.raises(WrongStateError, match="a link, or a file, in its way"):
        places.find(request(tmp_path / "allowed/file/sub", create_source=True))
