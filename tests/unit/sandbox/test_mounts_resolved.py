# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime

import pytest

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.model.container import ContainerRecord, ContainerSpec, Sizing
from hyperd.model.guest import GuestMount
from hyperd.model.image import ImageId
from hyperd.model.vm import SandboxId
from hyperd.model.volume import Mount, MountType
from hyperd.sandbox import mount_sources, mounts
from hyperd.sandbox.mounts import Sharing


def volume(destination, source="", **fields):
    return Mount(MountType.VOLUME, destination, source, **fields)


def resolved(*asked, image=(), shared=(), **fields):
    spec, warnings = mounts.resolve(ContainerSpec("alpine", mounts=asked, **fields), image, shared)
    assert warnings == []
    return spec


def test_every_volume_has_a_name_and_those_without_are_anonymous():
    spec = resolved(volume("/data/", "db"), volume("/tmp/x"))
    named, anonymous = spec.mounts
    assert (named.destination, named.source, named.anonymous) == ("/data", "db", False)
    assert anonymous.anonymous
    assert len(anonymous.source) == 64


def test_what_is_asked_for_wins_over_others_and_these_over_the_image():
    other = Sharing((volume("/a", "theirs"), volume("/b", "theirs2", readonly=True)), None)
    spec = resolved(volume("/a", "mine"), image=["/a", "/b", "/c", "/d/"], shared=[other], tmpfs={"/d": ""})
    chosen = {mount.destination: mount for mount in spec.mounts}
    assert set(chosen) == {"/a", "/b", "/c"}
    assert (chosen["/a"].source, chosen["/b"].source, chosen["/b"].readonly) == ("mine", "theirs2", True)
    assert chosen["/c"].anonymous


@pytest.mark.parametrize(("mode", "readonly"), [(None, False), (True, True), (False, False)])
def test_volumes_from_can_say_how(mode, readonly):
    (mount,) = resolved(shared=[Sharing((volume("/a", "db"),), mode)]).mounts
    assert mount.readonly is readonly


def test_what_an_image_asks_for_that_cannot_be_is_left_out_and_told():
    spec, warnings = mounts.resolve(ContainerSpec("alpine"), ["/", "data"], [])
    assert [mount.destination for mount in spec.mounts] == ["/data"]
    assert len(warnings) == 1


def test_a_tmpfs_is_one_however_it_was_asked_for():
    spec = resolved(Mount(MountType.TMPFS, "/run", readonly=True, size_bytes=1 << 20, mode=0o700))
    assert spec.tmpfs == {"/run": "ro,size=1048576,mode=700"}
    assert spec.mounts == ()


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ([volume("/a", "x"), volume("/a/", "y")], InvalidError),
        ([volume("data", "x")], InvalidError),
        ([volume("/a/../b", "x")], InvalidError),
        ([volume("/", "x")], InvalidError),
        ([volume("/proc/x", "x")], InvalidError),
        ([volume("/sys", "x")], InvalidError),
        ([volume("/dev", "x")], InvalidError),
        ([volume("//", "x")], InvalidError),
        ([volume("/proc/sys", "x")], InvalidError),
        ([volume("/a\0", "x")], InvalidError),
        ([Mount(MountType.TMPFS, "/a", "x")], InvalidError),
        ([volume(f"/{n}", f"v{n}") for n in range(17)], InvalidError),
    ],
)
def test_what_cannot_be_mounted_is_refused(asked, kind):
    with pytest.raises(kind):
        resolved(*asked)


def test_the_same_place_as_a_tmpfs_is_refused():
    with pytest.raises(InvalidError, match="mounted twice"):
        resolved(volume("/a", "x"), tmpfs={"/a": ""})


@pytest.mark.parametrize("text", ["", ":ro", "box:wrong"])
def test_volumes_from_has_a_form(text):
    with pytest.raises(InvalidError):
        mounts.parse_volumes_from(text)


def test_a_volume_in_two_places_is_one_disk_that_is_written_to_when_one_place_is():
    spec = resolved(volume("/a", "db", readonly=True), volume("/b", "db"), volume("/c", "ro", readonly=True))
    assert mount_sources.uses_of(spec.mounts) == {"db": False, "ro": True}
    first, second, third = mount_sources.guest_mounts(spec.mounts)
    assert first == GuestMount("/a", "block:ext4", "volume0", ("ro",), "data", copy_image=False)
    assert (second.source, second.options, second.copy_image) == ("volume0", (), True)
    assert third.source == "volume1"


def test_errors_name_what_is_wrong():
    with pytest.raises(HyperError) as caught:
        resolved(volume("/a/../b", "x"))
    assert not isinstance(caught.value, UnsupportedError)
    assert "/a/../b" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "inner"),
    [
        (b"/data", b"/"),
        (b"/data/", b"/"),
        (b"/data/x", b"/x"),
        (b"/data/x/", b"/x/"),
        (b"//data/./x", b"/x"),
        (b"/y/../data/x", b"/x"),
        (b"/data/in/x", b"/x"),
        (b"/", None),
        (b"/database", None),
        (b"/y/data", None),
    ],
)
def test_a_path_lies_in_the_innermost_mount(path, inner):
    spec = ContainerSpec("alpine", mounts=(volume("/data", "db"), volume("/data/in", "inner")))
    record = ContainerRecord(
        SandboxId("a" * 64), "web", spec, ImageId("sha256:1"), (), Sizing(1, 256), datetime.now(UTC)
    )
    found = mounts.find_at(record, path)
    assert (found and found[1]) == inner
    if found:
        assert found[0].source == ("inner" if b"/in" in path else "db")


@pytest.mark.parametrize(
    ("path", "over"),
    [
        (b"/tmp", "/tmp"),
        (b"/tmp/x", "/tmp"),
        (b"/y/../tmp/in/", "/tmp"),
        (b"/data/scratch/x", "/data/scratch"),
        (b"/data/x", None),
        (b"/tmp/kept/x", None),
        (b"/tmpx", None),
        (b"/", None),
    ],
)
def test_what_a_tmpfs_is_over_is_not_looked_at_while_that_is_gone(path, over):
    spec = ContainerSpec(
        "alpine",
        mounts=(volume("/data", "db"), volume("/tmp/kept", "kept")),
        tmpfs={"/tmp": "", "/data/scratch": "size=1m"},
    )
    record = ContainerRecord(
        SandboxId("a" * 64), "web", spec, ImageId("sha256:1"), (), Sizing(1, 256), datetime.now(UTC)
    )
    found = mounts.find_at(record, path)
    if over is None:
        mounts.require_lasting(record, path, found)
        return
    with pytest.raises(UnsupportedError, match=f"in the tmpfs at {over},"):
        mounts.require_lasting(record, path, found)
