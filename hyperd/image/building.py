# SPDX-License-Identifier: Apache-2.0
"""Images that a build has made: a config that is ready, and those layers of it that are not here yet.

    config -> the image here that shares most layers with it, pinned -> each further layer streams in (layer_intake), is
    seen to be its diff_id, pinned, and gets its name -> manifest (assemble) -> files -> records

The builder is a stranger: what it sends is bounded and hashed. The records change last, in one transaction; before
that, whatever goes wrong, nothing stays.
"""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from hyperd.errors import HyperError, InvalidError
from hyperd.image import assemble as assembling
from hyperd.image import records
from hyperd.image.assemble import Base, Blob
from hyperd.image.config import ParsedConfig, parse_config
from hyperd.image.content import digest_of
from hyperd.image.layer_intake import Intake
from hyperd.image.layers import LayerFile
from hyperd.image.making import names_for, read_manifest
from hyperd.image.pull import Parts
from hyperd.image.recording import record
from hyperd.image.reference import Named
from hyperd.image.waiting import paced
from hyperd.model.image import Digest, Image, ImageId

ReadLayer = Callable[[Digest], contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]]
_SUBJECT = "the image that was built"
_NOTHING = b"{}"


@dataclass(frozen=True, slots=True)
class Ground:
    """What is here already: the lowest ``layers`` of the new image."""

    image_id: ImageId | None
    manifest_digest: Digest | None
    config: bytes
    layers: int


class Building:
    def __init__(self, parts: Parts, intake: Intake, *, stall_timeout_s: float) -> None:
        self._parts = parts
        self._stall_timeout_s = stall_timeout_s
        self._intake = intake

    async def take(self, config: bytes, read_layer: ReadLayer, tags: Sequence[str]) -> Image:
        """As ``ImageStore.take_built``."""
        parsed = parse_config(config, _SUBJECT)
        names = tuple(name for tag in tags for name in names_for(tag))
        garbage = self._parts.garbage
        image_id = ImageId(digest_of(config))
        mine = {Digest(image_id)}
        try:
            async with contextlib.AsyncExitStack() as pins:
                ground = await pins.enter_async_context(
                    garbage.held(lambda connection: _look(connection, parsed, image_id))
                )
                if ground.image_id == image_id:
                    return await self._name(image_id, names)
                base = await self._base(ground)
                blobs: list[Blob] = []
                taken: dict[Digest, tuple[Blob, LayerFile]] = {}
                for diff_id in parsed.diff_ids[ground.layers :]:
                    if diff_id not in taken:
                        taken[diff_id] = await self._take(diff_id, read_layer, mine, pins)
                    blobs.append(taken[diff_id][0])
                made = assembling.join(base, config, blobs)
                mine.add(made.manifest_digest)
                await pins.enter_async_context(garbage.pinned(mine))
                layers = [(layer, blob.digest) for blob, layer in taken.values()]
                return await record(self._parts, made, layers, names)
        except BaseException:
            with contextlib.suppress(HyperError):  # what went wrong before is what the caller hears
                await garbage.sweep(mine)
            raise

    async def _take(
        self, diff_id: Digest, read_layer: ReadLayer, mine: set[Digest], pins: contextlib.AsyncExitStack
    ) -> tuple[Blob, LayerFile]:
        async with (
            read_layer(diff_id) as data,
            self._intake.taken(paced(data, self._stall_timeout_s)) as draft,
        ):
            if draft.diff_id != diff_id:
                raise InvalidError(
                    "a layer is not what the image's config says",
                    subject=_SUBJECT,
                    evidence=f"it is {draft.diff_id}, and should be {diff_id}",
                )
            mine |= {draft.diff_id, draft.blob_digest}
            await pins.enter_async_context(self._parts.garbage.pinned({draft.diff_id, draft.blob_digest}))
            return Blob(draft.blob_digest, draft.blob_bytes), await self._intake.keep(draft)

    async def _base(self, ground: Ground) -> Base:
        if ground.manifest_digest is None:
            return Base(ground.config, None)
        manifest = await read_manifest(
            self._parts, ground.manifest_digest, "the manifest of its base", ground.image_id
        )
        return Base(ground.config, manifest)

    async def _name(self, image_id: ImageId, names: tuple[Named, ...]) -> Image:
        def name(connection: sqlite3.Connection) -> Image:
            records.save_names(connection, image_id, names)
            return records.get_image(connection, image_id)

        return await self._parts.database.transaction(name)


def _look(
    connection: sqlite3.Connection, parsed: ParsedConfig, image_id: ImageId
) -> tuple[Ground, set[Digest]]:
    """The image all of whose layers are the lowest of the new one's; the one with most, or, of those, itself."""
    stacks: dict[ImageId, list[Digest]] = {}
    rows = connection.execute("SELECT image_id, diff_id FROM image_layer ORDER BY image_id, position")
    for row in rows:
        stacks.setdefault(ImageId(row["image_id"]), []).append(Digest(row["diff_id"]))
    wanted = list(parsed.diff_ids)
    fitting = {each: len(stack) for each, stack in stacks.items() if stack == wanted[: len(stack)]}
    if not fitting:
        return Ground(None, None, _NOTHING, 0), set()
    best = max(fitting, key=lambda each: (fitting[each], each == image_id))
    row = connection.execute(
        "SELECT manifest_digest, config FROM image WHERE image_id = ?", (best,)
    ).fetchone()
    ground = Ground(best, Digest(row["manifest_digest"]), row["config"], fitting[best])
    return ground, records.digests_of(connection, best)
