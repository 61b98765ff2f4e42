# SPDX-License-Identifier: Apache-2.0
"""What is done to volumes as such: by users, and when their containers go."""

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, replace

from hyperd.errors import InvalidError, NotFoundError, WrongStateError
from hyperd.model.container import ContainerRecord
from hyperd.model.volume import VolumeName, VolumeRequest, VolumeView
from hyperd.sandbox.mounts import anonymous_of
from hyperd.storage.base import Volumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pruned:
    removed: tuple[VolumeName, ...]
    reclaimed_bytes: int


class VolumeDesk:
    def __init__(self, room: Volumes) -> None:
        self._room = room
        self.snapshots = room.snapshots

    async def create(self, request: VolumeRequest) -> VolumeView:
        """Raises as ``Volumes.create``."""
        if not request.name:
            request = replace(request, name=VolumeName(secrets.token_hex(32)), anonymous=True)
        volume = await self._room.create(request)
        return await self._room.get(volume.name)

    async def import_(self, name: str, labels: dict[str, str], stream: AsyncIterator[bytes]) -> VolumeView:
        """Raises as ``Volumes.import_``."""
        volume = await self._room.import_(VolumeName(name or secrets.token_hex(32)), labels, stream)
        return await self._room.get(volume.name)

    async def list(self, wanted: Sequence[tuple[str, str]] = ()) -> list[VolumeView]:
        """By name. The same key twice: either; different keys: both. Raises InvalidError."""
        tests = _tests(wanted, _FILTERS)
        found = await self._room.list()
        return [view for view in found if all(any(test(view) for test in either) for either in tests)]

    async def get(self, name: str) -> VolumeView:
        """Raises NotFoundError."""
        return await self._room.get(VolumeName(name))

    async def remove(self, name: str) -> None:
        """Raises NotFoundError, WrongStateError (a container has it)."""
        if not await self._room.remove(VolumeName(name)):
            raise NotFoundError("no such volume", subject=name, hint="`hyper volume ls` lists all")

    async def prune(self, *, named: bool, wanted: Sequence[tuple[str, str]] = ()) -> Pruned:
        """Those that no container has: anonymous ones, and with ``named`` all. Raises InvalidError."""
        tests = _tests(wanted, {"label": _FILTERS["label"]})
        removed: list[VolumeName] = []
        reclaimed_bytes = 0
        for view in await self._room.list():
            chosen = named or view.volume.anonymous
            if not chosen or view.users or not all(any(test(view) for test in either) for either in tests):
                continue
            try:
                if await self._room.remove(view.volume.name):
                    removed.append(view.volume.name)
                    reclaimed_bytes += view.allocated_bytes
            except WrongStateError:  # a container got it meanwhile
                continue
        return Pruned(tuple(removed), reclaimed_bytes)

    async def forget(self, record: ContainerRecord, *, anonymous: bool) -> None:
        """The container goes, and with ``anonymous`` those volumes that nobody else has. Idempotent."""
        await self._room.release(record.sandbox_id)
        if not anonymous:
            return
        for name in anonymous_of(record):
            try:
                await self._room.remove(name)
            except WrongStateError as error:
                log.info("volume stays", extra={"volume": name, "why": error.brief})


def _label(view: VolumeView, wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    labels = view.volume.labels
    return key in labels and (not equals or labels[key] == value)


def _dangling(view: VolumeView, wanted: str) -> bool:
    if wanted.lower() not in ("true", "1", "false", "0"):
        raise InvalidError("is neither true nor false", subject=f"dangling={wanted}")
    return (not view.users) == (wanted.lower() in ("true", "1"))


_Test = Callable[[VolumeView, str], bool]
_FILTERS: dict[str, _Test] = {
    "name": lambda view, wanted: wanted in view.volume.name,
    "label": _label,
    "driver": lambda view, wanted: view.volume.driver == wanted,
    "dangling": _dangling,
}


def _tests(
    wanted: Sequence[tuple[str, str]], known: dict[str, _Test]
) -> Collection[list[Callable[[VolumeView], bool]]]:
    tests: dict[str, list[Callable[[VolumeView], bool]]] = {}
    for key, value in wanted:
        if key not in known:
            raise InvalidError(
                "is not a filter", subject=repr(key), hint=f"known: {', '.join(sorted(known))}"
            )
        test = known[key]
        tests.setdefault(key, []).append(lambda view, test=test, value=value: test(view, value))  # type: ignore[misc]
    return tests.values()
