# SPDX-License-Identifier: Apache-2.0
"""The images that a Dockerfile builds on: found or pulled as `hyper pull` does it, then handed to the builder.

The builder itself speaks with no registry: credentials, mirrors and the signature policy are the daemon's, and what is
in the store needs no registry at all. It keeps what it was handed in its cache, under the same id.
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from hyperd.build.builder import TRANSFER_TIMEOUT_S, Builder
from hyperd.errors import ImageNotFoundError, InvalidError, UnsupportedError
from hyperd.image import ImageStore, Transport, parse_source
from hyperd.model.build import Output
from hyperd.model.image import Credentials, Image, LayerProgress, Platform, PullNotice

Event = Output | PullNotice | LayerProgress
Respond = Callable[[Event], Awaitable[None]]
AskCredentials = Callable[[str], Awaitable[Credentials | None]]

BASE_NAME = "localhost/hyper-base"  # of an image in the builder that the Dockerfile names by digest or id
_HAS = 'for id; do [ -d "/var/lib/containers/storage/overlay-images/$id" ] && echo "$id"; done; :'
_TAKE = "cat >/build/base.tar && buildah pull --quiet docker-archive:/build/base.tar && rm /build/base.tar"


class Bases:
    def __init__(
        self, images: ImageStore, platform: Platform, respond: Respond, ask_credentials: AskCredentials
    ) -> None:
        self._images = images
        self._platform = platform
        self._respond = respond
        self._ask_credentials = ask_credentials

    async def find(self, references: Sequence[str], *, pull: bool) -> dict[str, Image]:
        """By the name in the Dockerfile. One that is no name at all is the engine's to complain of.

        Raises what ``ImageStore.pull`` raises.
        """
        found: dict[str, Image] = {}
        for reference in references:
            if _is_name(reference):
                found[reference] = await self._find(reference, pull=pull)
        return found

    async def _find(self, reference: str, *, pull: bool) -> Image:
        if not pull or _is_id(reference):
            with contextlib.suppress(ImageNotFoundError):
                here = await self._images.get(reference)
                if not _is_only_an_id(reference, here):
                    return here
        credentials = await self._ask_credentials(reference)
        await self._respond(PullNotice(f"Pulling {reference}"))
        image: Image | None = None
        pulling = self._images.pull(reference, platform=self._platform, credentials=credentials)
        async with contextlib.aclosing(pulling) as events:
            async for event in events:
                if isinstance(event, Image):
                    image = event
                else:
                    await self._respond(event)
        if image is None:
            raise ImageNotFoundError("the pull ended without an image", subject=reference)
        return image

    async def hand_over(self, found: dict[str, Image], builder: Builder) -> dict[str, str]:
        """Those that it does not have; then their names. Returns the names that are other ones there."""
        if not found:
            return {}
        ids = {_hex(image): image for image in found.values()}
        has = set((await builder.ask(["sh", "-c", _HAS, "sh", *ids], keep_bytes=66 * len(ids))).split())
        for digits, image in ids.items():
            if digits not in has:
                await self._hand_over(image, builder)
        names = {reference: _name_there(reference, image) for reference, image in found.items()}
        tagging = [word for reference, image in found.items() for word in (_hex(image), names[reference])]
        await builder.ask(
            ["sh", "-ec", 'while [ $# -gt 0 ]; do buildah tag "$1" "$2"; shift 2; done', "sh", *tagging]
        )
        return {reference: name for reference, name in names.items() if name.startswith(BASE_NAME)}

    async def _hand_over(self, image: Image, builder: Builder) -> None:
        async with contextlib.aclosing(self._images.save([image.image_id])) as archive:
            await builder.ask(["sh", "-c", _TAKE], stdin=archive, timeout_s=TRANSFER_TIMEOUT_S)


def _hex(image: Image) -> str:
    return image.image_id.removeprefix("sha256:")


def _is_name(reference: str) -> bool:
    """Of an image here or in a registry: an archive or a directory of this host is not for a Dockerfile to name."""
    try:
        return _is_id(reference) or parse_source(reference).transport is Transport.DOCKER
    except (InvalidError, UnsupportedError):
        return False


def _is_id(reference: str) -> bool:
    return reference.startswith("sha256:")


def _is_only_an_id(reference: str, image: Image) -> bool:
    """``FROM cafe`` is a name: the store finds by the beginning of an id, too, which a Dockerfile does not mean."""
    return (
        image.image_id.removeprefix("sha256:").startswith(reference)
        and str(parse_source(reference).named) not in image.tags
    )


def _name_there(reference: str, image: Image) -> str:
    """The name that the engine makes of the reference; where that holds a digest or is none, one of ours."""
    if "@" not in reference:
        for tag in image.tags:
            for prefix in ("", "docker.io/library/", "docker.io/"):
                if tag in (f"{prefix}{reference}", f"{prefix}{reference}:latest"):
                    return tag
    return f"{BASE_NAME}:{_hex(image)[:12]}"
