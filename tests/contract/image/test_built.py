# SPDX-License-Identifier: Apache-2.0
"""Images that a build has made: a config that is ready, and the layers that the store does not have."""

import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from hyperd.errors import HyperError, InvalidError
from hyperd.image.content import digest_of
from hyperd.model.image import Digest, Image, NewImage
from tests import images
from tests.contract.image.test_commit import all_files, pieces, pulled
from tests.images import file


class Engine:
    """What a builder would hold: an image on ``base``, with a layer for each of ``contents``."""

    def __init__(self, base: images.BuiltImage | None, *contents: str) -> None:
        self.layers = [images.layer_tar([file("srv/made", text)]) for text in contents]
        self.by_digest = {Digest(images.digest_of(layer)): layer for layer in self.layers}
        lower = list(base.diff_ids) if base is not None else []
        body = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["cat"], "Healthcheck": {"Test": ["CMD", "true"]}},
            "rootfs": {
                "type": "layers",
                "diff_ids": [*lower, *(images.digest_of(each) for each in self.layers)],
            },
        }
        self.config = json.dumps(body).encode()
        self.asked: list[Digest] = []

    @contextlib.asynccontextmanager
    async def read(self, diff_id: Digest) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append(diff_id)
        yield pieces(self.by_digest[diff_id], 1000)


async def loaded(store, image: Image) -> list[object]:
    """What another store makes of what this one saves."""
    return [event async for event in store.load(store.save([image.image_id]))]


async def test_only_the_layers_that_are_not_here_are_read(store, hub):
    base = images.busybox_image()
    await pulled(store, hub, base)
    engine = Engine(base, "one", "two", "one")
    image = await store.take_built(engine.config, engine.read, ["mine:1", "mine:2"])

    assert image.image_id == digest_of(engine.config)
    assert image.tags == ("docker.io/library/mine:1", "docker.io/library/mine:2")
    assert len(image.diff_ids) == len(base.diff_ids) + 3
    assert engine.asked == [Digest(images.digest_of(layer)) for layer in engine.layers[:2]]
    assert json.loads(image.config.healthcheck_json) == {"Test": ["CMD", "true"]}
    assert (await store.root_disk(image.image_id)).layers == len(image.diff_ids)
    assert await loaded(store, image)


async def test_the_next_build_stands_on_what_the_last_one_left(store, hub):
    base = images.busybox_image()
    await pulled(store, hub, base)
    first, second = Engine(base, "one"), Engine(base, "one", "two")
    await store.take_built(first.config, first.read, ["mine"])
    await store.take_built(second.config, second.read, ["mine"])
    assert second.asked == [Digest(images.digest_of(second.layers[1]))]
    again = Engine(base, "one", "two")
    assert (await store.take_built(again.config, again.read, ["more"])).tags == (
        "docker.io/library/mine:latest",
        "docker.io/library/more:latest",
    )
    assert not again.asked


async def test_an_image_on_nothing(store):
    engine = Engine(None, "one")
    image = await store.take_built(engine.config, engine.read, [])
    assert image.tags == ()
    assert (await store.get(image.image_id)).image_id == image.image_id
    removal = await store.remove(image.image_id)
    assert removal.deleted


async def test_an_image_without_a_layer(store):
    """FROM scratch, and LABEL: its disk is empty, and there."""
    engine = Engine(None)
    for _ in range(2):
        image = await store.take_built(engine.config, engine.read, ["none:1"])
        assert image.diff_ids == ()
        assert (await store.root_disk(image.image_id)).path.exists()
        assert (await store.remove(image.image_id, force=True)).deleted


@pytest.mark.parametrize("fault", ["another layer", "no tar", "breaks off", "config", "tag"])
async def test_what_is_not_as_it_should_be_leaves_nothing(store, hub, fault):
    base = images.busybox_image()
    await pulled(store, hub, base)
    before = all_files(store)
    engine = Engine(base, "one", "two")
    second = Digest(images.digest_of(engine.layers[1]))
    tags = ["mine"]

    async def broken() -> AsyncIterator[bytes]:
        yield engine.layers[1][:700]
        raise InvalidError("the builder has gone")

    @contextlib.asynccontextmanager
    async def read(diff_id: Digest) -> AsyncIterator[AsyncIterator[bytes]]:
        async with engine.read(diff_id) as data:
            yield broken() if fault == "breaks off" and diff_id == second else data

    if fault == "another layer":
        engine.by_digest[second] = images.layer_tar([file("srv/made", "three")])
    elif fault == "no tar":
        engine.by_digest[second] = b"no tar" * 1000
    elif fault == "config":
        engine.config = b"{"
    elif fault == "tag":
        tags = ["mine@sha256:" + "0" * 64]
    with pytest.raises(HyperError):
        await store.take_built(engine.config, read, tags)
    assert all_files(store) == before
    assert len(await store.list_images()) == 1


async def test_many_layers_do_not_wait_for_each_other(store):
    """More than can be taken in at a time: each has its name before the next begins."""
    engine = Engine(None, *(f"layer {number}" for number in range(12)))
    image = await store.take_built(engine.config, engine.read, ["tall"])
    assert len(image.diff_ids) == 12
    committed = await store.commit(image.image_id, pieces(images.layer_tar([file("x", "y")])), NewImage())
    assert len(committed.diff_ids) == 13
