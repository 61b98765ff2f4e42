# SPDX-License-Identifier: Apache-2.0
"""Every blob of an image is the layer that its config says, also when that layer is here from another blob."""

import asyncio
from pathlib import Path

import pytest

from hyperd.errors import InvalidError
from hyperd.image import OciImageStore
from hyperd.model.image import Digest, Image, LayerPhase, LayerProgress, LoadedImage
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_pull import phases, pulled
from tests.images import file
from tests.mounts import names_in

SECRET = images.build([[file("secret", "of the image that was here first")]])
LYING = images.build(
    [[file("other", "than the config says")]],
    config={"Cmd": ["lying"]},
    top={"rootfs": {"type": "layers", "diff_ids": [*SECRET.diff_ids]}},
)


async def test_a_blob_that_is_not_the_layer_is_refused_though_the_layer_is_here(hub, store):
    await pulled(store, await hub.push(SECRET, "first:1"))
    with pytest.raises(InvalidError, match="not the one that the image's config names"):
        await pulled(store, await hub.push(LYING, "lying:1"))
    assert [image.image_id for image in await store.list_images()] == [SECRET.image_id]
    assert names_in(store._temporary) == []


async def test_nor_is_it_loaded(store: OciImageStore, tmp_path: Path) -> None:
    def archive(built: images.BuiltImage, name: str) -> bytes:
        images.write_archive(built, tmp_path / "archive.tar", f"example.org/{name}:1")
        data: bytes = (tmp_path / "archive.tar").read_bytes()
        return data

    async def load(data: bytes) -> list[str]:
        async def chunks():
            yield data

        return [
            event.image.image_id async for event in store.load(chunks()) if isinstance(event, LoadedImage)
        ]

    assert await load(archive(SECRET, "first")) == [SECRET.image_id]
    with pytest.raises(InvalidError, match="not the one that the image's config names"):
        await load(archive(LYING, "lying"))


async def test_one_layer_in_two_blobs_brings_both(hub, store):
    """As gzip writers spell the empty layer; the later one is here already."""
    entries = [file("same", "in both")]
    await pulled(store, await hub.push(images.build([entries], compression="zstd"), "zstd:1"))
    twice = images.build([entries, entries], compression=("gzip", "zstd"))
    image, events = await pulled(store, await hub.push(twice, "twice:1"))
    assert image.diff_ids == twice.diff_ids
    assert all(store._content.is_intact(Digest(blob)) for blob in twice.layer_digests)
    assert len(names_in(store._layers.root)) == 1
    assert phases(events) == dict(zip(twice.layer_digests, (LayerPhase.DONE, LayerPhase.EXISTS), strict=True))
    saved = b"".join([chunk async for chunk in store.save([image.image_id])])
    assert all(blob in saved for blob in twice.layers)


async def test_a_blob_is_held_against_its_layer_once(hub, store):
    built = images.build([[file("same", "layer")]], compression="zstd")
    await pulled(store, await hub.push(images.build([[file("same", "layer")]]), "gzip:1"))
    await pulled(store, await hub.push(built, "zstd:1"))
    other = images.build([[file("same", "layer")]], compression="zstd", config={"Cmd": ["other"]})
    _, events = await pulled(store, await hub.push(other, "other:1"))
    told = [event.phase for event in events if isinstance(event, LayerProgress)]
    assert LayerPhase.CONVERTING not in told


async def test_a_bad_blob_of_one_pull_does_not_fail_the_good_one_of_another(hub, tmp_path):
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    mkfs = tmp_path / "mkfs"
    mkfs.write_text(
        f'#!/bin/sh\necho >> {begun}\nwhile [ ! -e {gate} ]; do sleep 0.01; done\nexec {images.mkfs_erofs()} "$@"\n'
    )
    mkfs.chmod(0o755)
    good, bad = await hub.push(SECRET, "good:1"), await hub.push(LYING, "bad:1")
    async with opened(tmp_path / "images", mkfs_erofs=str(mkfs), mkfs_user=None) as store:
        failing = asyncio.create_task(pulled(store, bad))
        await _exists(begun)
        succeeding = asyncio.create_task(_pull_noting(store, good, tmp_path / "converting"))
        await _exists(tmp_path / "converting")
        gate.touch()
        with pytest.raises(InvalidError, match="not the one that the image's config names"):
            await failing
        assert await succeeding == SECRET.image_id


async def _pull_noting(store: OciImageStore, name: str, note: Path) -> str:
    found = ""
    async for event in store.pull(name):
        if isinstance(event, LayerProgress) and event.phase is LayerPhase.CONVERTING:
            note.touch()
        elif isinstance(event, Image):
            found = event.image_id
    return found


async def _exists(path: Path) -> None:
    async with asyncio.timeout(30):
        while not path.exists():  # another process makes it
            await asyncio.sleep(0.01)
