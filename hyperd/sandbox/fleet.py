# SPDX-License-Identifier: Apache-2.0
"""All sandboxes of this host: makes them, finds them, and holds the records against what really exists."""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import (
    ExistsError,
    HyperError,
    ImageNotFoundError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
)
from hyperd.model.container import ContainerRecord, ContainerSpec, ContainerView, Sizing
from hyperd.model.image import ImageId, Platform
from hyperd.model.vm import SandboxId
from hyperd.sandbox import admission, assembly, filters, machine, names
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.errands import Services
from hyperd.sandbox.handle import SandboxHandle
from hyperd.sandbox.journal import Journal

log = logging.getLogger(__name__)

RECONCILE_EVERY_S = 30.0


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
        self._creating: dict[str, ImageId] = {}  # by name
        self._missing: set[SandboxId] = set()
        self._surplus: set[SandboxId] = set()

    async def run(self, ready: asyncio.Event) -> None:
        """Adopt what exists, then serve until cancelled; running VMs are left running.

        Raises what the rooms raise when they cannot say what exists. A record that cannot be read is set aside: shown
        as failed, with its VM left alone, until somebody removes it.
        """
        stored = await self._services.records.load()
        running = {vm.sandbox_id: vm for vm in await self._services.runner.rooms.hypervisor.list_running()}
        async with self._tasks:
            for item in stored:
                driver = self._admit(item.record, item.state, item.generation)
                if item.unreadable is None:
                    driver.adopt(running.get(item.record.sandbox_id))
                else:
                    fields = {"id": item.record.sandbox_id, "error": str(item.unreadable)}
                    log.error("record set aside", extra=fields)
                    driver.set_aside(item.unreadable, running.get(item.record.sandbox_id))
            await self._discard_unknown(set(running))
            self._tasks.create_task(self._listen())
            self._tasks.create_task(self._reconcile_regularly())
            ready.set()

    async def create(self, spec: ContainerSpec) -> tuple[ContainerView, list[str]]:
        """Record a container. Raises ImageNotFoundError, InvalidError, ExistsError, UnsupportedError."""
        assembly.require_valid(spec)
        image = await self._services.runner.rooms.images.get(spec.image)
        self._require_platform(spec, image.platform)
        command = assembly.command_of(spec, image.config)
        spec, warnings = assembly.with_image_defaults(spec, image.config)
        sizing = assembly.sizing_of(spec, self._settings.default_sizing)
        held = self._services.ledger.admission
        admission.require_sane(sizing, max_vcpus=held.max_vcpus_each, largest_mib=held.largest_mib)
        name = spec.name.removeprefix("/")
        if name:
            names.require_valid(name)
            self._require_free(name)
        else:
            name = names.invent({driver.record.name for driver in self._present()} | set(self._creating))
        record = ContainerRecord(
            sandbox_id=SandboxId(secrets.token_hex(32)),
            name=name,
            spec=spec,
            image_id=image.image_id,
            command=command,
            sizing=sizing,
            created_at=datetime.now(UTC),
        )
        await self._insert(record)
        driver = self._admit(record, machine.Created(), 0)
        log.info("created", extra={"sandbox": name, "id": record.sandbox_id[:12], "image": spec.image})
        return driver.view(), warnings

    def get(self, reference: str) -> SandboxHandle:
        """By full id, name, or unique prefix of an id. Raises NotFoundError, InvalidError (ambiguous)."""
        return SandboxHandle(self._find(reference))

    def list_views(self, wanted: Sequence[tuple[str, str]], *, everything: bool) -> list[ContainerView]:
        """Newest first; see filters.py."""
        views = [driver.view() for driver in self._present()]
        return filters.choose(views, wanted, everything=everything, find=lambda name: self._find(name).view())

    def images_in_use(self) -> frozenset[ImageId]:
        """Those of containers that are being created, too."""
        return frozenset((*(driver.record.image_id for driver in self._present()), *self._creating.values()))

    async def reconcile(self) -> None:
        """Hold what runs against what should. Acted upon when seen twice: a start or an end may be under way."""
        hypervisor = self._services.runner.rooms.hypervisor
        try:
            running = {vm.sandbox_id for vm in await hypervisor.list_running()}
        except HyperError as error:
            log.error("cannot list VMs", extra={"error": str(error)})  # noqa: TRY400
            return
        missing = {
            driver.record.sandbox_id for driver in self._present() if driver.should_have_vm()
        } - running
        surplus = {
            driver.record.sandbox_id for driver in self._present() if driver.should_have_no_vm()
        } & running
        for sandbox_id in missing & self._missing:
            self._drivers[sandbox_id].vm_is_missing()
        for sandbox_id in surplus & self._surplus:
            log.error("a VM runs that should not", extra={"id": sandbox_id[:12]})
            try:
                await hypervisor.destroy(sandbox_id)
            except HyperError as error:
                log.error("not destroyed", extra={"id": sandbox_id[:12], "error": str(error)})  # noqa: TRY400
        self._missing, self._surplus = missing, surplus

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

    async def _insert(self, record: ContainerRecord) -> None:
        self._creating[record.name] = record.image_id
        try:
            await self._services.records.insert(record)
            # Again: somebody may have asked for the image's removal just before this creation counted as its user.
            await self._services.runner.rooms.images.get(record.image_id)
        except (asyncio.CancelledError, ImageNotFoundError):
            # Cancelled, the insert may happen all the same, and nobody would know of the record.
            await self._services.records.delete(record.sandbox_id)
            raise
        finally:
            del self._creating[record.name]

    async def _discard_unknown(self, running: set[SandboxId]) -> None:
        """What no record knows is of a removal, a probe or a template's build that was cut short."""
        rooms = self._services.runner.rooms
        owned = running | await rooms.storage.list_sandboxes() | await rooms.network.list_attached()
        owned |= await self._services.runner.list_directories()
        for sandbox_id in owned - set(self._drivers):
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

    async def _reconcile_regularly(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_EVERY_S)
            await self.reconcile()

    def _require_free(self, name: str) -> None:
        owner = next((driver for driver in self._present() if driver.record.name == name), None)
        if owner is not None or name in self._creating:
            holder = f" by container {owner.record.sandbox_id[:12]}" if owner else ""
            raise ExistsError(
                f"the name is in use{holder}",
                subject=name,
                hint=f"`hyper rm {name}` frees it, or give another --name",
            )

    def _require_platform(self, spec: ContainerSpec, image: Platform) -> None:
        ours = self._settings.platform
        asked = spec.platform or str(ours)
        if asked.split("/")[:2] != [ours.os, ours.architecture]:
            raise UnsupportedError(f"this host runs {ours}", subject=f"--platform {asked}")
        if (image.os, image.architecture) != (ours.os, ours.architecture):
            raise UnsupportedError(
                f"is for {image}, this host runs {ours}",
                subject=f"image {spec.image}",
                hint="pull it for this platform",
            )


def is_running(view: ContainerView) -> bool:
    return view.state in filters.UP
