# SPDX-License-Identifier: Apache-2.0
"""Images made here: a commit on a base, and a root file system on nothing.

    base pinned -> layer streams in (layer_intake) -> config, manifest (assemble) -> all pinned -> files -> records

What can be wrong without the layer is found before its first byte is asked for. The records change last, in one
transaction; before that, whatever goes wrong, nothing stays.
"""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from hyperd.errors import HyperError, ImageNotFoundError, InvalidError, UnavailableError
from hyperd.image import assemble as assembling
from hyperd.image import platform as platforms
from hyperd.image import records
from hyperd.image.assemble import Assembled, Base, Blob
from hyperd.image.layer_intake import Draft, Intake
from hyperd.image.manifest import MAX_MANIFEST_BYTES
from hyperd.image.pull import Parts
from hyperd.image.recording import record
from hyperd.image.reference import Named, parse_named, require_free
from hyperd.image.waiting import paced
from hyperd.model.image import Digest, Image, ImageId, NewImage

_NO_DIGEST = Digest("sha256:" + "0" * 64)


class Making:
    def __init__(self, parts: Parts, intake: Intake, *, stall_timeout_s: float) -> None:
        self._parts = parts
        self._stall_timeout_s = stall_timeout_s
        self._intake = intake

    async def commit(self, base: ImageId, layer: AsyncIterator[bytes], new: NewImage) -> Image:
        """As ``ImageStore.commit``."""
        async with self._standing(base) as ground:
            return await self._make(ground, paced(layer, self._stall_timeout_s), new)

    async def make_on_nothing(self, layer: AsyncIterator[bytes], new: NewImage) -> Image:
        """``layer``: a plain tar, paced."""
        platform = new.platform or platforms.host_platform()
        return await self._make(assembling.from_nothing(platform), layer, new)

    async def _make(self, base: Base, layer: AsyncIterator[bytes], new: NewImage) -> Image:
        names = names_for(new.reference)
        assembling.assemble(base, _NO_DIGEST, Blob(_NO_DIGEST, 0), new, datetime.now(UTC))  # or it ends here
        async with self._intake.taken(layer) as draft:
            blob = Blob(draft.blob_digest, draft.blob_bytes)
            made = assembling.assemble(base, draft.diff_id, blob, new, datetime.now(UTC))
            return await self._keep(draft, made, names)

    async def _keep(self, draft: Draft, made: Assembled, names: tuple[Named, ...]) -> Image:
        garbage = self._parts.garbage
        mine = {Digest(made.image_id), made.manifest_digest, draft.blob_digest, draft.diff_id}
        try:
            async with garbage.pinned(mine):
                layer = await self._intake.keep(draft)
                return await record(self._parts, made, ((layer, draft.blob_digest),), names)
        except BaseException:
            with contextlib.suppress(HyperError):  # what went wrong before is what the caller hears
                await garbage.sweep(mine)
            raise

    @contextlib.asynccontextmanager
    async def _standing(self, base: ImageId) -> AsyncIterator[Base]:
        """The base, which stays on disk for so long even when somebody removes it. Raises ImageNotFoundError."""

        def look(connection: sqlite3.Connection) -> tuple[tuple[Digest, bytes], set[Digest]]:
            row = connection.execute(
                "SELECT manifest_digest, config FROM image WHERE image_id = ?", (base,)
            ).fetchone()
            if row is None:
                raise ImageNotFoundError("no such image", subject=base)
            return (Digest(row["manifest_digest"]), row["config"]), records.digests_of(connection, base)

        async with self._parts.garbage.held(look) as (manifest, config):
            yield Base(config, await read_manifest(self._parts, manifest, "the image's manifest", base))


async def read_manifest(parts: Parts, digest: Digest, what: str, image: object) -> bytes:
    """Raises UnavailableError: ``what`` of the image is damaged."""
    try:
        return await parts.workers.call(parts.content.read, digest, limit=MAX_MANIFEST_BYTES)
    except HyperError as error:
        raise UnavailableError(
            f"{what} is damaged", subject=str(image), evidence=str(error), hint="`hyper pull` it again"
        ) from error


def names_for(reference: str) -> tuple[Named, ...]:
    """Raises InvalidError."""
    if not reference:
        return ()
    named = parse_named(reference)
    if named.digest:
        raise InvalidError(
            "an image cannot be given a digest", subject=reference[:300], hint="give NAME[:TAG]"
        )
    return (require_free(named),)
