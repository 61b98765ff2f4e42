# SPDX-License-Identifier: Apache-2.0
"""The taps of one network, and who may speak on them: plugged in one by one, taken away together."""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from hyperd.host.batch import Batch
from hyperd.host.workers import Workers
from hyperd.network import links
from hyperd.network.bridge import Bridge
from hyperd.network.netlink import network_errors
from hyperd.network.settings import BridgeSettings
from hyperd.network.speakers import Speaker, allow, forget
from hyperd.network.tap import create_tap, remove_unused_tap

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Gone:
    tap: str
    speaker: Speaker | None


class Taps:
    """``thread``: one, so that an undo is behind what it undoes. ``lock``: nobody else changes the rules meanwhile."""

    def __init__(self, settings: BridgeSettings, thread: Workers, lock: asyncio.Lock) -> None:
        self._settings = settings
        self._thread = thread
        self._lock = lock
        self._gone: Batch[_Gone] = Batch(self._remove, links.MOST)
        self._is_guarded = True
        self._with_rules: set[str] | None = None  # None: an earlier hyperd's may be there

    @property
    def is_guarded(self) -> bool:
        """Each tap has rules of its own."""
        return self._is_guarded

    def ruled(self, taps: Iterable[str], *, guarded: bool) -> None:
        """All rules were made anew, for these. Called under the lock."""
        if self._is_guarded and not guarded:
            _log.warning(
                "this kernel has no nftables for bridges: a guest can speak in another's name to its neighbours"
            )
        self._is_guarded = guarded
        self._with_rules = set(taps)

    async def plug(self, speaker: Speaker, bridge: Bridge, alias: str) -> None:
        """On the bridge, and up. Raises UnavailableError, DeniedError, ExhaustedError."""
        index = await self.make(speaker)
        with network_errors(speaker.tap):
            await self._thread.call(links.plug, index, bridge=bridge.index, mtu=bridge.mtu, alias=alias)

    async def make(self, speaker: Speaker) -> int:
        """On nothing; its index. Raises UnavailableError, DeniedError."""
        name = speaker.tap
        with network_errors(name):
            if self._is_guarded:  # before there is anything that it could be too late for
                async with self._lock:
                    if self._with_rules is not None:
                        self._with_rules.add(name)
                    await self._thread.call(allow, self._settings.table, speaker)
            return await self._thread.call(create_tap, name, self._settings.tap_owner_uid)

    async def unplug(self, tap: str, find_speaker: Callable[[], Awaitable[Speaker | None]]) -> None:
        """Tap and rules. Idempotent, and free of cost where there is nothing. Raises UnavailableError, DeniedError."""
        if not self._is_there(tap) and not self._has_rules(tap):
            return
        speaker = await find_speaker()
        with network_errors(tap):
            await self._gone.do(_Gone(tap, speaker))

    async def unplug_unused(self, tap: str, find_speaker: Callable[[], Awaitable[Speaker | None]]) -> bool:
        """Unless a VM holds it. Whether there is none now."""
        with network_errors(tap):
            if not await self._thread.call(remove_unused_tap, tap):
                return False
        await self.unplug(tap, find_speaker)
        return True

    def _is_there(self, tap: str) -> bool:
        try:
            socket.if_nametoindex(tap)
        except OSError as error:
            return error.errno not in (errno.ENODEV, errno.ENOENT)
        return True

    def _has_rules(self, tap: str) -> bool:
        return self._is_guarded and (self._with_rules is None or tap in self._with_rules)

    async def _remove(self, gone: Sequence[_Gone]) -> None:
        await self._thread.call(links.remove, [one.tap for one in gone])
        ruled = [one for one in gone if self._has_rules(one.tap)]
        if not ruled:
            return
        async with self._lock:
            known = [one.speaker for one in ruled if one.speaker is not None]
            await self._thread.call(forget, self._settings.table, [one.tap for one in ruled], known)
            if self._with_rules is not None:
                self._with_rules.difference_update(one.tap for one in ruled)
