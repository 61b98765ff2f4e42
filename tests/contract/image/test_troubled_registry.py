# SPDX-License-Identifier: Apache-2.0
"""Registries that stall, break off, limit, redirect in circles, talk nonsense: an end, a clear error, nothing left."""

import os

import pytest

from hyperd.errors import HyperError, UnavailableError
from hyperd.model.image import PushedTag
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_push import fetched, pulled, pushed
from tests.contract.image.troubled import CUT, STALL, answer, troubled
from tests.images import file
from tests.mounts import names_in

BUILT = images.build([[file("a", "one" * 1000)], [file("b", os.urandom(100_000))]])


async def test_a_connection_that_breaks_is_tried_again_and_no_whole_blob_sent_twice(hub, store):
    """It breaks in the last blob, the config, which skopeo sends when all layers are whole."""
    uploads: list[str] = []

    def decide(request, _):
        if request.method == "PATCH":
            uploads.append(request.path)
            return CUT if len(uploads) == len(BUILT.blobs) else None
        return None

    async with troubled(hub.address, decide) as between:
        await pulled(store, await hub.push(BUILT, "source:1"))
        name = await store.tag(BUILT.image_id, f"{between.address}/flaky:1")
        [tag], _, _ = await pushed(store, name)
        assert tag.manifest_digest == BUILT.manifest_digest
        assert len(uploads) == len(BUILT.blobs) + 1
    assert await fetched(f"{hub.address}/flaky:1") == BUILT.manifest


async def test_a_limit_is_waited_for_as_the_registry_says(hub, store):
    def decide(request, seen):
        limited = request.method == "POST" and seen == 1
        return answer("429 Too Many Requests", "Retry-After: 1") if limited else None

    async with troubled(hub.address, decide) as between:
        await pulled(store, await hub.push(BUILT, "source:1"))
        name = await store.tag(BUILT.image_id, f"{between.address}/limited:1")
        assert (await pushed(store, name))[0] == [
            PushedTag(name, BUILT.manifest_digest, len(BUILT.manifest))  # type: ignore[arg-type]
        ]


@pytest.mark.parametrize(
    "reply",
    [
        STALL,
        answer("200 OK", body=b"\x00garbage" * 100),
        answer("307 Temporary Redirect", "Location: /v2/round/and/round"),
        answer("500 Internal Server Error", body=b"<html>" + b"x" * 100_000),
        b"not even http",
    ],
    ids=["stall", "garbage", "redirects", "fails", "no http"],
)
async def test_nonsense_ends_in_a_clear_error_and_leaves_nothing(hub, tmp_path, reply):
    async with opened(tmp_path / "images") as store:
        await pulled(store, await hub.push(BUILT, "source:1"))
    asked = ("POST", "PATCH", "PUT") if reply != STALL else ("PATCH",)
    async with (
        troubled(hub.address, lambda request, _: reply if request.method in asked else None) as between,
        opened(tmp_path / "images", stall_timeout_s=3) as store,
    ):
        name = await store.tag(BUILT.image_id, f"{between.address}/bad:1")
        with pytest.raises(HyperError) as caught:
            await pushed(store, name)
        assert isinstance(caught.value, UnavailableError), repr(caught.value)
        assert len(str(caught.value)) < 2000
        assert names_in(store._temporary) == []
