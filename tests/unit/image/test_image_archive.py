# SPDX-License-Identifier: Apache-2.0
"""Archives that anybody may have written: what is read of them, and that nothing else happens."""

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.errors import ExhaustedError, HyperError, InvalidError
from hyperd.host.workers import NotWantedError, Wanted
from hyperd.image.archive_index import find_images
from hyperd.image.archive_read import MAX_NAME_BYTES, MAX_NAMES_BYTES, Archive, Splitter
from hyperd.image.archive_write import Member, header
from hyperd.image.stream import Limits
from hyperd.model.image import Platform
from tests import images
from tests.images import file, symlink

PLATFORM = Platform("linux", "amd64")
LIMITS = Limits(1 << 30, 0)
BUILT = images.build([[file("a", b"x" * 700)]], compression="none")


@pytest.fixture
def members(tmp_path) -> Path:
    path: Path = tmp_path / "members"
    path.mkdir()
    return path


def split(data: bytes, directory: Path, chunk_bytes: int = 1 << 20, limits: Limits = LIMITS) -> Archive:
    splitter = Splitter(directory, limits)
    try:
        for at in range(0, len(data), chunk_bytes):
            splitter.feed(Wanted(), data[at : at + chunk_bytes])
        return splitter.finish(Wanted())
    finally:
        splitter.close()


def tar_of(form: int, found: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in found:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@settings(deadline=None)  # files
@given(
    st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    st.lists(st.tuples(st.text("abä", min_size=1, max_size=200), st.binary(max_size=1500)), max_size=5),
    st.integers(7, 3000),
)
def test_members_come_out_as_they_went_in_whatever_the_chunks(form, found, chunk_bytes):
    with tempfile.TemporaryDirectory() as directory:
        archive = split(tar_of(form, found), Path(directory), chunk_bytes)
        last = dict(found)
        assert {name: archive.read(entry, 1 << 20) for name, entry in archive.entries.items()} == last
        for name, entry in archive.entries.items():
            assert (entry.digest, entry.size_bytes) == (images.digest_of(last[name]), len(last[name]))
            assert entry.magic == last[name][:6]
        assert len(list(Path(directory).iterdir())) == len(last)


@settings(deadline=None)  # files
@given(st.data())
def test_a_damaged_archive_is_read_or_refused_and_stays_in_its_directory(data):
    good = bytearray(
        images.layer_tar(
            [file("manifest.json", "[]"), symlink("l", "manifest.json"), file("b/c", b"z" * 600)]
        )
    )
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    with tempfile.TemporaryDirectory() as directory:
        inner = Path(directory) / "members"
        inner.mkdir()
        try:
            archive = split(cut, inner, data.draw(st.integers(7, 2000)))
        except HyperError:
            archive = Archive()
        assert [path.name for path in Path(directory).iterdir()] == ["members"]
        assert all(path.name.isdecimal() for path in inner.iterdir())
        assert all(".." not in name.split("/") and not name.startswith("/") for name in archive.entries)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 1 << 40)
    | st.sampled_from(
        ["c", "a", "../a", "/etc/passwd", "", "evil:1", BUILT.manifest_digest, images.OCI_MANIFEST]
    )
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "Config RepoTags Layers manifests mediaType digest size platform annotations os architecture".split()
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)  # files
@given(JSON, JSON | st.none())
def test_any_description_is_images_or_an_error_of_ours(described, indexed):
    entries = [
        file("c", BUILT.config),
        file("a", BUILT.layers[0]),
        file("manifest.json", json.dumps(described)),
    ]
    if indexed is not None:
        entries += [file("index.json", json.dumps(indexed))]
    with tempfile.TemporaryDirectory() as directory:
        archive = split(images.layer_tar(entries), Path(directory))
        try:
            found = find_images(archive, PLATFORM)
        except HyperError:
            return
        assert found
        assert {image.image_id for image in found} == {BUILT.image_id}


def described(**changes: Any) -> bytes:
    item = {"Config": "c", "RepoTags": ["app:1", "app:1"], "Layers": ["a"], **changes}
    entries = [file("c", BUILT.config), file("a", BUILT.layers[0]), file("manifest.json", json.dumps([item]))]
    return images.layer_tar(entries)


def test_an_image_by_dockers_description(members):
    (found,) = find_images(split(described(), members), PLATFORM)
    assert (found.image_id, [str(name) for name in found.names]) == (
        BUILT.image_id,
        ["docker.io/library/app:1"],
    )
    assert [layer["digest"] for layer in json.loads(found.manifest)["layers"]] == [
        images.digest_of(BUILT.layers[0])
    ]


@pytest.mark.parametrize("tags", ["app:1", ["app:1"] * 1001, {"a": 1}])
def test_tags_that_are_no_list_are_refused(members, tags):
    with pytest.raises(InvalidError, match="RepoTags"):
        find_images(split(described(RepoTags=tags), members), PLATFORM)


def test_descriptions_are_bounded_together(members):
    large = images.build([[file("a")]], compression="none", top={"x": "y" * (7 << 20)})
    items = [{"Config": "c", "Layers": ["a"]}] * 10
    entries = [file("c", large.config), file("a", large.layers[0]), file("manifest.json", json.dumps(items))]
    with pytest.raises(InvalidError, match="larger than 64 MiB"):
        find_images(split(images.layer_tar(entries), members), PLATFORM)


@pytest.mark.parametrize("kind", [[], {}, 5, None, "text/plain"])
def test_a_media_type_that_is_none_is_no_image(members, kind):
    with pytest.raises(InvalidError, match="no image"):
        find_images(split(index_of(item(BUILT) | {"mediaType": kind}), members), PLATFORM)


def test_names_that_are_none_are_passed_over(members):
    tags = ["UPPER", "app:1", 5, "app@sha256:" + "0" * 64]
    (found,) = find_images(split(described(RepoTags=tags), members), PLATFORM)
    assert [str(name) for name in found.names] == ["docker.io/library/app:1"]


def index_of(*items: dict[str, Any]) -> bytes:
    blobs = {one.manifest_digest: one for one in (BUILT, ARM)}
    entries = [file("index.json", json.dumps({"manifests": list(items)}))]
    entries += [
        file(f"blobs/sha256/{images.digest_of(data)[7:]}", data)
        for one in blobs.values()
        for data in (one.manifest, one.config, *one.layers)
    ]
    return images.layer_tar(entries)


ARM = images.build([[file("a", b"arm")]], compression="none", architecture="arm64")


def item(built: images.BuiltImage, architecture: str = "", **annotations: str) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": images.OCI_MANIFEST, "digest": built.manifest_digest, "size": 1}
    if architecture:
        found["platform"] = {"os": "linux", "architecture": architecture}
    return {**found, "annotations": annotations}


def test_manifests_of_one_name_are_one_image_of_several_platforms(members):
    data = index_of(item(BUILT, "amd64"), item(ARM, "arm64"))
    assert [one.image_id for one in find_images(split(data, members), PLATFORM)] == [BUILT.image_id]


def test_manifests_of_several_names_are_several_images(members):
    names = [{"org.opencontainers.image.ref.name": f"x/app:{number}"} for number in range(3)]
    data = index_of(item(BUILT, "", **names[0]), item(ARM, "", **names[1]), item(BUILT, "", **names[2]))
    found = find_images(split(data, members), PLATFORM)
    assert [(one.image_id, [name.tag for name in one.names]) for one in found] == [
        (BUILT.image_id, ["0", "2"]),
        (ARM.image_id, ["1"]),
    ]


def test_attestations_are_passed_over(members):
    noise = item(ARM, "", **{"vnd.docker.reference.type": "attestation-manifest"})
    data = index_of(item(BUILT), noise, item(ARM, "unknown") | {"platform": {"os": "unknown"}})
    assert [one.image_id for one in find_images(split(data, members), PLATFORM)] == [BUILT.image_id]


def test_a_sparse_member_is_refused(members):
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(InvalidError):
        split(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), members)


def test_a_long_name_without_end_is_refused(members):
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(InvalidError, match="not an image archive"):
        split(info.tobuf(tarfile.GNU_FORMAT), members)


@pytest.mark.parametrize(
    ("limits", "said"), [(Limits(1000, 0), "larger than 0 MiB"), (Limits(1 << 30, 1 << 60), "no space")]
)
def test_an_archive_is_bounded(members, limits, said):
    with pytest.raises(ExhaustedError, match=said):
        split(described(), members, limits=limits)


def test_what_nobody_wants_any_more_ends(members):
    wanted = Wanted()
    wanted.withdraw()
    splitter = Splitter(members, LIMITS)
    with pytest.raises(NotWantedError):
        splitter.feed(wanted, described())


@settings(deadline=None)  # files
@given(st.text("ab/", min_size=1, max_size=90).filter(lambda text: text.strip("/")), st.integers(0, 1 << 40))
def test_headers_are_what_tar_reads(name, size):
    member = Member(name.strip("/"), size)
    data = header(member)
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size, info.mtime, info.isreg()) == (member.name, size, 0, True)


def test_links_are_followed_only_so_far(members):
    entries = [symlink(f"l{number}", f"l{number + 1}") for number in range(20)] + [file("l20", b"x")]
    archive = split(images.layer_tar(entries), members)
    assert archive.find("l15") is archive.entries["l20"]
    assert archive.find("l0") is None


def pax(kind: bytes = tarfile.REGTYPE, **records: str) -> bytes:
    info = tarfile.TarInfo("a")
    info.type, info.pax_headers = kind, records
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("name", "linkname"), [(True, False), (False, True)])
def test_a_name_has_a_bound(members, form, name, linkname):
    def data(size: int) -> bytes:
        info = tarfile.TarInfo("n" * size if name else "a")
        info.type, info.linkname = tarfile.LNKTYPE, "n" * size if linkname else "b"
        return info.tobuf(form) + bytes(1024)

    assert len(split(data(MAX_NAME_BYTES), members).links) == 1
    with pytest.raises(InvalidError, match="a name of more than 4096 bytes"):
        split(data(MAX_NAME_BYTES + 1), members)


def test_a_link_has_its_bound_with_the_directory_that_it_is_in(members):
    path, target = "p" * 4000 + "/l", "t" * 4000
    with pytest.raises(InvalidError, match="a name of more than 4096 bytes"):
        split(pax(tarfile.SYMTYPE, path=path, linkpath=target) + bytes(1024), members)


def test_names_are_bounded_together(members):
    count = MAX_NAMES_BYTES // 8000 + 1  # each 4000 for itself and as much for its target
    links = [pax(tarfile.LNKTYPE, path=f"{number:04000}", linkpath="t" * 4000) for number in range(count)]
    assert len(split(b"".join([*links[:-1], bytes(1024)]), members).links) == count - 1
    with pytest.raises(InvalidError, match="names are larger than 16 MiB"):
        split(b"".join([*links, bytes(1024)]), members)


@pytest.mark.parametrize("size", ["9" * 5000, "9" * 20, "-1", "1x", "\u0663"])
def test_a_size_that_cannot_be_is_refused(members, size):
    with pytest.raises(InvalidError) as caught:
        split(pax(size=size) + bytes(2048), members)
    assert "no sensible size" in str(caught.value.evidence)
