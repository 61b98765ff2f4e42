# SPDX-License-Identifier: Apache-2.0
"""All sandboxes of this host: makes them, finds them, and holds the records against what really exists."""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import ExistsError, HyperError, InvalidError, NotFoundError, UnsupportedError
from hyperd.model.container import ContainerRecord, ContainerSpec, ContainerState, ContainerView, Sizing
from hyperd.model.image import ImageId, Platform
from hyperd.model.vm import SandboxId, VmStatus
from hyperd.sandbox import admission, assembly, filters, machine, names
from hyperd.sandbox.driver import SandboxDriver, Services
from hyperd.sandbox.journal import Journal

log = logging.getLogger(__name__)

RECONCILE_EVERY_S = 30.0
MIN_PREFIX = 1


@dataclass(frozen=True, slots=True)
class FleetSettings:
    default_sizing: Sizing
    platform: Platform
    log_dir: Path  # one directory a sandbox
    log_max_bytes: int


class Fleet:
    def __init__(self, services: Services, settings: FleetSettings) -> None:
        self._services = services
        self._settings = settings
        self._drivers: dict[SandboxId, SandboxDriver] = {}
        self._tasks = asyncio.TaskGroup()
        self._creating: set[str] = set()

    async def run(self, ready: asyncio.Event) -> None:
        """Adopt what exists, then serve until cancelled; running VMs are left running."""
        async with self._tasks:
            await self._open()
            self._tasks.create_task(self._listen())
            self._tasks.create_task(self._reconcile())
            ready.set()

    async def create(self, spec: ContainerSpec) -> tuple[ContainerView, list[str]]:
        """Record a container. Raises ImageNotFoundError, InvalidError, ExistsError, UnsupportedError."""
        assembly.require_valid(spec)
        image = await self._services.runner.rooms.images.get(spec.image)
        self._require_platform(spec, image.platform)
        command = assembly.command_of(spec, image.config)
        sizing = assembly.sizing_of(spec, self._settings.default_sizing)
        held = self._services.ledger.admission
        admission.require_sane(sizing, max_vcpus=held.max_vcpus_each, host_memory_mib=held.memory_mib)
        taken = {driver.record.name for driver in self._drivers.values()} | self._creating
        name = spec.name.removeprefix("/")
        if name:
            names.require_valid(name)
            self._require_free(name)
        else:
            name = names.invent(taken)
        record = ContainerRecord(
            sandbox_id=SandboxId(secrets.token_hex(32)),
            name=name,
            spec=spec,
            image_id=image.image_id,
            command=command,
            sizing=sizing,
            created_at=datetime.now(UTC),
        )
        self._creating.add(name)
        try:
            await self._services.records.insert(record)
        finally:
            self._creating.discard(name)
        driver = self._admit(record, machine.Created(), 0)
        log.info("created", extra={"sandbox": name, "id": record.sandbox_id[:12], "image": spec.image})
        return driver.view(), _warnings(spec)

    def get(self, reference: str) -> SandboxDriver:
        """By full id, name, or unique prefix of an id. Raises NotFoundError, InvalidError (ambiguous)."""
        wanted = reference.removeprefix("/")
        exact = self._drivers.get(SandboxId(wanted))
        if exact is not None:
            return exact
        for driver in self._drivers.values():
            if driver.record.name == wanted:
                return driver
        matching = [driver for key, driver in self._drivers.items() if wanted and key.startswith(wanted)]
        if len(matching) > 1:
            raise InvalidError(f"{len(matching)} containers begin with it", subject=repr(reference))
        if not matching:
            raise NotFoundError("no such container", subject=reference, hint="`hyper ps -a` lists all")
        return matching[0]

    def list_views(self, wanted: Sequence[tuple[str, str]], *, everything: bool) -> list[ContainerView]:
        """Newest first; see filters.py."""
        views = [driver.view() for driver in self._drivers.values()]
        return filters.choose(views, wanted, everything=everything, find=lambda name: self.get(name).view())

    def images_in_use(self) -> frozenset[ImageId]:
        return frozenset(driver.record.image_id for driver in self._drivers.values())

    async def _open(self) -> None:
        running = {vm.sandbox_id: vm for vm in await self._services.runner.rooms.hypervisor.list_running()}
        for stored in await self._services.records.load():
            driver = self._admit(stored.record, stored.state, stored.generation)
            driver.adopt(running.pop(stored.record.sandbox_id, None))
        for sandbox_id in running:
            await self._discard_unknown(sandbox_id)
        rooms = self._services.runner.rooms
        owned = await rooms.storage.list_sandboxes() | await rooms.network.list_attached()
        for sandbox_id in owned - set(self._drivers):
            await self._discard_unknown(sandbox_id)

    async def _discard_unknown(self, sandbox_id: SandboxId) -> None:
        log.warning("removing what no record knows", extra={"id": sandbox_id[:12]})
        try:
            await self._services.runner.discard(sandbox_id)
        except HyperError as error:
            log.error("not removed", extra={"id": sandbox_id[:12], "error": str(error)})  # noqa: TRY400

    def _admit(self, record: ContainerRecord, state: machine.State, generation: int) -> SandboxDriver:
        journal = Journal(
            self._settings.log_dir / record.sandbox_id / "log", max_bytes=self._settings.log_max_bytes
        )
        driver = SandboxDriver(record, self._services, journal, state, generation)
        self._drivers[record.sandbox_id] = driver
        self._tasks.create_task(self._drive(driver), name=f"sandbox {record.name}")
        return driver

    async def _drive(self, driver: SandboxDriver) -> None:
        try:
            await driver.run()
        finally:
            if driver.removed:
                del self._drivers[driver.record.sandbox_id]

    async def _listen(self) -> None:
        async for gone in self._services.runner.rooms.hypervisor.events():
            driver = self._drivers.get(gone.sandbox_id)
            if driver is not None:
                driver.vm_gone(gone)

    async def _reconcile(self) -> None:
        """Events are hints: look every so often whether a VM went away, or one exists that should not."""
        hypervisor = self._services.runner.rooms.hypervisor
        suspects: set[SandboxId] = set()
        while True:
            await asyncio.sleep(RECONCILE_EVERY_S)
            try:
                running: dict[SandboxId, VmStatus] = {
                    vm.sandbox_id: vm for vm in await hypervisor.list_running()
                }
            except HyperError as error:
                log.error("cannot list VMs", extra={"error": str(error)})  # noqa: TRY400
                continue
            # Acted upon when seen twice: a start or an end may be under way.
            missing = {
                key for key, driver in self._drivers.items() if driver.should_have_vm() and key not in running
            }
            extra = {
                key for key in running if key in self._drivers and self._drivers[key].should_have_no_vm()
            }
            for sandbox_id in missing & suspects:
                self._drivers[sandbox_id].vm_is_missing()
            for sandbox_id in extra & suspects:
                log.error("a VM runs that should not", extra={"id": sandbox_id[:12]})
                await hypervisor.destroy(sandbox_id)
            suspects = missing | extra

    def _require_free(self, name: str) -> None:
        owner = next((driver for driver in self._drivers.values() if driver.record.name == name), None)
        if owner is not None or name in self._creating:
            holder = f" by container {owner.record.sandbox_id[:12]}" if owner else ""
            raise ExistsError(
                f"the name is in use{holder}",
                subject=name,
                hint=f"`hyper rm {name}` frees it, or give another --name",
            )

    def _require_platform(self, spec: ContainerSpec, image: Platform) -> None:
        ours = self._settings.platform
        if (image.os, image.architecture) != (ours.os, ours.architecture):
            raise UnsupportedError(
                f"is for {image}, this host runs {ours}",
                subject=f"image {spec.image}",
                hint="pull it for this platform",
            )


def _warnings(spec: ContainerSpec) -> list[str]:
    if spec.network == "none" and (spec.dns_servers or spec.dns_searches):
        return ["--dns has no effect with --network none"]
    return []


def is_running(view: ContainerView) -> bool:
    return view.state in (ContainerState.STARTING, ContainerState.RUNNING, ContainerState.STOPPING)
