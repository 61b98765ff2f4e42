# SPDX-License-Identifier: Apache-2.0
"""Pulls from registries that fail at each step: a clear error, nothing half-made, and what was whole is not lost."""

import asyncio
import os

import pytest

from hyperd.errors import ExhaustedError, HyperError, InvalidError, UnavailableError
from hyperd.image import download
from hyperd.model.image import Digest
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_pull import leftovers, pulled
from tests.contract.image.troubled import FLOOD, HOLD, STALL, answer, troubled
from tests.images import file
from tests.mounts import names_in, small_filesystem

BYTES = os.urandom(300_000)
BUILT = images.build([[file("a", "one" * 1000)], [file("b", BYTES)]])
MANIFEST, CONFIG, LAYER = (
    "/v2/app/manifests/",
    f"/v2/app/blobs/{BUILT.image_id}",
    f"/v2/app/blobs/{BUILT.layer_digests[1]}",
)
REPLIES = {
    "garbage": answer(
        "200 OK", "Content-Type: application/vnd.oci.image.manifest.v1+json", body=b"\x00garbage" * 100
    ),
    "fails": answer("500 Internal Server Error", body=b"<html>" + b"x" * 100_000),
    "redirects": answer("307 Temporary Redirect", "Location: /v2/app/blobs/round"),
    "dies half-way": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"half" * 1000,
    "too much": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (20 << 20),
    "no http": b"not even http",
}


@pytest.mark.parametrize("step", [MANIFEST, CONFIG, LAYER], ids=["manifest", "config", "layer"])
@pytest.mark.parametrize("reply", REPLIES)
async def test_trouble_at_any_step_is_a_clear_error_and_leaves_nothing_half_made(hub, store, step, reply):
    await hub.push(BUILT, "app:1")

    def decide(request, _):
        wanted = request.path.startswith((step, "/v2/app/blobs/round")) and request.method == "GET"
        return REPLIES[reply] if wanted else None

    async with troubled(hub.address, decide) as between:
        with pytest.raises(HyperError) as caught:
            await pulled(store, f"{between.address}/app:1")
    assert isinstance(caught.value, UnavailableError | InvalidError), repr(caught.value)
    assert len(str(caught.value)) < 2000
    assert caught.value.subject
    assert names_in(store._temporary) == names_in(store._disks.root) == []
    assert await store.list_images() == []
    for digest in map(Digest, BUILT.blobs):
        assert not store._content.has(digest) or store._content.is_intact(digest)
    if step != LAYER:
        assert leftovers(store) == []


@pytest.mark.parametrize("step", [MANIFEST, CONFIG, LAYER], ids=["manifest", "config", "layer"])
async def test_a_limit_is_waited_for_as_the_registry_says(hub, store, step):
    await hub.push(BUILT, "app:1")
    limited: list[object] = []

    def decide(request, _):
        if request.path.startswith(step) and not limited:
            limited.append(request)
            return answer("429 Too Many Requests", "Retry-After: 1")
        return None

    async with troubled(hub.address, decide) as between:
        image, _ = await pulled(store, f"{between.address}/app:1")
    assert (image.image_id, len(limited)) == (BUILT.image_id, 1)


async def test_a_layer_that_stands_still_is_given_up_and_the_next_pull_goes_on(hub, tmp_path):
    await hub.push(BUILT, "app:1")
    async with opened(tmp_path / "images", stall_timeout_s=1) as store:
        async with troubled(
            hub.address, lambda request, _: STALL if request.path == LAYER else None
        ) as between:
            with pytest.raises(UnavailableError, match="has sent nothing for 1 s"):
                await pulled(store, f"{between.address}/app:1")
        assert store._content.has(Digest(BUILT.layer_digests[0]))
        assert names_in(store._temporary) == []
        async with troubled(hub.address, lambda *_: None) as between:
            image, _ = await pulled(store, f"{between.address}/app:1")
            asked = [request.path for request in between.seen]
        assert image.image_id == BUILT.image_id
        assert LAYER in asked
        assert f"/v2/app/blobs/{BUILT.layer_digests[0]}" not in asked


async def test_a_layer_that_is_more_than_its_manifest_says_is_given_up_while_it_comes(hub, store):
    await hub.push(BUILT, "app:1")
    async with troubled(
        hub.address, lambda request, _: FLOOD if request.path == LAYER and request.method == "GET" else None
    ) as between:
        with pytest.raises(UnavailableError, match="sends more than the manifest says"):
            await pulled(store, f"{between.address}/app:1")
    assert names_in(store._temporary) == names_in(store._disks.root) == []
    assert not store._content.has(Digest(BUILT.layer_digests[1]))


@pytest.mark.parametrize("held", [{1, 2}, {2}], ids=["at once", "one after the other"])
async def test_a_layer_that_the_manifest_has_twice_is_fetched_twice(hub, store, monkeypatch, held):
    """Legal, and skopeo looks only for what is here already: the registry sends no more than it was asked for."""
    layer = [file("b", os.urandom(16 << 20))]
    built = images.build([layer, layer])
    await hub.push(built, "app:1")
    path, loop, looked = (
        f"/v2/app/blobs/{built.layer_digests[0]}",
        asyncio.get_running_loop(),
        download._sizes_under_way,
    )
    looks: list[int] = []

    def looking(layout):
        if looks[-1:] == [len(held)]:  # and that look was content
            loop.call_soon_threadsafe(between.released.set)
        sizes = looked(layout)
        looks.append(sum(size > 15 << 20 for size in sizes.values()))
        return sizes

    def decide(request, seen):
        return HOLD if request.path == path and request.method == "GET" and seen in held else None

    async with troubled(hub.address, decide) as between:
        monkeypatch.setattr(download, "_sizes_under_way", looking)
        image, _ = await pulled(store, f"{between.address}/app:1")
        asked = [request.path for request in between.seen if request.method == "GET"]
    assert image.image_id == built.image_id
    assert asked.count(path) == 2
    assert len(held) in looks


async def test_a_disk_that_others_fill_meanwhile_ends_a_pull(hub, tmp_path):
    """It has room at the beginning."""
    await hub.push(images.build([[file("b", BYTES)]]), "app:1")
    async with small_filesystem(tmp_path / "small", size_mib=16) as root:

        def decide(request, _):
            if request.path != LAYER or request.method != "GET":
                return None
            (root / "others").write_bytes(bytes(12 << 20))
            return STALL

        async with (
            opened(root / "images", reserve_bytes=8 << 20) as store,
            troubled(hub.address, decide) as between,
        ):
            with pytest.raises(ExhaustedError, match="no space for the image"):
                await pulled(store, f"{between.address}/app:1")
            assert leftovers(store) == []
