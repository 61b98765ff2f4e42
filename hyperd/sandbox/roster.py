# SPDX-License-Identifier: Apache-2.0
"""The sandboxes that there are: by id and by name, each with a driver that runs."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import ExistsError, InvalidError, NotFoundError
from hyperd.model.container import ContainerRecord, Sizing
from hyperd.model.image import Platform
from hyperd.model.vm import SandboxId
from hyperd.sandbox import machine
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.endpoints import endpoints_of
from hyperd.sandbox.errands import Services
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.living_volumes import LivingVolumes
from hyperd.sandbox.policy_desk import limits_of
from hyperd.sandbox.snapshot_desk import SnapshotDesk
from hyperd.sandbox.snapshots import Snapshots
from hyperd.sandbox.volume_vm import VolumeVms
from hyperd.sandbox.volumes import VolumeDesk
from hyperd.storage.base import Recording


@dataclass(frozen=True, slots=True)
class FleetSettings:
    default_sizing: Sizing
    platform: Platform
    log_dir: Path  # one directory a sandbox
    log_max_bytes: int


class Roster:
    def __init__(self, services: Services, settings: FleetSettings) -> None:
        self.snapshots = Snapshots(services.runner.rooms.snapshots)
        self.volumes: VolumeDesk = services.volumes
        self.snapshot_desk = SnapshotDesk(self.snapshots, services.runner.rooms.volumes.snapshots)
        self._services = services
        self._settings = settings
        self._drivers: dict[SandboxId, SandboxDriver] = {}
        self.volume_vms = VolumeVms(services)
        self.living_volumes = LivingVolumes(services.runner.rooms, self._drivers.get)
        self._tasks = asyncio.TaskGroup()
        self._creating: dict[str, ContainerRecord] = {}  # by name
        self._rolling_back: set[SandboxId] = set()

    def _taken(self) -> set[str]:
        return {driver.record.name for driver in self._present()} | set(self._creating)

    def _present(self) -> list[SandboxDriver]:
        return [driver for driver in self._drivers.values() if not driver.removed]

    def _find(self, reference: str) -> SandboxDriver:
        wanted = reference.removeprefix("/")
        present = self._present()
        for driver in present:
            if driver.record.sandbox_id == wanted:
                return driver
        for driver in present:
            if driver.record.name == wanted:
                return driver
        matching = [driver for driver in present if wanted and driver.record.sandbox_id.startswith(wanted)]
        if len(matching) > 1:
            raise InvalidError(f"{len(matching)} containers begin with it", subject=repr(reference))
        if not matching:
            raise NotFoundError("no such container", subject=reference, hint="`hyper ps -a` lists all")
        return matching[0]

    async def _insert(
        self, *records: ContainerRecord, pending: bool = False, along: Recording | None = None
    ) -> None:
        self._creating.update({record.name: record for record in records})
        try:
            await self._services.records.insert(*records, pending=pending, along=along)
            # Again: somebody may have asked for their removal just before this creation counted as a user of theirs.
            await self._services.runner.rooms.images.get(records[0].image_id)
            self._require_networks(records, with_groups=not pending)
        except (asyncio.CancelledError, NotFoundError):
            # Cancelled, the insert may happen all the same, and nobody would know of the record.
            for record in records:
                await self._services.records.delete(record.sandbox_id)
            raise
        finally:
            for record in records:
                del self._creating[record.name]

    def _require_networks(self, records: Iterable[ContainerRecord], *, with_groups: bool) -> None:
        """``with_groups``: and their groups; a clone whose group has gone hears nobody."""
        network = self._services.runner.rooms.network
        for record in records:
            for endpoint in endpoints_of(record.spec):
                network.get_network(endpoint.network)
            if with_groups:
                network.policies.require_valid(limits_of(record.spec))

    def records(self) -> list[ContainerRecord]:
        """Of all, in whatever state; those that are being created, too: what they name is in use."""
        return [*(driver.record for driver in self._present()), *self._creating.values()]

    def _require_free(self, name: str) -> None:
        owner = next((driver for driver in self._present() if driver.record.name == name), None)
        if owner is not None or name in self._creating:
            holder = f" by container {owner.record.sandbox_id[:12]}" if owner else ""
            raise ExistsError(
                f"the name is in use{holder}",
                subject=name,
                hint=f"`hyper rm {name}` frees it, or give another --name",
            )

    def _admit(
        self, record: ContainerRecord, state: machine.State, generation: int, *, pending: bool = False
    ) -> SandboxDriver:
        journal = Journal(
            self._settings.log_dir / record.sandbox_id / "log", max_bytes=self._settings.log_max_bytes
        )
        driver = SandboxDriver(record, self._services, journal, state, generation)
        driver.pending = pending
        self._drivers[record.sandbox_id] = driver
        self._tasks.create_task(self._drive(driver), name=f"sandbox {record.name}")
        return driver

    async def _drive(self, driver: SandboxDriver) -> None:
        try:
            await driver.run()
        finally:
            if driver.removed:
                del self._drivers[driver.record.sandbox_id]
