# SPDX-License-Identifier: Apache-2.0
"""Who serves the mounts of a container that runs, watched: one that has ended is told, and nothing else is done.

No other is started in its place. QEMU connects to no second virtiofsd; a second qemu-nbd would lose what the first had
taken and not sent yet, and then answer the guest's flush as if it had not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from hyperd.errors import HyperError
from hyperd.model.container import ContainerRecord
from hyperd.sandbox.mount_sources import broken_share_error, broken_volume_error
from hyperd.sandbox.presence import Presence
from hyperd.sandbox.rooms import Rooms

log = logging.getLogger(__name__)

RETRY_DELAY_S = 30.0  # between two tries to watch
LOST_GRACE_S = 1.0  # for the hypervisor to say that the VM has ended, and all that served it with it


async def watch_served(record: ContainerRecord, presence: Presence, rooms: Rooms) -> None:
    """For as long as it runs. What it finds is ``presence.broken``."""

    async def broken_share() -> HyperError:
        return broken_share_error(record, await rooms.shares.wait_broken(record.sandbox_id))

    async def broken_volume() -> HyperError:
        return broken_volume_error(record, await rooms.volumes.wait_broken(record.sandbox_id))

    async with asyncio.TaskGroup() as both:
        both.create_task(_watch(record, presence, broken_share))
        both.create_task(_watch(record, presence, broken_volume))


async def _watch(
    record: ContainerRecord, presence: Presence, wait_broken: Callable[[], Awaitable[HyperError]]
) -> None:
    """It ends with its VM, too."""
    while not presence.is_ending:
        try:
            broken = await wait_broken()
        except HyperError as error:  # who serves cannot be told: that is no reason to end what is served
            log.warning("mounts not watched", extra={"sandbox": record.name, "error": str(error)})
            await presence.ended_within(RETRY_DELAY_S)
            continue
        await presence.ended_within(LOST_GRACE_S)
        if not presence.is_ending:
            presence.broken = presence.broken or broken
            log.error("mount lost", extra={"sandbox": record.name, "error": str(broken)})
        return
