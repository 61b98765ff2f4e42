# SPDX-License-Identifier: Apache-2.0
"""One pull from the reference to the disk.

    manifest -> policy -> config, platform -> [ blobs arrive -> each is converted once it is whole ] -> disk -> records

Everything is checked before the first layer is fetched; the records change last, in one transaction, so an image is
there whole or not at all. Whole blobs and layers stay for the next attempt, temporary files do not.
"""

import asyncio
import contextlib
import secrets
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

from hyperd.errors import HyperError, ImageNotFoundError, InvalidError, UnavailableError, UnsupportedError
from hyperd.host import files
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.image import admitted, records
from hyperd.image import manifest as manifests
from hyperd.image import platform as platforms
from hyperd.image.admission import Admissions
from hyperd.image.base import PullEvent
from hyperd.image.config import ParsedConfig, parse_config
from hyperd.image.content import Content, digest_of
from hyperd.image.conversions import Conversions
from hyperd.image.disks import EMPTY_LAYER, EMPTY_TAR, Disks
from hyperd.image.download import Arrivals, Downloads
from hyperd.image.flights import Hub
from hyperd.image.gc import Garbage
from hyperd.image.layers import Layers, one_error
from hyperd.image.manifest import Descriptor, Manifest
from hyperd.image.reference import Named, Transport, parse_named
from hyperd.image.transport import Remote, Skopeo, written_by_copy
from hyperd.model.image import (
    Admission,
    Digest,
    Image,
    ImageId,
    LayerPhase,
    LayerProgress,
    Platform,
    PullNotice,
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means at this moment, checked."""

    remote: Remote
    manifest: Manifest
    manifest_raw: bytes
    config: ParsedConfig
    config_raw: bytes

    @property
    def image_id(self) -> ImageId:
        return ImageId(self.manifest.config.digest)

    @property
    def manifest_digest(self) -> Digest:
        return digest_of(self.manifest_raw)


@dataclass(frozen=True, slots=True)
class Known:
    """An image that was here; news when it had none of these names before."""

    image: Image
    is_news: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """The rooms' own pieces that a pull works with."""

    database: Database
    workers: Workers
    content: Content
    skopeo: Skopeo
    admissions: Admissions
    downloads: Downloads
    layers: Layers
    disks: Disks
    garbage: Garbage
    conversions: Conversions
    temporary: Path


class Pull:
    def __init__(self, parts: Parts, remote: Remote, hub: Hub[PullEvent]) -> None:
        self._parts = parts
        self._remote = remote
        self._subject = str(remote.source)
        self._hub = hub

    async def run(self) -> Image:
        parts = self._parts
        self._notice("source", self._headline())
        raw = await parts.skopeo.raw_manifest(self._remote)
        names = await self._names(digest_of(raw))
        top = manifests.parse_manifest(raw, self._subject)
        child = (
            None if isinstance(top, Manifest) else manifests.choose(top, self._remote.platform, self._subject)
        )
        chosen = digest_of(raw) if child is None else child.digest
        admission = await parts.admissions.admit(self._remote, chosen, self._subject)
        known = await self._find_known(chosen, names, admission)
        if known is not None:
            self._conclude(digest_of(raw), is_news=known.is_news)
            return known.image
        resolved = await self._resolve(raw, chosen, child)
        async with parts.garbage.pinned(_digests_of(resolved)):
            self._announce(resolved)
            await self._bring_layers(resolved)
            await parts.workers.call(self._keep, resolved)
            new = records.NewImage(
                resolved.image_id,
                resolved.manifest_digest,
                resolved.manifest,
                resolved.config_raw,
                resolved.config.diff_ids,
                names,
                admission,
            )
            image = await parts.database.transaction(lambda connection: records.save_image(connection, new))
            with contextlib.suppress(HyperError):  # it stays marked
                await parts.garbage.sweep()  # blobs of the same image as it was compressed before
        self._conclude(digest_of(raw), is_news=True)
        return image

    async def _resolve(self, raw: bytes, chosen: Digest, child: Descriptor | None) -> Resolved:
        skopeo = self._parts.skopeo
        # By digest from here on: a tag may move, and what was admitted is this manifest.
        remote = replace(self._remote, digest=chosen)
        if child is None:
            manifest_raw = raw
            config_raw = await skopeo.raw_config(remote)
        else:
            async with one_error(), asyncio.TaskGroup() as tasks:
                asked = tasks.create_task(skopeo.child_manifest(remote, child))
                asked_config = tasks.create_task(skopeo.raw_config(remote))
            manifest_raw, config_raw = asked.result(), asked_config.result()
        manifest = manifests.parse_manifest(manifest_raw, self._subject)
        if not isinstance(manifest, Manifest):
            raise UnsupportedError("the image's index leads to another index", subject=self._subject)
        if digest_of(config_raw) != manifest.config.digest:
            raise UnavailableError(
                "the image config is not the one that its digest names",
                subject=self._subject,
                evidence=f"expected {manifest.config.digest}, got {digest_of(config_raw)}",
            )
        config = parse_config(config_raw, self._subject)
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidError(
                f"the manifest has {len(manifest.layers)} layers, the config {len(config.diff_ids)}",
                subject=self._subject,
            )
        self._require_platform(config.platform)
        return Resolved(remote, manifest, manifest_raw, config, config_raw)

    def _require_platform(self, offered: Platform) -> None:
        if not platforms.runs(offered, self._remote.platform):
            raise manifests.wrong_platform(str(offered), self._remote.platform, self._subject)

    async def _names(self, top_digest: Digest) -> tuple[Named, ...]:
        """What the image will be called here."""
        source = self._remote.source
        if source.transport is Transport.DOCKER and source.named is not None:
            named = source.named
            if named.digest and named.digest != top_digest:
                raise UnavailableError(
                    "the registry sent another manifest than was asked for",
                    subject=self._subject,
                    evidence=f"its digest is {top_digest}",
                )
            by_digest = replace(named, tag="", digest=top_digest)
            return (by_digest,) if named.digest else (named, by_digest)
        if source.transport is Transport.DOCKER_ARCHIVE and not source.inner:
            tags = await self._parts.skopeo.archive_tags(source)
            return tuple(parse_named(tag) for tag in tags)
        return () if source.named is None else (source.named,)

    async def _find_known(
        self, manifest_digest: Digest, names: tuple[Named, ...], admission: Admission
    ) -> Known | None:
        """An image that is here whole only gets its names."""
        parts = self._parts

        def find(connection: sqlite3.Connection) -> ImageId | None:
            return records.find_manifest(connection, manifest_digest)

        image_id = await parts.database.transaction(find)
        if image_id is None:
            return None
        async with parts.garbage.pinned([Digest(image_id), manifest_digest]):
            try:
                return await self._name_known(image_id, names, admission)
            except ImageNotFoundError:  # removed in this very moment
                return None

    async def _name_known(
        self, image_id: ImageId, names: tuple[Named, ...], admission: Admission
    ) -> Known | None:
        parts = self._parts

        def find(connection: sqlite3.Connection) -> tuple[Image, set[Digest]]:
            return records.get_image(connection, image_id), records.blobs_of(connection, image_id)

        image, blobs = await parts.database.transaction(find)
        self._require_platform(image.platform)
        whole = await parts.workers.call(
            lambda: parts.disks.has_all(image.diff_ids) and all(map(parts.content.has, blobs))
        )
        if not whole:
            return None

        def save(connection: sqlite3.Connection) -> Known:
            before = records.get_image(connection, image_id)
            records.save_names(connection, image_id, names)
            admitted.save(connection, image_id, admission)
            image = records.get_image(connection, image_id)
            return Known(image, is_news=(image.tags, image.digests) != (before.tags, before.digests))

        return await parts.database.transaction(save)

    def _announce(self, resolved: Resolved) -> None:
        for layer in resolved.manifest.layers:
            self._tell(layer, LayerPhase.WAITING, 0)

    async def _bring_layers(self, resolved: Resolved) -> None:
        """Each pair of a layer and its blob: one diff_id may come in several blobs, and all of them are kept."""
        parts = self._parts
        wanted = list(dict.fromkeys(zip(resolved.config.diff_ids, resolved.manifest.layers, strict=True)))
        if not wanted:
            await parts.workers.call(parts.content.put, EMPTY_LAYER, EMPTY_TAR)
            wanted = [(EMPTY_LAYER, Descriptor(EMPTY_LAYER, len(EMPTY_TAR), ""))]
        arrivals = Arrivals(resolved.manifest.layers or [layer for _, layer in wanted])
        await parts.downloads.look_for(arrivals)
        directory = parts.temporary / f"pull-{secrets.token_hex(8)}"
        try:
            async with one_error(), asyncio.TaskGroup() as tasks:
                for diff_id, layer in wanted:
                    tasks.create_task(self._bring_layer(diff_id, layer, arrivals))
                if arrivals.missing():
                    await parts.workers.call(files.make_directory, directory, 0o700)
                    await parts.downloads.fetch(resolved.remote, arrivals, directory, self._tell_downloading)
            # skopeo has left its own manifest and config, other ones when it had to rewrite Docker's.
            await parts.garbage.sweep(await parts.workers.call(written_by_copy, directory, parts.content))
        finally:
            await parts.workers.call(files.remove_tree, directory)

    async def _bring_layer(self, diff_id: Digest, layer: Descriptor, arrivals: Arrivals) -> None:
        conversions = self._parts.conversions
        here_before = arrivals.whole[layer.digest].is_set()
        await arrivals.wait_whole(layer.digest)
        if await conversions.has(diff_id, layer.digest):
            self._tell(layer, LayerPhase.EXISTS if here_before else LayerPhase.DONE, layer.size_bytes)
            return
        self._tell(layer, LayerPhase.CONVERTING, 0)
        async with contextlib.aclosing(conversions.make(diff_id, layer.digest)) as steps:
            async for done in steps:
                self._tell(layer, LayerPhase.CONVERTING, done)
        self._tell(layer, LayerPhase.DONE, layer.size_bytes)

    def _keep(self, resolved: Resolved) -> None:
        """Blocks."""
        content = self._parts.content
        with files.file_errors(content.root):
            content.put(resolved.manifest_digest, resolved.manifest_raw)
            content.put(resolved.manifest.config.digest, resolved.config_raw)
            self._parts.disks.make(resolved.image_id, resolved.config.diff_ids)

    def _headline(self) -> str:
        """As `docker pull` begins."""
        source = self._remote.source
        if source.transport is not Transport.DOCKER or source.named is None:
            return f"Pulling {self._subject}"
        return f"{source.named.digest or source.named.tag}: Pulling from {source.named.path}"

    def _conclude(self, digest: Digest, *, is_news: bool) -> None:
        """As it ends."""
        named = self._remote.source.named
        name = self._subject if named is None else named.familiar
        self._notice("digest", f"Digest: {digest}")
        what = "Downloaded newer image" if is_news else "Image is up to date"
        self._notice("status", f"Status: {what} for {name}")

    def _notice(self, kind: str, text: str) -> None:
        self._hub.publish(kind, PullNotice(text))

    def _tell_downloading(self, layer: Descriptor, done: int) -> None:
        self._tell(layer, LayerPhase.DOWNLOADING, done)

    def _tell(self, layer: Descriptor, phase: LayerPhase, done: int) -> None:
        self._hub.publish(layer.digest, LayerProgress(layer.digest, phase, done, layer.size_bytes))


def _digests_of(resolved: Resolved) -> set[Digest]:
    blobs = {layer.digest for layer in resolved.manifest.layers}
    return {resolved.manifest_digest, resolved.manifest.config.digest, *blobs, *resolved.config.diff_ids}
