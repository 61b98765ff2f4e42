# SPDX-License-Identifier: Apache-2.0
"""Pulling through the real skopeo, registry and mkfs.erofs."""

import base64

import pytest

from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    HyperError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from hyperd.image import PullEvent, parse_platform
from hyperd.model.image import Image, LayerPhase, LayerProgress, PullNotice
from tests import images
from tests.contract.image.conftest import opened
from tests.images import file
from tests.mounts import names_in, small_filesystem
from tests.registry import PASSWORD, USER, registry

AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64", "variant": "v8"}
SMALL = [[file("a", "one")], [file("b", "two")]]


async def pulled(store, reference, **options) -> tuple[Image, list[PullEvent]]:
    events = [event async for event in store.pull(reference, **options)]
    assert isinstance(events[-1], Image)
    return events[-1], events


def phases(events) -> dict[str, LayerPhase]:
    return {event.digest: event.phase for event in events if isinstance(event, LayerProgress)}


def notices(events) -> list[str]:
    return [event.text for event in events if isinstance(event, PullNotice)]


def leftovers(store) -> list[str]:
    """What a pull that failed may not leave: anything half-made, any layer, any disk."""
    return [*names_in(store._temporary), *names_in(store._layers.root), *names_in(store._disks.root)]


async def test_a_pulled_image_is_what_was_pushed(hub, store):
    built = images.busybox_image(User="app", Entrypoint=["/bin/echo"], StopSignal="SIGINT", Labels={"a": "b"})
    name = await hub.push(built, "busybox:1")
    image, events = await pulled(store, name)
    assert (image.image_id, image.manifest_digest) == (built.image_id, built.manifest_digest)
    assert image.tags == (name,)
    assert image.digests == (f"{hub.address}/busybox@{built.manifest_digest}",)
    assert image.diff_ids == built.diff_ids
    assert (image.config.user, image.config.entrypoint, image.config.stop_signal) == (
        "app",
        ("/bin/echo",),
        "SIGINT",
    )
    assert phases(events) == dict.fromkeys(built.layer_digests, LayerPhase.DONE)
    assert image.size_bytes == sum(len(images.layer_tar(entries)) for entries in (
        images.busybox_entries(), images.usage_entries(), images.changes_entries()))  # fmt: skip
    assert await store.get(name) == image
    assert names_in(store._temporary) == []


@pytest.mark.parametrize("docker", [False, True])
async def test_an_index_gives_this_hosts_image_and_no_attestation(hub, store, docker):
    mine = images.build(SMALL, docker=docker)
    other = images.build([[file("a", "arm")]], architecture="arm64", docker=docker)
    index = images.index([(other, ARM64), (mine, AMD64)], docker=docker, attestation=not docker)
    name = await hub.push(index, "multi:1")
    image, _ = await pulled(store, name)
    assert (image.image_id, image.manifest_digest) == (mine.image_id, mine.manifest_digest)
    assert image.digests == (f"{hub.address}/multi@{index.manifest_digest}",)
    assert await store.get(f"{hub.address}/multi@{index.manifest_digest}") == image
    foreign, _ = await pulled(store, name, platform=parse_platform("linux/arm64"))
    assert foreign.image_id == other.image_id
    with pytest.raises(UnsupportedError, match=r"linux/amd64.*wanted is linux/s390x"):
        await pulled(store, name, platform=parse_platform("linux/s390x"))


@pytest.mark.parametrize(
    ("docker", "compression"),
    [(False, "gzip"), (False, "zstd"), (False, "none"), (True, "gzip"), (True, "none")],
)
async def test_every_compression_gives_the_same_image_as_its_digest_says(hub, store, docker, compression):
    built = images.build(SMALL, docker=docker, compression=compression)
    name = await hub.push(built, "small:1")
    image, _ = await pulled(store, f"{hub.address}/small@{built.manifest_digest}")
    assert (image.image_id, image.tags) == (built.image_id, ())
    assert image.digests == (f"{hub.address}/small@{built.manifest_digest}",)
    tagged, events = await pulled(store, name)
    assert (tagged.image_id, tagged.tags, phases(events)) == (image.image_id, (name,), {})
    kept = {f"sha256:{name}" for name in names_in(store._content.shared_blob_dir / "sha256")}
    assert kept == {*built.blobs, built.manifest_digest}


async def test_a_pull_tells_what_docker_tells(hub, store):
    built = images.busybox_image()
    first, second = await hub.push(built, "small:1"), await hub.push(built, "small:2")
    told = [notices((await pulled(store, name))[1]) for name in (first, first, second)]
    head, digest = "{}: Pulling from small", f"Digest: {built.manifest_digest}"
    assert told == [
        [head.format(1), digest, f"Status: Downloaded newer image for {first}"],
        [head.format(1), digest, f"Status: Image is up to date for {first}"],
        [head.format(2), digest, f"Status: Downloaded newer image for {second}"],
    ]


async def test_a_second_image_shares_layers(hub, store):
    base = [file("base", "x" * 100_000)]
    first, second = images.build([base, [file("a", "1")]]), images.build([base, [file("a", "2")]])
    await pulled(store, await hub.push(first, "first:1"))
    _, events = await pulled(store, await hub.push(second, "second:1"))
    assert phases(events) == {
        second.layer_digests[0]: LayerPhase.EXISTS,
        second.layer_digests[1]: LayerPhase.DONE,
    }
    assert len(names_in(store._layers.root)) == 3


async def test_the_same_layers_compressed_otherwise_are_converted_once(hub, store):
    gzip, zstd = images.build(SMALL, compression="gzip"), images.build(SMALL, compression="zstd")
    first, _ = await pulled(store, await hub.push(gzip, "x:gzip"))
    second, _ = await pulled(store, await hub.push(zstd, "x:zstd"))
    assert first.image_id == second.image_id
    assert len(second.tags) == 2
    assert second.manifest_digest == zstd.manifest_digest


async def test_an_image_without_layers_gets_an_empty_root(hub, store):
    image, _ = await pulled(store, await hub.push(images.build([]), "nothing:1"))
    assert image.diff_ids == ()
    assert (await store.root_disk(image.image_id)).layers == 1


async def test_a_layer_used_twice_is_two_partitions(hub, store):
    image, _ = await pulled(store, await hub.push(images.build([SMALL[0], SMALL[1], SMALL[0]]), "twice:1"))
    assert (await store.root_disk(image.image_id)).layers == 3
    assert len(names_in(store._layers.root)) == 2


async def test_an_image_of_very_many_layers_is_one_disk(store, tmp_path):
    built = images.build([[file(f"file-{number}", str(number))] for number in range(64)], compression="none")
    images.write_layout(built, tmp_path / "layout", "example.org/many:1")
    image, _ = await pulled(store, f"oci:{tmp_path}/layout:example.org/many:1")
    assert (await store.root_disk(image.image_id)).layers == len(image.diff_ids) == 64


async def test_a_moved_tag_leaves_the_old_image_nameless(hub, store):
    first, second = images.build([[file("a", "1")]]), images.build([[file("a", "2")]])
    name = await hub.push(first, "moving:1")
    old, _ = await pulled(store, name)
    await hub.push(second, "moving:1")
    new, _ = await pulled(store, name)
    assert (await store.get(name)).image_id == new.image_id == second.image_id
    assert (await store.get(old.image_id)).tags == ()


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("{hub}/small:unknown", NotFoundError),
        ("{hub}/unknown:1", NotFoundError),
        ("{hub}/small@sha256:" + "0" * 64, NotFoundError),
        ("127.0.0.1:1/small:1", UnavailableError),
        ("UPPER/case", InvalidError),
        ("oci:/nonexistent", NotFoundError),
        ("docker-archive:/nonexistent", NotFoundError),
        ("docker-archive:relative", InvalidError),
    ],
)
async def test_what_cannot_be_pulled_is_a_clear_error(hub, store, reference, kind):
    await hub.push(images.build(SMALL), "small:1")
    with pytest.raises(kind) as caught:
        await pulled(store, reference.format(hub=hub.address))
    assert "level=fatal" not in str(caught.value)
    assert leftovers(store) == []
    assert await store.list_images() == []


@pytest.mark.parametrize(
    ("built", "kind", "says"),
    [
        (images.build(SMALL, architecture="arm64"), UnsupportedError, "linux/arm64, wanted is linux/amd64"),
        (images.build(SMALL, layer_extra={"urls": ["https://example.org/x"]}), UnsupportedError, "foreign"),
        (images.build(SMALL, top={"rootfs": {"diff_ids": []}}), InvalidError, "2 layers, the config 0"),
        (images.build(SMALL, top={"rootfs": {"diff_ids": ["sha256:" + "0" * 64, "sha256:" + "1" * 64]}}),
         InvalidError, "not the one that the image's config names"),
        (images.build([b"no tar at all" * 100]), InvalidError, "not a tar archive"),
    ],
)  # fmt: skip
async def test_what_cannot_be_run_is_refused(hub, store, built, kind, says):
    name = await hub.push(built, "bad:1")
    with pytest.raises(kind, match=says):
        await pulled(store, name)
    assert leftovers(store) == []
    assert await store.list_images() == []


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], lambda data: data[:-10], lambda _: b""],
)
async def test_a_layer_damaged_at_the_registry_is_not_kept(hub, store, damage):
    built = images.build([[file("a", "x" * 10_000)]])
    name = await hub.push(built, "broken:1")
    blob = hub.blob_path(built.layer_digests[0])
    good = blob.read_bytes()
    blob.write_bytes(damage(good))
    with pytest.raises(UnavailableError):
        await pulled(store, name)
    assert leftovers(store) == []
    assert not store._content.has(built.layer_digests[0])
    blob.write_bytes(good)
    assert (await pulled(store, name))[0].image_id == built.image_id


async def test_a_blob_damaged_here_is_fetched_anew(hub, store):
    built = images.build([[file("a", "x" * 10_000)]])
    name = await hub.push(built, "local:1")
    store._content.path(built.layer_digests[0]).write_bytes(b"x" * len(built.layers[0]))
    with pytest.raises(UnavailableError, match="a stored layer was damaged"):
        await pulled(store, name)
    assert (await pulled(store, name))[0].image_id == built.image_id


async def test_a_layer_file_that_vanished_is_made_again(hub, store):
    built = images.build(SMALL)
    name = await hub.push(built, "healed:1")
    image, _ = await pulled(store, name)
    store._layers.path(image.diff_ids[0]).unlink()
    with pytest.raises(UnavailableError, match="damaged"):
        await store.root_disk(image.image_id)
    await pulled(store, name)
    assert (await store.root_disk(image.image_id)).layers == 2


async def test_no_space_for_the_blobs_is_known_before_the_first(hub, tmp_path):
    name = await hub.push(
        images.build([[file("a", bytes(range(256)) * 40_000)]], compression="none"), "big:1"
    )
    async with (
        small_filesystem(tmp_path / "small", size_mib=8) as root,
        opened(root / "images", reserve_bytes=1 << 20) as store,
    ):
        with pytest.raises(ExhaustedError, match="no space left for the image"):
            await pulled(store, name)
        assert leftovers(store) == []


async def test_no_space_for_the_layers_leaves_only_whole_blobs(hub, tmp_path):
    built = images.build([[file("zeros", bytes(100 << 20))], [file("b", "two")]])
    name = await hub.push(built, "bomb:1")
    async with (
        small_filesystem(tmp_path / "small", size_mib=40) as root,
        opened(root / "images", reserve_bytes=8 << 20) as store,
    ):
        with pytest.raises(ExhaustedError):
            await pulled(store, name)
        assert names_in(store._temporary) == names_in(store._disks.root) == []
        assert f"{built.diff_ids[0][7:]}.erofs" not in names_in(store._layers.root)
        assert await store.list_images() == []


async def test_layouts_and_archives_are_pulled_like_registries(store, tmp_path):
    built, docker = images.build(SMALL), images.build([SMALL[0]], compression="none", docker=True)
    nested = images.index([(images.build(SMALL, architecture="arm64"), ARM64), (built, AMD64)])
    images.write_layout(nested, tmp_path / "layout", "example.org/team/app:3")
    images.write_archive(nested, tmp_path / "oci.tar", "latest")
    images.write_docker_archive(docker, tmp_path / "docker.tar", ["team/saved:2"])
    image, _ = await pulled(store, f"oci:{tmp_path}/layout:example.org/team/app:3")
    assert (image.image_id, image.tags, image.digests) == (built.image_id, ("example.org/team/app:3",), ())
    image, _ = await pulled(store, f"oci-archive:{tmp_path}/oci.tar")
    assert image.image_id == built.image_id
    image, _ = await pulled(store, f"docker-archive:{tmp_path}/docker.tar")
    assert (image.image_id, image.tags) == (docker.image_id, ("docker.io/team/saved:2",))
    assert (await store.get("team/saved:2")).image_id == docker.image_id


async def test_a_daemon_that_is_not_there_is_unavailable(store):
    with pytest.raises(UnavailableError, match="Docker daemon"):
        await pulled(store, "docker-daemon:nothing:latest")


async def test_a_locked_registry_wants_a_login(tmp_path):
    async with registry(tmp_path / "locked", locked=True) as hub:
        name = f"{hub.address}/private:1"
        async with opened(tmp_path / "images") as store:
            with pytest.raises(DeniedError, match="login"):
                await pulled(store, name)
        auth = tmp_path / "auth.json"
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        auth.write_text(f'{{"auths": {{"{hub.address}": {{"auth": "{login}"}}}}}}')
        async with opened(tmp_path / "images", authfile=auth) as store:
            with pytest.raises(HyperError) as caught:
                await pulled(store, name)
            assert isinstance(caught.value, NotFoundError)  # let in, and nothing there
