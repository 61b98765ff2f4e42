# SPDX-License-Identifier: Apache-2.0
"""What the store takes on disk, and what pruning gives back, against `du`."""

import os

import pytest

from hyperd.errors import InvalidError
from hyperd.host import process
from hyperd.image.content import hex_of
from hyperd.model.image import Digest, Image
from tests import images
from tests.images import file

BASE = [file("base", os.urandom(300_000))]


async def add(store, tmp_path, name: str, *layers, **options) -> Image:
    built = images.build([BASE, *layers], **options)
    layout = tmp_path / hex_of(built.manifest_digest)
    images.write_layout(built, layout, f"docker.io/library/{name}")
    events = [event async for event in store.pull(f"oci:{layout}:docker.io/library/{name}")]
    assert isinstance(events[-1], Image)
    return events[-1]


async def du(store) -> int:
    """Of all that belongs to images."""
    paths = [str(store._root / name) for name in ("blobs", "layers", "disks")]
    out = await process.run_checked(["du", "--block-size=1", "-sc", *paths], timeout_s=20)
    return int(out.stdout.split()[-2])


def blocks(*paths) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


async def test_usage_is_true_to_the_byte(store, tmp_path):
    one = await add(store, tmp_path, "one:1", [file("a", os.urandom(50_000))])
    two = await add(store, tmp_path, "two:1", [file("b", os.urandom(90_000))])
    same_blob_and_layer = await add(store, tmp_path, "plain:1", compression="none")
    rest = store._content.path(Digest("sha256:" + "0" * 64))
    rest.write_bytes(b"x" * 10_000)
    usage = await store.usage()
    assert usage.layers_bytes == await du(store)
    by_id = {each.image_id: each for each in usage.images}
    assert by_id.keys() == {one.image_id, two.image_id, same_blob_and_layer.image_id}
    base = store._layers.path(one.diff_ids[0])
    blob = store._content.path(images.build([BASE]).layer_digests[0])
    assert by_id[one.image_id].shared_bytes == by_id[two.image_id].shared_bytes
    assert blocks(base) <= by_id[same_blob_and_layer.image_id].shared_bytes
    assert by_id[one.image_id].shared_bytes >= blocks(base, blob)
    assert usage.unowned_bytes == blocks(rest)
    # Each byte once: what the images have alone, what two or three of them share, rests, and four directories.
    plain = store._content.path(same_blob_and_layer.diff_ids[0])
    directories = blocks(store._content.shared_blob_dir, rest.parent, store._layers.root, store._disks.root)
    assert usage.layers_bytes == (
        sum(each.unique_bytes for each in usage.images)
        + blocks(base, blob, plain)
        + blocks(rest)
        + directories
    )


async def test_pruning_takes_what_has_no_tag_and_says_what_it_gave_back(store, tmp_path):
    one = await add(store, tmp_path, "one:1", [file("a", os.urandom(50_000))])
    two = await add(store, tmp_path, "two:1", [file("b", os.urandom(90_000))])
    used = await add(store, tmp_path, "used:1", [file("c")])
    await store.tag("two:1", "one:1")
    await store.tag("two:1", "used:1")
    before = await du(store)
    done = await store.prune(in_use={used.image_id: "a container"})
    assert (done.untagged, done.deleted) == ((), (one.image_id, one.diff_ids[1]))
    assert done.reclaimed_bytes == before - await du(store) > 50_000
    assert {image.image_id for image in await store.list_images()} == {two.image_id, used.image_id}
    everything = await store.prune(everything=True)
    assert set(everything.untagged) == {f"docker.io/library/{name}:1" for name in ("one", "two", "used")}
    assert everything.deleted[-1] == two.diff_ids[0] or used.diff_ids[0] in everything.deleted
    assert await store.list_images() == []
    assert (await store.usage()).unowned_bytes == 0
    assert await store.prune(everything=True) == type(done)((), (), 0)


async def test_filters_are_dockers(store, tmp_path):
    old = await add(
        store,
        tmp_path,
        "old:1",
        top={"created": "2020-01-02T03:04:05Z"},
        config={"Labels": {"keep": "no", "a": "1"}},
    )
    new = await add(store, tmp_path, "new:1", config={"Labels": {"keep": "yes"}})
    for filters in (
        [("until", "2019-01-01")],
        [("until", "2020-01-02T03:04:04Z")],
        [("label", "a=2")],
        [("label", "keep"), ("label", "b")],
        [("label!", "keep")],
    ):
        assert (await store.prune(everything=True, filters=filters)).deleted == ()
    for bad in (
        [("until", "yesterday")],
        [("until", "1h"), ("until", "2h")],
        [("dangling", "true")],
        [("label", "")],
    ):
        with pytest.raises(InvalidError):
            await store.prune(everything=True, filters=bad)
    done = await store.prune(everything=True, filters=[("until", "24h"), ("label!", "keep=yes")])
    assert done.deleted[0] == old.image_id
    assert [image.image_id for image in await store.list_images()] == [new.image_id]


async def test_rests_of_broken_pulls_are_pruned_when_they_are_old(store):
    young, old = (store._content.path(Digest(f"sha256:{digit * 64}")) for digit in "01")
    for path in (young, old):
        path.write_bytes(b"x" * 5000)
    os.utime(old, (0, 0))
    freed = blocks(old)
    assert (await store.prune(filters=[("until", "1h")])).reclaimed_bytes == 0
    assert (await store.prune()).reclaimed_bytes == freed
    assert young.exists()
    assert not old.exists()


async def test_what_is_pinned_goes_when_the_last_pin_goes(store, tmp_path):
    image = await add(store, tmp_path, "one:1")
    layer = store._layers.path(image.diff_ids[0])
    async with store._garbage.pinned([Digest(image.image_id)]), store._garbage.pinned(image.diff_ids):
        async with store._garbage.pinned(image.diff_ids):
            await store.remove("one:1")
        assert layer.exists()
        assert (store._disks.root / hex_of(image.image_id)).exists()
    assert not layer.exists()
    assert not (store._disks.root / hex_of(image.image_id)).exists()
