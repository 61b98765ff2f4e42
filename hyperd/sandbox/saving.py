# SPDX-License-Identifier: Apache-2.0
"""Saves a sandbox that runs: memory and disk as they are at one moment. The sandbox itself goes on.

draft -> guest frozen -> VM stopped, memory written -> disk copied -> VM runs -> clock stepped, thawed -> published

Frozen before it is saved: so are the clones, until each has an identity of its own. The digests are made when the
sandbox runs again. Whatever fails, or whoever breaks it off, the VM runs again and is thawed, and nothing else stays.
"""

import logging
from dataclasses import replace
from pathlib import Path

from hyperd.errors import HyperError, WrongStateError
from hyperd.guest.base import Guest
from hyperd.model.container import ContainerRecord
from hyperd.model.guest import FIRST_PROCESS
from hyperd.model.snapshot import Compatibility, Snapshot, SnapshotKind
from hyperd.sandbox.definition import STATE
from hyperd.sandbox.errands import Services
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.policy_desk import as_limited
from hyperd.sandbox.rooms import now_ms
from hyperd.sandbox.source import DISK, Source, source_of
from hyperd.sandbox.standstill import to_the_end
from hyperd.sandbox.tenure import Tenure
from hyperd.snapshot.base import Draft

log = logging.getLogger(__name__)

DEVICES_BYTES = 8 << 20  # of devices and page tables, beside the guest's memory


class Saver:
    def __init__(self, record: ContainerRecord, services: Services, journal: Journal) -> None:
        self._record = record
        self._services = services
        self._journal = journal
        self._rooms = services.runner.rooms

    async def save(
        self,
        tenure: Tenure,
        made_of: Compatibility | None,
        kind: SnapshotKind,
        *,
        name: str = "",
        passing: bool = False,
    ) -> Snapshot:
        """Of one that is ``tenure.paused`` it stays paused, and its guest frozen until somebody lets it go on.

        A hibernation's VM does not go on either, once it is saved. Raises ExhaustedError (no space), WrongStateError
        (of an older hyperd's), ExistsError (the name), what the rooms raise.
        """
        if made_of is None:
            raise WrongStateError(
                "was started by a hyperd that did not write down what it is made of",
                subject=f"container {self._record.name}",
                hint="stop and start it: then it can be saved",
            )
        disk = None
        if kind is SnapshotKind.SANDBOX:
            disk = await self._rooms.storage.writable_path(self._record.sandbox_id)
        draft = await self._rooms.snapshots.begin(need_bytes=await self._estimate(disk))
        try:
            owner = self._services.owner_of(self._record.sandbox_id)
            state = await draft.create_file(STATE, owner=owner)
            source = await self._stand_still(tenure, draft, state, disk)
            try:
                return await self._rooms.snapshots.publish(
                    draft,
                    kind,
                    made_of,
                    name=name,
                    source=replace(source, passing=passing).render(),
                    lasting=not passing,
                )
            except BaseException:
                if disk is None:
                    await to_the_end(self.go_on(tenure))
                raise
        except BaseException:
            await to_the_end(self._forget(draft))
            raise

    async def _forget(self, draft: Draft) -> None:
        """Published as well: who is told that it failed has nobody to remove it."""
        await self._rooms.snapshots.discard(draft)
        await self._rooms.snapshots.remove(draft.snapshot_id)

    async def _estimate(self, disk: Path | None) -> int:
        """At most. What a guest says it uses leaves out its page cache, and what it freed and did not clear; what its
        QEMU uses on the host leaves out the template's pages that it has not touched. QEMU writes all of these.
        """
        allocated = await self._services.runner.allocated_bytes(disk) if disk is not None else 0
        return (self._record.sizing.memory_mib << 20) + DEVICES_BYTES + allocated

    async def _stand_still(self, tenure: Tenure, draft: Draft, state: Path, disk: Path | None) -> Source:
        """All of the time in which the sandbox does not go on."""
        hypervisor, sandbox_id = self._rooms.hypervisor, self._record.sandbox_id
        began = now_ms()
        try:
            if tenure.paused:  # for as long as freezing takes
                await hypervisor.resume(sandbox_id)
            guest = tenure.live.guest
            await guest.freeze()
            source = await self._source(guest)
            stopped = now_ms()
            await hypervisor.save(sandbox_id, state)
            if disk is not None:
                await draft.add_copy(DISK, disk)
        except BaseException as error:
            try:
                await to_the_end(self.go_on(tenure))
            except HyperError as further:
                fields = {"sandbox": self._record.name, "error": str(further), "cause": str(error)}
                log.error("does not go on", extra=fields)  # noqa: TRY400
            raise
        resumed = await to_the_end(self.go_on(tenure)) if disk is not None else now_ms()
        return replace(source, pause_ms=round(now_ms() - began), stopped_ms=round(resumed - stopped))

    async def _source(self, guest: Guest) -> Source:
        """The guest is frozen: what it says of its processes holds."""
        record = as_limited(self._rooms.network, self._record)
        source = replace(source_of(record), output_offset=self._journal.end_offset)
        for container in await guest.list_containers():
            if container.container_id == container_id_of(self._record):
                further = [item for item in container.processes if item.process_id != FIRST_PROCESS]
                source = replace(source, execs=len(further))
        return source

    async def go_on(self, tenure: Tenure) -> float:
        """Returns when the VM ran again, by the clock of ``now_ms``."""
        hypervisor, sandbox_id = self._rooms.hypervisor, self._record.sandbox_id
        if tenure.paused:
            await hypervisor.pause(sandbox_id)
            return now_ms()
        await hypervisor.resume(sandbox_id)
        resumed = now_ms()
        await tenure.thaw()
        return resumed
