# SPDX-License-Identifier: Apache-2.0
"""Images to a registry as they are here: the manifest, byte for byte, and only those blobs that are not there yet."""

import sqlite3
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from hyperd.errors import ImageNotFoundError, InvalidError
from hyperd.image import manifest as manifests
from hyperd.image import records
from hyperd.image import reference as references
from hyperd.image.base import PushEvent
from hyperd.image.flights import Hub
from hyperd.image.manifest import MAX_MANIFEST_BYTES, Manifest
from hyperd.image.pull import Parts
from hyperd.image.reference import Named, Source, Transport
from hyperd.image.transport import Remote
from hyperd.image.upload import Uploads
from hyperd.model.image import Digest, Image, ImageId, PullNotice, PushedTag, PushProgress


@dataclass(frozen=True, slots=True)
class Target:
    """What one name means at this moment."""

    named: Named
    image_id: ImageId


def find_targets(connection: sqlite3.Connection, reference: str, *, all_tags: bool) -> list[Target]:
    """Raises ImageNotFoundError, InvalidError."""
    named = references.parse_repository(reference) if all_tags else references.parse_target(reference)
    if all_tags:
        found = [
            Target(references.parse_named(tag), each) for tag, each in records.tags_in(connection, named)
        ]
    else:
        image_id = records.find_named(connection, named)
        found = [] if image_id is None else [Target(named, image_id)]
    if not found:
        raise ImageNotFoundError(
            "no image has this name",
            subject=named.familiar,
            hint="`hyper tag` gives it one; `hyper images` lists them",
        )
    return found


class Push:
    def __init__(self, parts: Parts, uploads: Uploads, hub: Hub[PushEvent]) -> None:
        self._parts = parts
        self._uploads = uploads
        self._hub = hub

    async def run(self, targets: Sequence[Target], remote: Remote) -> None:
        """``remote``: how to reach the registry; its name is each target's."""
        self._notice("repository", f"The push refers to repository [{targets[0].named.repository}]")
        for target in targets:
            source = Source(Transport.DOCKER, target.named)
            await self._send(target, replace(remote, source=source))

    async def _send(self, target: Target, remote: Remote) -> None:
        def look(connection: sqlite3.Connection) -> tuple[Image, set[Digest]]:
            image = records.get_image(connection, target.image_id)
            return image, records.digests_of(connection, target.image_id)

        async with self._parts.garbage.held(look) as image:
            manifest = await self._read_manifest(image)
            self._warn_of_platforms(image, target.named)
            size = await self._uploads.send(remote, image.manifest_digest, manifest, self._tell)
            await self._parts.database.transaction(
                lambda connection: records.save_pushed(connection, image, target.named)
            )
        name = str(target.named)
        self._hub.publish(("tag", name), PushedTag(name, image.manifest_digest, size))

    async def _read_manifest(self, image: Image) -> Manifest:
        raw = await self._parts.workers.call(
            self._parts.content.read, image.manifest_digest, limit=MAX_MANIFEST_BYTES
        )
        manifest = manifests.parse_manifest(raw, image.image_id)
        if not isinstance(manifest, Manifest):
            raise InvalidError("the stored manifest is an index", subject=image.image_id)
        return manifest

    def _warn_of_platforms(self, image: Image, named: Named) -> None:
        if any(name.partition("@")[2] != image.manifest_digest for name in image.digests):
            self._notice(
                ("platforms", str(named)),
                f"{named.familiar}: what is sent is the one manifest that is here, for {image.platform}; a registry"
                " serves this image under another digest too, be it that of an index of several platforms",
            )

    def _tell(self, progress: PushProgress) -> None:
        self._hub.publish(progress.digest, progress)

    def _notice(self, kind: Hashable, text: str) -> None:
        self._hub.publish(("notice", kind), PullNotice(text))
