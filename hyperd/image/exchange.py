# SPDX-License-Identifier: Apache-2.0
"""What is exchanged with registries: pulls and pushes, each once however many ask, and what is only looked up."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import replace

from hyperd.errors import NotFoundError
from hyperd.image import manifest as manifests
from hyperd.image import platform as platforms
from hyperd.image import push as pushes
from hyperd.image import reference as references
from hyperd.image import search as searches
from hyperd.image import web
from hyperd.image.base import DEFAULT_LIMIT, PullEvent, PushEvent
from hyperd.image.flights import Flights, Hub
from hyperd.image.logins import Logins, require_sensible
from hyperd.image.pull import Parts, Pull
from hyperd.image.push import Push
from hyperd.image.reference import Source, Transport
from hyperd.image.transport import Remote
from hyperd.image.upload import Uploads
from hyperd.model.image import Credentials, FoundImage, Image, Platform, RawManifest


class Exchange:
    """``came_in``: what is due after a pull. ``close`` before the database closes."""

    def __init__(
        self,
        parts: Parts,
        logins: Logins,
        uploads: Uploads,
        tasks: asyncio.TaskGroup,
        came_in: Callable[[Image], Awaitable[None]],
    ) -> None:
        self._parts = parts
        self._logins = logins
        self._uploads = uploads
        self._came_in = came_in
        self.pulls: Flights[tuple[Remote, Credentials | None], PullEvent, Image] = Flights(tasks)
        self._pushes: Flights[Hashable, PushEvent, None] = Flights(tasks)

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        await self.pulls.cancel()
        await self._pushes.cancel()

    async def pull(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
        all_tags: bool = False,
    ) -> AsyncGenerator[PullEvent, None]:
        """As ``ImageStore.pull``; a caller that may stop early closes the iterator (``contextlib.aclosing``)."""
        wanted = Remote(
            Source(Transport.DOCKER, references.parse_repository(reference))
            if all_tags
            else references.parse_source(reference),
            platform or platforms.host_platform(),
            tls_insecure,
        )
        sources = await self._tags_of(wanted, credentials) if all_tags else [wanted.source]
        for source in sources:
            remote = replace(wanted, source=source)
            async with contextlib.aclosing(self._pull_one(remote, credentials)) as events:
                async for event in events:
                    yield event

    async def _pull_one(
        self, remote: Remote, credentials: Credentials | None
    ) -> AsyncGenerator[PullEvent, None]:
        async def work(hub: Hub[PullEvent]) -> Image:
            async with self._reached(remote, credentials) as reached:
                image = await Pull(self._parts, reached, hub).run()
            await self._came_in(image)
            return image

        # Only those of one and the same right to it share a pull.
        async with self.pulls.board((remote, credentials), work) as flight:
            async with contextlib.aclosing(flight.hub.listen()) as events:
                async for event in events:
                    yield event
            yield await flight.landed()

    async def push(
        self,
        reference: str,
        *,
        all_tags: bool = False,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
    ) -> AsyncGenerator[PushEvent, None]:
        """As ``ImageStore.push``; a caller that may stop early closes the iterator."""
        targets = await self._parts.database.transaction(
            lambda connection: pushes.find_targets(connection, reference, all_tags=all_tags)
        )
        source = Source(Transport.DOCKER, targets[0].named)
        remote = Remote(source, platforms.host_platform(), tls_insecure)

        async def work(hub: Hub[PushEvent]) -> None:
            async with self._reached(remote, credentials) as reached:
                await Push(self._parts, self._uploads, hub).run(targets, reached)

        async with self._pushes.board((tuple(targets), remote, credentials), work) as flight:
            async with contextlib.aclosing(flight.hub.listen()) as events:
                async for event in events:
                    yield event
            await flight.landed()

    async def manifest(
        self, reference: str, *, tls_insecure: bool = False, credentials: Credentials | None = None
    ) -> RawManifest:
        remote = Remote(references.parse_source(reference), platforms.host_platform(), tls_insecure)
        async with self._reached(remote, credentials) as reached:
            raw = await self._parts.skopeo.raw_manifest(reached)
        return manifests.described(raw, str(remote.source))

    async def search(
        self,
        term: str,
        *,
        limit: int = DEFAULT_LIMIT,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
    ) -> list[FoundImage]:
        wanted = searches.Search(term, limit, tls_insecure, credentials)
        if credentials is not None:
            require_sensible(credentials)
        return await searches.search(wanted, lambda asked: web.fetch(asked, self._parts.workers))

    async def _tags_of(self, remote: Remote, credentials: Credentials | None) -> list[Source]:
        named = remote.source.named
        async with self._reached(remote, credentials) as reached:
            tags = await self._parts.skopeo.repository_tags(reached)
        if named is None or not tags:
            raise NotFoundError("the repository has no tags", subject=str(remote.source))
        return [Source(Transport.DOCKER, replace(named, tag=tag)) for tag in tags]

    @contextlib.asynccontextmanager
    async def _reached(self, remote: Remote, credentials: Credentials | None) -> AsyncIterator[Remote]:
        """With the caller's credentials, as long as it takes."""
        named = remote.source.named
        is_registry = remote.source.transport is Transport.DOCKER and named is not None
        registry = named.registry if is_registry and named is not None else ""
        async with self._logins.lent(credentials if registry else None, registry) as authfile:
            yield replace(remote, authfile=authfile)
