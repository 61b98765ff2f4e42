# SPDX-License-Identifier: Apache-2.0
"""Images to a tar and back, as other tools write and read them."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import zstandard

from hyperd.errors import (
    HyperError,
    ImageNotFoundError,
    InvalidError,
    UnsupportedError,
)
from hyperd.host import process
from hyperd.model.image import Digest, Image, LoadedImage, NewImage, Platform
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_commit import all_files, pieces
from tests.images import directory, file, hardlink, symlink
from tests.mounts import names_in
from tests.trees import tree_of

SMALL = [[directory("etc"), file("etc/motd", b"hi\n")], [file("top", b"x" * 5000)]]


async def pulled(store, hub, built, name="app:1") -> Image:
    events = [event async for event in store.pull(await hub.push(built, name))]
    assert isinstance(events[-1], Image)
    return events[-1]


async def saved(store, *names: str) -> bytes:
    chunks = [chunk async for chunk in store.save(names)]
    assert max(map(len, chunks)) <= 1 << 20
    return b"".join(chunks)


async def load(store, data: bytes | AsyncIterator[bytes], **options: Any) -> list[LoadedImage]:
    chunks = pieces(data) if isinstance(data, bytes) else data
    return [event async for event in store.load(chunks, **options) if isinstance(event, LoadedImage)]


async def skopeo(store, *argv: str) -> bytes:
    return (await process.run_checked(["skopeo", "--insecure-policy", *argv], timeout_s=60)).stdout


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for member in tar:
            content = tar.extractfile(member)
            found[member.name] = b"" if content is None else content.read()
        return found


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_what_is_saved_is_loaded_and_read_by_skopeo_as_the_same_image(
    hub, store, tmp_path, docker, compression
):
    if docker and compression == "zstd":
        compression = "gzip"
    image = await pulled(store, hub, images.build(SMALL, docker=docker, compression=compression))
    data = await saved(store, image.tags[0])
    path = tmp_path / "saved.tar"
    path.write_bytes(data)
    for source in (f"docker-archive:{path}", f"docker-archive:{path}:{image.tags[0]}"):
        config = await skopeo(store, "inspect", "--config", "--raw", source)
        assert images.digest_of(config) == image.image_id
    for source in (f"oci-archive:{path}", f"oci-archive:{path}:{image.tags[0]}"):
        config = await skopeo(store, "inspect", "--config", "--raw", source)
        assert images.digest_of(config) == image.image_id
    for number, source in enumerate((f"docker-archive:{path}", f"oci-archive:{path}")):
        await skopeo(store, "copy", "--quiet", source, f"dir:{tmp_path / str(number)}")
    async with opened(tmp_path / "other") as other:
        loaded = await load(other, data)
        assert [one.tags for one in loaded] == [image.tags]
        assert (loaded[0].image.image_id, loaded[0].image.tags) == (image.image_id, image.tags)
        tree = await tree_of([other._layers.path(each) for each in image.diff_ids], tmp_path / "mnt")
        assert tree["etc/motd"]["data"] == images.digest_of(b"hi\n")[7:]
        again = await saved(other, image.tags[0])
    assert again == data or docker  # Docker's manifest is an OCI one from here on
    async with opened(tmp_path / "third") as third:
        for transport in ("docker-archive", "oci-archive"):
            events = [event async for event in third.pull(f"{transport}:{path}")]
            assert isinstance(events[-1], Image)
            assert events[-1].image_id == image.image_id


async def test_an_archive_has_every_blob_once_and_fixed_times(hub, store):
    one = await pulled(store, hub, images.build(SMALL), "one:1")
    two = await pulled(store, hub, images.build([*SMALL, [file("more")]]), "two:1")
    data = await saved(store, one.tags[0], two.tags[0], one.tags[0])
    assert data == await saved(store, one.tags[0], two.tags[0])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
        assert {(info.mtime, info.uid, info.gid) for info in tar} == {(0, 0, 0)}
    assert len(names) == len(set(names))
    assert len([name for name in names if name.startswith("blobs/sha256/")]) == 3 + 2 + 2
    found = members(data)
    assert [entry["RepoTags"] for entry in json.loads(found["manifest.json"])] == [
        [one.tags[0]],
        [two.tags[0]],
    ]
    repositories = json.loads(found["repositories"])
    assert sorted(repositories) == sorted(name.rpartition(":")[0] for name in (one.tags[0], two.tags[0]))
    for name, content in found.items():
        if name.startswith("blobs/sha256/"):
            assert images.digest_of(content) == f"sha256:{name[13:]}"


async def test_a_name_without_a_tag_is_all_its_tags_and_an_id_is_none(store, tmp_path):
    image = await store.import_root(pieces(images.layer_tar([file("a")])), NewImage("app:1"))
    other = await store.import_root(pieces(images.layer_tar([file("b")])), NewImage("app:2"))
    data = await saved(store, "app")
    assert sorted(
        tag for entry in json.loads(members(data)["manifest.json"]) for tag in entry["RepoTags"]
    ) == [
        "app:1",
        "app:2",
    ]
    bare = await saved(store, other.image_id)
    assert json.loads(members(bare)["manifest.json"])[0]["RepoTags"] is None
    async with opened(tmp_path / "other") as second:
        assert {one.tags for one in await load(second, data)} == {image.tags, other.tags}
    async with opened(tmp_path / "third") as third:
        loaded = await load(third, bare)
        assert [(one.tags, one.image.tags, one.image.image_id) for one in loaded] == [
            ((), (), other.image_id)
        ]


async def test_what_is_unknown_is_said_before_the_first_byte(store):
    await store.import_root(pieces(images.layer_tar([file("a")])), NewImage("app:1"))
    stream = store.save(["app:1", "unknown"])
    with pytest.raises(ImageNotFoundError):
        await anext(stream)
    with pytest.raises(InvalidError):
        await anext(store.save([]))


async def test_an_image_that_is_removed_while_it_is_saved_is_saved_whole(store, tmp_path):
    image = await store.import_root(
        pieces(images.layer_tar([file("a", os.urandom(3 << 20))])), NewImage("app:1")
    )
    stream = store.save(["app:1"])
    data = await anext(stream)
    await store.remove("app:1")
    data += b"".join([chunk async for chunk in stream])
    assert not any(name.startswith(("blobs", "layers")) for name in all_files(store))
    loaded = await load(store, data)
    assert loaded[0].image.image_id == image.image_id


async def test_a_save_that_is_given_up_lets_go(store):
    image = await store.import_root(
        pieces(images.layer_tar([file("a", os.urandom(3 << 20))])), NewImage("app:1")
    )
    stream = store.save(["app:1"])
    await anext(stream)
    await stream.aclose()
    assert not store._garbage._pins
    await store.remove(image.image_id)
    assert not any(name.startswith("blobs") for name in all_files(store))


async def test_a_damaged_blob_is_said(store):
    image = await store.import_root(pieces(images.layer_tar([file("a", b"1" * 5000)])), NewImage("app:1"))
    manifest = json.loads(store._content.read(image.manifest_digest, limit=1 << 20))
    blob = store._content.path(Digest(manifest["layers"][0]["digest"]))
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(HyperError, match="damaged"):
        await saved(store, "app:1")
    blob.unlink()
    with pytest.raises(HyperError, match="damaged"):
        await anext(store.save(["app:1"]))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "bzip2 twice": lambda data: bz2.compress(data[:1000]) + bz2.compress(data[1000:]),
}


@pytest.mark.parametrize("compression", COMPRESSORS)
async def test_archives_of_old_docker_are_loaded_however_they_are_compressed(store, tmp_path, compression):
    built = images.build(SMALL, compression="none")
    images.write_docker_archive(built, tmp_path / "old.tar", ["app:1", "localhost:5000/x/y:2"])
    data = COMPRESSORS[compression]((tmp_path / "old.tar").read_bytes())
    loaded = await load(store, pieces(data, 100))
    assert [one.image.image_id for one in loaded] == [built.image_id]
    assert loaded[0].tags == ("docker.io/library/app:1", "localhost:5000/x/y:2")
    assert loaded[0].image.tags == loaded[0].tags
    assert (await store.root_disk(loaded[0].image.image_id)).layers == 2
    assert names_in(store._temporary) == []


async def test_layers_that_are_links_to_others_are_followed(store):
    """As `docker save` before 25 writes a layer that an image has twice."""
    built = images.build([SMALL[0], SMALL[0]], compression="none")
    entries = [
        file("c.json", built.config),
        file("aaa/layer.tar", built.layers[0]),
        file("aaa/VERSION", "1.0"),
        symlink("bbb/layer.tar", "../aaa/layer.tar"),
        hardlink("ccc/layer.tar", "aaa/layer.tar"),
    ]
    for second in ("bbb/layer.tar", "ccc/layer.tar"):
        manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["aaa/layer.tar", second]}]
        data = images.layer_tar([*entries, file("manifest.json", json.dumps(manifest))])
        loaded = await load(store, data)
        assert (loaded[0].image.image_id, loaded[0].tags) == (built.image_id, ())
        await store.remove(built.image_id)


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("name", ["", "latest", "localhost/x:1"])
async def test_layouts_in_a_tar_are_loaded(store, tmp_path, docker, name):
    built = images.build(SMALL, docker=docker)
    images.write_archive(built, tmp_path / "a.tar", name)
    loaded = await load(store, (tmp_path / "a.tar").read_bytes())
    assert [(one.image.image_id, one.tags) for one in loaded] == [
        (built.image_id, ("localhost/x:1",) if "/" in name else ())
    ]
    assert loaded[0].image.manifest_digest == built.manifest_digest


async def test_a_platform_is_chosen_from_several(store, tmp_path):
    built = [images.build(SMALL, architecture=name) for name in ("amd64", "arm64")]
    platforms = [{"os": "linux", "architecture": name} for name in ("amd64", "arm64")]
    several = images.index(list(zip(built, platforms, strict=True)))
    images.write_archive(several, tmp_path / "a.tar", "localhost/x:1")
    data = (tmp_path / "a.tar").read_bytes()
    for one in built:
        wanted = Platform("linux", "amd64" if one is built[0] else "arm64")
        loaded = await load(store, data, platform=wanted)
        assert [each.image.image_id for each in loaded] == [one.image_id]
    with pytest.raises(UnsupportedError, match="riscv64"):
        await load(store, data, platform=Platform("linux", "riscv64"))


async def test_what_skopeo_writes_is_loaded(hub, store, tmp_path):
    image = await pulled(store, hub, images.build(SMALL))
    path = tmp_path / "saved.tar"
    path.write_bytes(await saved(store, image.tags[0]))
    for number, target in enumerate(("docker-archive:{}:app:5", "oci-archive:{}:localhost/app:5")):
        out = tmp_path / f"{number}.tar"
        await skopeo(store, "copy", "--quiet", f"oci-archive:{path}", target.format(out))
        async with opened(tmp_path / f"store-{number}") as other:
            loaded = await load(other, out.read_bytes())
            assert loaded[0].image.image_id == image.image_id
            assert loaded[0].tags == (("docker.io/library/app:5",), ("localhost/app:5",))[number]


async def test_an_image_that_is_here_only_gets_its_names(hub, store):
    image = await pulled(store, hub, images.build(SMALL, docker=True))
    data = await saved(store, image.tags[0])
    loaded = await load(store, data)
    assert loaded[0].image == image


async def test_a_load_brings_back_a_blob_that_is_gone(store):
    image = await store.import_root(pieces(images.layer_tar([file("a", b"1" * 5000)])), NewImage("app:1"))
    data = await saved(store, "app:1")
    manifest = json.loads(store._content.read(image.manifest_digest, limit=1 << 20))
    store._content.remove(Digest(manifest["layers"][0]["digest"]))
    assert [one.image.image_id for one in await load(store, data)] == [image.image_id]
    assert await saved(store, "app:1") == data
