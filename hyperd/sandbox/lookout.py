# SPDX-License-Identifier: Apache-2.0
"""Who serves the mounts of a container that runs, watched: one that has ended is told, and nothing else is done.

No other is started in its place. QEMU connects to no second virtiofsd; a second qemu-nbd would lose what the first had
taken and not sent yet, and then answer the guest's flush as if it had not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from hyperd.errors import HyperError, UnavailableError
from hyperd.model.container import ContainerRecord
from hyperd.model.share import BrokenShare
from hyperd.sandbox.mount_sources import broken_share_error, broken_volume_error
from hyperd.sandbox.presence import Presence
from hyperd.sandbox.rooms import Rooms

log = logging.getLogger(__name__)

RETRY_DELAY_S = 30.0  # between two tries to watch
LOST_GRACE_S = 1.0  # for the hypervisor to say that the VM has ended, and all that served it with it


async def watch_served(record: ContainerRecord, presence: Presence, rooms: Rooms) -> None:
    """For as long as it runs. All that it finds is ``presence.broken``."""
    shares: list[BrokenShare] = []

    async def broken_share() -> HyperError:
        known = [share.tag for share in shares]
        shares.append(await rooms.shares.wait_broken(record.sandbox_id, known))
        return broken_share_error(record, shares)

    async def broken_volume() -> HyperError:
        return broken_volume_error(record, await rooms.volumes.wait_broken(record.sandbox_id))

    lookout = _Lookout(record, presence)
    async with asyncio.TaskGroup() as both:
        both.create_task(lookout.watch("shares", broken_share))
        both.create_task(lookout.watch("volumes", broken_volume, once=True))


class _Lookout:
    def __init__(self, record: ContainerRecord, presence: Presence) -> None:
        self._record = record
        self._presence = presence
        self._found: dict[str, HyperError] = {}  # by what it is of

    async def watch(
        self, what: str, wait_broken: Callable[[], Awaitable[HyperError]], *, once: bool = False
    ) -> None:
        """It ends with its VM, too. ``once``: no second one would be found."""
        name, presence = self._record.name, self._presence
        while not presence.is_ending:
            try:
                broken = await wait_broken()
            except HyperError as error:  # who serves cannot be told: that is no reason to end what is served
                log.warning("mounts not watched", extra={"sandbox": name, "error": str(error)})
                await presence.ended_within(RETRY_DELAY_S)
                continue
            await presence.ended_within(LOST_GRACE_S)
            if not presence.is_ending:
                self._found[what] = broken
                presence.broken = _together(list(self._found.values()))
                log.error("mount lost", extra={"sandbox": name, "error": str(broken)})
            if once:
                return


def _together(found: Sequence[HyperError]) -> HyperError:
    evidence = "\n".join(error.evidence for error in found)
    brief = "; ".join(error.brief for error in found)
    return UnavailableError(brief, subject=found[0].subject, evidence=evidence, hint=found[0].hint)
