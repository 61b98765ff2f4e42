# SPDX-License-Identifier: Apache-2.0
"""Pulling through the real skopeo, registry and mkfs.erofs."""

from hyperd.image import PullEvent
from hyperd.model.image import Image, LayerPhase, LayerProgress
from tests import images
from tests.mounts import names_in


async def pulled(store, reference, **options) -> tuple[Image, list[PullEvent]]:
    events = [event async for event in store.pull(reference, **options)]
    assert isinstance(events[-1], Image)
    return events[-1], events


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
    done = {
        event.digest
        for event in events
        if isinstance(event, LayerProgress) and event.phase is LayerPhase.DONE
    }
    assert done == set(built.layer_digests)
    assert await store.get(name) == image
    assert names_in(store._temporary) == []
