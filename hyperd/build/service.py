# SPDX-License-Identifier: Apache-2.0
"""Builds, one at a time, each in a machine of its own that goes with it.

    waiting --turn--> a builder starts --> context, base images, secrets --> the engine runs --> layers that are new
                      |  whatever happens from here on: closed, stopped, removed, and only then the next one's turn

The cache is a volume, which one machine can write to: hence the turns. What a hyperd that was killed has left is ended
by the next one before its first build.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperd.build import plan
from hyperd.build.archive import BuilderImage, image_in
from hyperd.build.bases import AskCredentials, Respond
from hyperd.build.builder import Builder
from hyperd.build.plan import BuilderSizing
from hyperd.build.ssh import AskAgent
from hyperd.build.work import Work
from hyperd.errors import DeniedError, ExhaustedError, HyperError, ImageNotFoundError, UnavailableError
from hyperd.host.workers import Workers
from hyperd.image import ImageStore
from hyperd.model.build import BuildFailed, BuildSpec, Built
from hyperd.model.container import ContainerSpec
from hyperd.model.image import ImageId, Platform, PullNotice
from hyperd.sandbox import Fleet, SandboxHandle

log = logging.getLogger(__name__)

MAX_WAITING = 32
_CHUNK_BYTES = 1 << 20
_HINT = (
    "no build can begin without it: allow `oci` in the policy's `transports`, which what is loaded from archives "
    'falls under, as in {"oci": {"": [{"type": "insecureAcceptAnything"}]}}'
)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """``archive``: the builder's image, as set-up has made it."""

    archive: Path
    sizing: BuilderSizing
    platform: Platform


class Builds:
    def __init__(self, settings: BuildSettings, fleet: Fleet, images: ImageStore, files: Workers) -> None:
        self._settings = settings
        self._fleet = fleet
        self._images = images
        self._files = files
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._tasks = asyncio.TaskGroup()
        self._tidied = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Begins when the fleet is ready: ends the builders of an earlier hyperd."""
        async with self._tasks:
            await self._tidy()
            self._tidied.set()
            await asyncio.Event().wait()

    async def _tidy(self) -> None:
        for view in self._fleet.list_views([("label", plan.LABEL)], everything=True):
            if view.record.name == plan.NAME_PREFIX + view.record.spec.labels[plan.LABEL]:
                log.warning("ending a builder whose build was cut short", extra={"sandbox": view.record.name})
                await self._end(self._fleet.get(view.record.sandbox_id))

    async def build(
        self,
        spec: BuildSpec,
        context: AsyncIterator[bytes],
        respond: Respond,
        ask_credentials: AskCredentials,
        ask_agent: AskAgent,
    ) -> Built | BuildFailed:
        """``context``: a plain tar, read to its end, unless it is git's.

        Raises InvalidError, UnsupportedError (the request), ExhaustedError (too many wait, no memory), UnavailableError
        (no builder, it broke), and what a pull of a base image raises. Whatever it raises, nothing of the build stays
        but the cache.
        """
        plan.require_valid(spec, self._settings.platform)
        async with self._in_turn(respond), self._builder(spec) as builder:
            work = Work(spec, builder, self._images, self._files, self._settings.platform, respond)
            return await work.run(context, ask_credentials, ask_agent)

    @contextlib.asynccontextmanager
    async def _in_turn(self, respond: Respond) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise ExhaustedError(f"{MAX_WAITING} builds are waiting already")
        self._waiting += 1
        try:
            if self._turn.locked():
                await respond(PullNotice("waiting for another build to end"))
            await self._tidied.wait()
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    @contextlib.asynccontextmanager
    async def _builder(self, spec: BuildSpec) -> AsyncIterator[Builder]:
        image = await self._builder_image()
        build_id = secrets.token_hex(6)
        wanted = plan.builder_of(build_id, image, spec, self._settings.sizing)
        # Tasks of ours: a caller who goes in the middle leaves neither a builder that nobody knows of nor half an end.
        creating = self._tasks.create_task(self._create(wanted))
        try:
            await _to_its_end(creating)
            handle = creating.result()
            if isinstance(handle, HyperError):
                raise handle
            await handle.start()
            yield Builder(handle)
        finally:
            made = creating.result() if creating.done() and not creating.cancelled() else None
            if isinstance(made, SandboxHandle):
                await _to_its_end(self._tasks.create_task(self._end(made)))

    async def _create(self, wanted: ContainerSpec) -> SandboxHandle | HyperError:
        try:
            view, _ = await self._fleet.create(wanted)
        except HyperError as error:  # for him who waits; the group must not
            return error
        return self._fleet.get(view.record.sandbox_id)

    async def _end(self, handle: SandboxHandle) -> None:
        """Gently, so that the cache is closed; then in any case."""
        try:
            await handle.stop()
        except HyperError as error:
            log.warning("builder not stopped", extra={"sandbox": handle.record.name, "error": str(error)})
        try:
            await handle.remove(force=True, volumes=True)
        except HyperError as error:
            log.error("builder not removed", extra={"sandbox": handle.record.name, "error": str(error)})  # noqa: TRY400

    async def _builder_image(self) -> ImageId:
        """The archive's own image, whatever carries its name; loaded when it is not here."""
        archive = self._settings.archive
        wanted = await self._files.call(image_in, archive)
        with contextlib.suppress(ImageNotFoundError):
            return (await self._images.get(wanted.image_id)).image_id
        log.info("loading the builder's image", extra={"image": wanted.name})
        try:
            async with contextlib.aclosing(self._images.load(self._pieces(archive), ours=True)) as events:
                async for _ in events:
                    continue
        except DeniedError as error:
            error.subject = f"the builder's image, {wanted.name}"
            error.hint = _HINT
            raise
        await self._remove_others(wanted)
        try:
            return (await self._images.get(wanted.image_id)).image_id
        except ImageNotFoundError as error:
            raise UnavailableError(
                "is not the image that its manifest tells of", subject=str(archive), evidence=str(error)
            ) from error

    async def _remove_others(self, wanted: BuilderImage) -> None:
        """Builders of an earlier set-up, which nothing asks for any more."""
        repository = f"{wanted.name.rpartition(':')[0]}:"
        for image in await self._images.list_images():
            for tag in image.tags:
                if tag.startswith(repository) and tag != wanted.name:
                    try:
                        await self._images.remove(tag, in_use=self._fleet.images_in_use())
                    except (
                        HyperError
                    ) as error:  # somebody runs it; the next one that is loaded comes by again
                        log.warning("older builder not removed", extra={"image": tag, "error": str(error)})

    async def _pieces(self, archive: Path) -> AsyncIterator[bytes]:
        with await self._files.call(archive.open, "rb", 0) as file:
            while data := await self._files.call(file.read, _CHUNK_BYTES):
                yield data


async def _to_its_end(task: "asyncio.Task[Any]") -> None:
    """Also for a caller that is cancelled meanwhile, who hears of it afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
