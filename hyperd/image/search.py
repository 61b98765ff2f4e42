# SPDX-License-Identifier: Apache-2.0
"""Searching a registry, as docker and podman do.

    TERM, docker.io/TERM   Docker Hub           /v1/search?q=TERM&n=LIMIT
    HOST/TERM              another registry     the same; where it has none, its list of repositories: /v2/_catalog

A catalog knows only names, so there the description is empty and nobody has a star. What comes back is a stranger's:
bounded, and of each entry only what has the right type.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from hyperd.errors import DeniedError, InvalidError, NotFoundError, UnavailableError, UnsupportedError
from hyperd.image.base import DEFAULT_LIMIT
from hyperd.image.reference import DEFAULT_REGISTRY, is_loopback_host, split_registry
from hyperd.image.web import Answer, Asked
from hyperd.model.image import Credentials, FoundImage

MAX_LIMIT = 100  # Docker's
MAX_TERM_LENGTH = 255
MAX_PAGES = 20  # of a catalog
_PAGE = 1000
_HUB = "index.docker.io"
_NEXT = re.compile(r'<([^<>\s]{1,2000})>\s*;\s*rel="?next"?')
_UNKNOWN = {404, 405, 501}

Fetch = Callable[[Asked], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Search:
    """Raises InvalidError in the making, for what no registry can be asked."""

    term: str
    limit: int = DEFAULT_LIMIT
    tls_insecure: bool = False
    credentials: Credentials | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InvalidError(f"limit {self.limit} is outside the range of [1, {MAX_LIMIT}]")
        if "://" in self.term:
            raise InvalidError(
                "invalid repository name: it shouldn't contain a scheme", subject=self.term[:300]
            )
        if not self.term or len(self.term) > MAX_TERM_LENGTH or not self.term.isprintable():
            raise InvalidError("this is not a term to search for", subject=repr(self.term[:300]))

    @property
    def registry(self) -> str:
        return split_registry(self.term)[0]

    @property
    def wanted(self) -> str:
        """What is searched for; on Docker Hub official images have no namespace."""
        term = split_registry(self.term)[1]
        return term.removeprefix("library/") if self.registry == DEFAULT_REGISTRY else term

    def asked(self, path: str) -> Asked:
        host = _HUB if self.registry == DEFAULT_REGISTRY else self.registry
        return Asked(host, path, self.credentials, self.tls_insecure or is_loopback_host(host))


async def search(wanted: Search, fetch: Fetch) -> list[FoundImage]:
    """In the registry's order.

    Raises UnsupportedError (it has no search), DeniedError, UnavailableError.
    """
    answer = await fetch(wanted.asked(f"/v1/search?q={quote(wanted.wanted, safe='')}&n={wanted.limit}"))
    if answer.status in _UNKNOWN and wanted.registry != DEFAULT_REGISTRY:
        return await _search_catalog(wanted, fetch)
    results = _body(answer, wanted).get("results")
    if not isinstance(results, list):
        raise UnavailableError("the registry's answer is no list of images", subject=wanted.registry)
    found = (_found(item, wanted) for item in results[: wanted.limit])
    return [image for image in found if image is not None]


def _found(item: object, wanted: Search) -> FoundImage | None:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(name, str) or not 0 < len(name) <= MAX_TERM_LENGTH:
        return None
    said, stars = item.get("description"), item.get("star_count")
    return FoundImage(
        name if wanted.registry == DEFAULT_REGISTRY else f"{wanted.registry}/{name}",
        said[:4096] if isinstance(said, str) else "",
        stars if isinstance(stars, int) and 0 <= stars < 1 << 31 else 0,
        is_official=item.get("is_official") is True,
        is_automated=item.get("is_automated") is True,
    )


async def _search_catalog(wanted: Search, fetch: Fetch) -> list[FoundImage]:
    """A page after the other, until there are enough."""
    found: list[FoundImage] = []
    path = f"/v2/_catalog?n={_PAGE}"
    for _ in range(MAX_PAGES):
        answer = await fetch(wanted.asked(path))
        if answer.status in _UNKNOWN:
            raise UnsupportedError(
                "the registry cannot be searched",
                subject=wanted.registry,
                evidence="it has neither /v1/search nor /v2/_catalog",
            )
        names = _body(answer, wanted).get("repositories") or []
        if not isinstance(names, list):
            raise UnavailableError("the registry's answer is no list of images", subject=wanted.registry)
        fitting = (name for name in names if isinstance(name, str) and wanted.wanted in name)
        found += [FoundImage(f"{wanted.registry}/{name[:MAX_TERM_LENGTH]}") for name in fitting]
        following = _NEXT.search(answer.headers.get("link", ""))
        if following is None or len(found) >= wanted.limit:
            break
        target = urlsplit(following[1])
        path = f"/v2/_catalog?{target.query}"  # of this registry, wherever it points
    return found[: wanted.limit]


def _body(answer: Answer, wanted: Search) -> dict[str, Any]:
    if answer.status in (401, 403):
        raise DeniedError(
            "the registry does not let itself be searched without a login",
            subject=wanted.registry,
            evidence=f"status {answer.status}",
            hint=f"hyper login {wanted.registry}",
        )
    if answer.status == 429:
        raise UnavailableError("the registry's rate limit is reached", subject=wanted.registry, hint="wait")
    if answer.status in _UNKNOWN:
        raise NotFoundError("the registry has no search", subject=wanted.registry)
    try:
        body = json.loads(answer.body) if answer.status == 200 else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise UnavailableError(
            "the registry has failed to search",
            subject=wanted.registry,
            evidence=f"status {answer.status}: {answer.body[:200]!r}",
        )
    return body
