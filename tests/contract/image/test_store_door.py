# SPDX-License-Identifier: Apache-2.0
"""One body, two subjects: the fake that the rooms above are tested with promises what the real store does."""

import contextlib
import io
import json
import tarfile

import pytest

from hyperd.errors import ImageNotFoundError, InvalidError, NotFoundError, WrongStateError
from hyperd.image.base import ImageStore
from hyperd.model.image import Image, ImageId, Platform, PushedTag
from tests import images
from tests.contract.image.conftest import opened
from tests.fakes.image import FakeImageStore, full_name
from tests.registry import Registry, registry


class Subject:
    """A store and a way to publish something that it can pull."""

    def __init__(self, store: ImageStore, hub: Registry | None) -> None:
        self.store = store
        self._hub = hub

    async def publish(self, name: str) -> str:
        if isinstance(self.store, FakeImageStore):
            self.store.publish(name)
            return full_name(name)
        assert self._hub is not None
        return await self._hub.push(images.build([[images.file("name", name)], [images.file("b")]]), name)

    def unknown(self) -> str:
        return "unknown:1" if self._hub is None else f"{self._hub.address}/unknown:1"


@pytest.fixture(params=["fake", "oci"])
async def subject(request, tmp_path):
    if request.param == "fake":
        yield Subject(FakeImageStore(), None)
        return
    async with registry(tmp_path / "hub") as hub, opened(tmp_path / "images") as store:
        yield Subject(store, hub)


async def renamed(archive: bytes, name: str, other: str):
    """The archive, its image called otherwise."""
    if not archive.startswith(b"oci-layout"):  # the fake's, which is but names
        yield archive.replace(name.encode(), other.encode())
        return
    content = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=content, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            data = b"" if file is None else file.read()
            if member.name.endswith(".json"):
                data = data.replace(name.encode(), other.encode())
            if member.name != "repositories":
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    yield content.getvalue()


async def pull(store, name) -> Image:
    last = None
    async with contextlib.aclosing(store.pull(name)) as events:
        async for event in events:
            last = event
    assert isinstance(last, Image)
    return last


async def test_what_was_pulled_is_found_by_name_and_id(subject):
    store = subject.store
    name = await subject.publish("app:1")
    image = await pull(store, name)
    assert image.tags == (name,)
    for reference in (name, image.image_id, image.image_id[7:19], image.digests[0]):
        assert await store.get(reference) == image
    assert await store.list_images() == [image]
    disk = await store.root_disk(image.image_id)
    assert (disk.layers, disk.path.suffix) == (2, ".vmdk")


async def test_what_is_not_there_is_said(subject):
    store = subject.store
    with pytest.raises(ImageNotFoundError):
        await store.get("nothing:1")
    with pytest.raises(InvalidError):
        await store.get("")
    with pytest.raises(NotFoundError):
        await pull(store, subject.unknown())
    with pytest.raises(ImageNotFoundError):
        await store.remove("nothing:1")
    with pytest.raises(ImageNotFoundError):
        await store.root_disk(ImageId("sha256:" + "0" * 64))
    assert await store.list_images() == []


async def test_removing_respects_who_uses_it(subject):
    store = subject.store
    name = await subject.publish("app:1")
    image = await pull(store, name)
    in_use = {image.image_id: "a container"}
    with pytest.raises(WrongStateError):
        await store.remove(name, in_use=in_use)
    forced = await store.remove(name, force=True, in_use=in_use)
    assert name in forced.untagged
    assert forced.deleted == ()
    assert (await store.get(image.image_id)).tags == ()
    assert image.image_id in (await store.remove(image.image_id)).deleted
    assert await store.list_images() == []


async def test_a_name_moves_and_what_is_left_without_one_is_pruned(subject):
    store = subject.store
    one = await pull(store, await subject.publish("one:1"))
    two = await pull(store, await subject.publish("two:1"))
    assert await store.tag(two.image_id, one.tags[0]) == one.tags[0]
    assert (await store.get(one.tags[0])).image_id == two.image_id
    assert (await store.get(one.image_id)).tags == ()
    with pytest.raises(ImageNotFoundError):
        await store.tag("nothing:1", "other:1")
    with pytest.raises(InvalidError):
        await store.tag(two.image_id, f"other@{two.manifest_digest}")
    assert (await store.prune(in_use={one.image_id: "a container"})).deleted == ()
    with pytest.raises(InvalidError):
        await store.prune(filters=[("colour", "blue")])
    pruning = await store.prune()
    assert one.image_id in pruning.deleted
    assert pruning.reclaimed_bytes > 0
    assert [each.image_id for each in (await store.usage()).images] == [two.image_id]
    assert [image.image_id for image in await store.list_images()] == [two.image_id]


async def test_what_is_for_another_platform_is_not_saved(subject):
    store = subject.store
    image = await pull(store, await subject.publish("app:1"))
    assert b"".join([data async for data in store.save([image.tags[0]], platform=image.platform)])
    with pytest.raises(NotFoundError, match="does not provide the specified platform"):
        _ = [data async for data in store.save([image.tags[0]], platform=Platform("linux", "s390x"))]


async def test_a_search_finds_what_the_registry_has(subject):
    store = subject.store
    name = (await subject.publish("team/app:1")).rpartition(":")[0]
    host = name.partition("/")[0]
    assert [image.name for image in await store.search(f"{host}/app")] == [name]
    assert await store.search(f"{host}/nothing") == []
    with pytest.raises(InvalidError):
        await store.search("")


async def test_a_push_ends_with_its_tags(subject):
    store = subject.store
    image = await pull(store, await subject.publish("app:1"))
    events = [event async for event in store.push(image.tags[0])]
    assert isinstance(events[-1], PushedTag)
    assert (events[-1].reference, events[-1].manifest_digest) == (image.tags[0], image.manifest_digest)
    assert (await store.manifest(image.tags[0])).digest == image.manifest_digest
    with pytest.raises(ImageNotFoundError):
        _ = [event async for event in store.push("nothing:1")]


async def test_of_what_was_built_only_the_layers_on_top_are_read(subject):
    store = subject.store
    base = await pull(store, await subject.publish("app:1"))
    layer = images.layer_tar([images.file("made", "here")])
    top = images.digest_of(layer)
    asked = []

    @contextlib.asynccontextmanager
    async def read(diff_id):
        asked.append(diff_id)
        yield content()

    async def content():
        yield layer

    body = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [*base.diff_ids, top, top]}}
    config = json.dumps(body).encode()
    image = await store.take_built(config, read, ["docker.io/library/mine:1"])
    assert (image.image_id, image.tags) == (images.digest_of(config), ("docker.io/library/mine:1",))
    again = await store.take_built(config, read, ["docker.io/library/mine:2"])
    assert again.tags == ("docker.io/library/mine:1", "docker.io/library/mine:2")
    assert asked == [top]
    assert await store.get("mine:2") == again


async def test_the_builders_name_is_hyperds_to_give(subject):
    store = subject.store
    image = await pull(store, await subject.publish("app:1"))
    name = "hyper/builder:0123456789ab"
    with pytest.raises(InvalidError, match="hyperd keeps"):
        await store.tag(image.image_id, name)
    archive = b"".join([piece async for piece in store.save(image.tags)])
    ours, theirs = f"docker.io/{name}", image.tags[0]
    with pytest.raises(InvalidError, match="hyperd keeps"):
        _ = [event async for event in store.load(renamed(archive, theirs, ours))]
    assert [each.tags for each in await store.list_images()] == [image.tags]
    _ = [event async for event in store.load(renamed(archive, theirs, ours), ours=True)]
    assert ours in {tag for each in await store.list_images() for tag in each.tags}
