# SPDX-License-Identifier: Apache-2.0
"""Images to a tar and back, as other tools write and read them; and what a hostile archive does: nothing."""

import asyncio
import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from hyperd.errors import (
    ExhaustedError,
    HyperError,
    ImageNotFoundError,
    InvalidError,
    TimeoutExpiredError,
    UnsupportedError,
)
from hyperd.host import process
from hyperd.image import loading
from hyperd.model.image import Digest, Image, LoadedImage, NewImage, Platform
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_commit import all_files, pieces
from tests.images import Entry, directory, file, hardlink, symlink
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


def described(config: str, layers: Sequence[str], *more: Entry) -> bytes:
    manifest = [{"Config": config, "RepoTags": ["evil:1"], "Layers": list(layers)}]
    return images.layer_tar([file("manifest.json", json.dumps(manifest)), *more])


GOOD = images.build(SMALL, compression="none")
CONFIG, LAYERS = file("c.json", GOOD.config), [file("a", GOOD.layers[0]), file("b", GOOD.layers[1])]


def layout_without(built: images.BuiltImage, missing: str) -> bytes:
    files = images._layout_files(built, "evil:1")
    return images.layer_tar([file(path, data) for path, data in files.items() if missing not in path])


def layout_with(change: dict[str, bytes]) -> bytes:
    found = images._layout_files(GOOD, "evil:1") | change
    return images.layer_tar([file(path, data) for path, data in found.items()])


HOSTILE = {
    "empty": b"",
    "no archive": b"nothing of the kind " * 500,
    "an empty tar": bytes(1024),
    "a root file system": images.layer_tar(SMALL[0]),
    "absolute": described("c.json", ["a", "b"], CONFIG, *LAYERS, file("/evil", b"x")),
    "upwards": described("c.json", ["a", "b"], CONFIG, *LAYERS, file("../evil", b"x")),
    "upwards inside": described("c.json", ["a", "b"], CONFIG, *LAYERS, file("x/../../evil", b"x")),
    "link out": described("c.json", ["a", "b"], CONFIG, LAYERS[0], symlink("b", "/etc/passwd")),
    "link upwards": described("c.json", ["a", "b"], CONFIG, LAYERS[0], symlink("b", "../../etc/passwd")),
    "hard link out": described("c.json", ["a", "b"], CONFIG, LAYERS[0], hardlink("b", "/etc/passwd")),
    "link to itself": described("c.json", ["a", "b"], CONFIG, LAYERS[0], symlink("b", "b")),
    "config outside": described("/etc/passwd", ["a", "b"], CONFIG, *LAYERS),
    "config upwards": described("../../../etc/passwd", ["a", "b"], CONFIG, *LAYERS),
    "layer outside": described("c.json", ["a", "/etc/passwd"], CONFIG, *LAYERS),
    "layer missing": described("c.json", ["a", "c"], CONFIG, *LAYERS),
    "layer too few": described("c.json", ["a"], CONFIG, *LAYERS),
    "layer is another": described("c.json", ["b", "a"], CONFIG, *LAYERS),
    "config is no config": described("a", ["a", "b"], *LAYERS),
    "truncated": described("c.json", ["a", "b"], CONFIG, *LAYERS)[:9000],
    "truncated gzip": gzip.compress(described("c.json", ["a", "b"], CONFIG, *LAYERS))[:-50],
    "rubbish xz": lzma.compress(bytes(1024))[:30] + b"x" * 100,
    "manifest.json is an object": images.layer_tar([file("manifest.json", "{}")]),
    "manifest.json is deep": images.layer_tar([file("manifest.json", "[" * 100_000)]),
    "manifest.json of numbers": images.layer_tar([file("manifest.json", "[1]")]),
    "no images": images.layer_tar([file("manifest.json", "[]")]),
    "index without manifests": images.layer_tar([file("index.json", "{}"), file("oci-layout", "{}")]),
    "blob missing": layout_without(GOOD, GOOD.layer_digests[0][7:]),
    "config missing": layout_without(GOOD, GOOD.image_id[7:]),
    "manifest missing": layout_without(GOOD, GOOD.manifest_digest[7:]),
    "blob is another": layout_with({f"blobs/sha256/{GOOD.layer_digests[0][7:]}": GOOD.layers[1]}),
    "config is another": layout_with({f"blobs/sha256/{GOOD.image_id[7:]}": GOOD.config + b" "}),
    "digest is a path": layout_with(
        {
            "index.json": b'{"manifests": [{"mediaType": "%s", "digest": "sha256:../../x"}]}'
            % images.OCI_MANIFEST.encode()
        }
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_archive_is_refused_and_leaves_nothing(store, tmp_path, case):
    before, around = all_files(store), sorted(tmp_path.iterdir())
    with pytest.raises(InvalidError):
        await load(store, HOSTILE[case])
    assert all_files(store) == before
    assert names_in(store._temporary) == []
    assert sorted(tmp_path.iterdir()) == around
    assert not Path("/evil").exists()
    assert await store.list_images() == []


async def test_an_archive_of_very_old_docker_is_named(store):
    with pytest.raises(UnsupportedError, match=r"before 1\.10"):
        await load(store, images.layer_tar([file("repositories", "{}")]))


async def test_a_bomb_ends_at_the_limit(tmp_path):
    bomb = gzip.compress(images.layer_tar([file("a", bytes(80 << 20))]))
    async with opened(tmp_path / "small", max_layer_bytes=50 << 20) as store:
        with pytest.raises(ExhaustedError, match="larger than 50 MiB"):
            await load(store, bomb)
        with pytest.raises(ExhaustedError, match="larger than 50 MiB"):
            await store.import_root(pieces(bomb), NewImage())
        assert names_in(store._temporary) == []


async def test_too_many_members_are_refused(store):
    with pytest.raises(InvalidError, match="more than"):
        await load(store, images.layer_tar([file("same")] * 20_001))


async def test_a_load_that_is_cancelled_leaves_nothing(store):
    data, waiting = described("c.json", ["a", "b"], CONFIG, *LAYERS), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield data[:4000]
        waiting.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(load(store, endless()))
    await waiting.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert all_files(store) == set()
    assert names_in(store._temporary) == []


async def test_a_load_without_end_gives_its_place_back(store, monkeypatch):
    monkeypatch.setattr(loading, "INTAKE_TIMEOUT_S", 0.05)
    data = described("c.json", ["a", "b"], CONFIG, *LAYERS)

    async def endless() -> AsyncIterator[bytes]:
        yield data[:4000]
        await asyncio.Event().wait()

    for _ in range(loading.PARALLEL + 1):
        with pytest.raises(TimeoutExpiredError, match="no image after"):
            await load(store, endless())
    assert names_in(store._temporary) == []


@pytest.mark.parametrize("compression", COMPRESSORS)
async def test_a_root_file_system_becomes_an_image(store, tmp_path, compression):
    tar = images.layer_tar(SMALL[0])
    new = NewImage("root:1", changes=('CMD ["sh"]',), author="me", platform=Platform("linux", "arm64", "v8"))
    image = await store.import_root(pieces(COMPRESSORS[compression](tar), 700), new)
    assert image.diff_ids == (images.digest_of(tar),)
    assert (image.tags, image.config.cmd, str(image.platform)) == (
        ("docker.io/library/root:1",),
        ("sh",),
        "linux/arm64/v8",
    )
    assert [(entry.comment, entry.empty_layer) for entry in image.history] == [("Imported from -", False)]
    tree = await tree_of([store._layers.path(image.diff_ids[0])], tmp_path / "mnt")
    assert tree["etc/motd"]["data"] == images.digest_of(b"hi\n")[7:]
    assert names_in(store._temporary) == []


@pytest.mark.parametrize(
    "data", [b"", b"x" * 600, gzip.compress(b"x" * 600), gzip.compress(bytes(1024))[:-9]]
)
async def test_an_import_of_no_tar_leaves_nothing(store, data):
    with pytest.raises(InvalidError):
        await store.import_root(pieces(data), NewImage("root:1"))
    assert all_files(store) == set()
    assert await store.list_images() == []
