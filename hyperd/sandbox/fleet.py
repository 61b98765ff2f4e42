# SPDX-License-Identifier: Apache-2.0
"""All sandboxes of this host: makes them, finds them, and holds the records against what really exists."""

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

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
from hyperd.model.snapshot import Snapshot
from hyperd.model.vm import SandboxId
from hyperd.sandbox import admission, assembly, filters, machine, names
from hyperd.sandbox.cloning import CloneOptions, fork_identity, plan_clones
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.errands import Services
from hyperd.sandbox.handle import SandboxHandle
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.records import Stored
from hyperd.sandbox.revival import Origin, require_restorable
from hyperd.sandbox.rooms import one_error
from hyperd.sandbox.snapshots import Snapshots
from hyperd.sandbox.source import parse_source, source_of, title_of
from hyperd.sandbox.standstill import to_the_end

log = logging.getLogger(__name__)

R = TypeVar("R")
RECONCILE_EVERY_S = 30.0
RESTORES_AT_ONCE = 16


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
        self.snapshots = Snapshots(services.runner.rooms.snapshots)

    async def run(self, ready: asyncio.Event) -> None:
        """Adopt what exists, then serve until cancelled; running VMs are left running.

        Raises what the rooms raise when they cannot say what exists. A record that cannot be read is set aside: shown
        as failed, with its VM left alone, until somebody removes it.
        """
        stored = await self._without_pending(await self._services.records.load())
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
            await self.snapshots.tidy([key for item in stored if (key := machine.asleep_in(item.state))])
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
            name = names.invent(self._taken())
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

    async def restore(self, reference: str, options: CloneOptions) -> list[ContainerView]:
        """Clones of a snapshot, in the order of their index: all of them or none.

        Raises NotFoundError, InvalidError, ExistsError, ImageNotFoundError, UnsupportedError (another kind of host),
        ExhaustedError with the arithmetic, RestoreError.
        """
        snapshot = self.snapshots.get(reference)
        return await self._detached(self._restore(snapshot, options))

    async def fork(self, reference: str, options: CloneOptions) -> tuple[list[ContainerView], int]:
        """A snapshot that nobody sees, and clones of it; and for how many ms the source stood still. All or none."""
        return await self._detached(self._fork(self._find(reference), options))

    async def roll_back(self, reference: str, snapshot_reference: str) -> None:
        """The same sandbox, back at one of its own snapshots. Raises InvalidError for one of another's."""
        driver, snapshot = self._find(reference), self.snapshots.get(snapshot_reference)
        source = parse_source(snapshot.manifest)
        if source.sandbox_id != driver.record.sandbox_id:
            raise InvalidError(
                f"is of container {source.name}",
                subject=title_of(snapshot),
                hint=f"`hyper run --from-snapshot {snapshot_reference}` makes a clone of it",
            )
        await self._require_restorable(snapshot, driver.record)
        handle = SandboxHandle(driver)
        await handle.roll_back(Origin(snapshot, output_offset=source.output_offset))

    def images_in_use(self) -> dict[ImageId, str]:
        """And by whom, in short. Those of containers that are being created, too."""
        users = self.snapshots.images()
        for image_id in (*(driver.record.image_id for driver in self._present()), *self._creating.values()):
            users[image_id] = "a container"
        return users

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

    async def _fork(self, driver: SandboxDriver, options: CloneOptions) -> tuple[list[ContainerView], int]:
        # All that can be refused is refused before the source stands still.
        machine.require_up(driver.state, driver.record.name)
        planned = plan_clones(source_of(driver.record), options, self._taken(), datetime.now(UTC))
        for record in planned:
            self._require_free(record.name)
        admission_ = self._services.ledger.admission
        admission_.admit_all([record.sandbox_id for record in planned], driver.record.sizing)
        snapshot = await SandboxHandle(driver).snapshot(passing=True)
        try:
            views = await self._restore(snapshot, options)
        finally:
            await to_the_end(self.snapshots.forget(snapshot.manifest.snapshot_id))
        return views, parse_source(snapshot.manifest).pause_ms

    async def _require_restorable(self, snapshot: Snapshot, record: ContainerRecord) -> None:
        services = self._services
        require_restorable(
            snapshot,
            record.sizing,
            has_nic=record.spec.network != "none",
            accelerator=await services.accelerator(),
            guest=services.runner.settings.guest,
            host=await services.facts.get(),
        )
        await services.runner.rooms.snapshots.require_intact(snapshot)

    async def _restore(self, snapshot: Snapshot, options: CloneOptions) -> list[ContainerView]:
        source = parse_source(snapshot.manifest)
        records = plan_clones(source, options, self._taken(), datetime.now(UTC))
        for record in records:
            self._require_free(record.name)
        services, rooms = self._services, self._services.runner.rooms
        await rooms.images.get(source.image_id)
        await self._require_restorable(snapshot, records[0])
        services.ledger.admit_all([record.sandbox_id for record in records], source.sizing)
        try:
            await self._insert(*records, pending=True)
        except BaseException:
            for record in records:
                services.ledger.release(record.sandbox_id)
            raise
        handles = [SandboxHandle(self._admit(record, machine.Created(), 0)) for record in records]
        try:
            await self._bring_to_life(handles, snapshot, options)
        except BaseException:
            await to_the_end(self._undo(handles))
            raise
        fields = {"snapshot": snapshot.manifest.snapshot_id[:12], "count": options.count}
        log.info("restored", extra=fields)
        return [handle.view() for handle in handles]

    async def _bring_to_life(
        self, handles: Sequence[SandboxHandle], snapshot: Snapshot, options: CloneOptions
    ) -> None:
        """Until all are there they stand still, and a hyperd that is killed leaves none of them."""
        places = asyncio.Semaphore(RESTORES_AT_ONCE)

        async def revive(index: int, handle: SandboxHandle) -> None:
            async with places:
                await handle.revive(Origin(snapshot, fork_identity(options, index)))

        async with one_error(), asyncio.TaskGroup() as tasks:
            for index, handle in enumerate(handles):
                tasks.create_task(revive(index, handle))
        await self._services.records.settle([handle.record.sandbox_id for handle in handles])
        async with one_error(), asyncio.TaskGroup() as tasks:
            for handle in handles:
                tasks.create_task(handle.thaw())

    async def _undo(self, handles: Sequence[SandboxHandle]) -> None:
        async def remove(handle: SandboxHandle) -> None:
            try:
                await handle.remove(force=True)
            except HyperError as error:
                log.error("clone not removed", extra={"sandbox": handle.record.name, "error": str(error)})  # noqa: TRY400

        async with asyncio.TaskGroup() as tasks:
            for handle in handles:
                tasks.create_task(remove(handle))

    async def _detached(self, work: Coroutine[Any, Any, R]) -> R:
        """A caller who hangs up ends its wait, never half of the work."""
        outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        async def carry() -> None:
            try:
                result = await work
            except Exception as error:  # noqa: BLE001 - handed on, bugs too
                outcome.set_exception(error)
                outcome.exception()  # perhaps nobody waits any more
            else:
                outcome.set_result(result)

        task = self._tasks.create_task(carry())
        task.add_done_callback(lambda _: outcome.cancel())  # unless it has its outcome
        return await asyncio.shield(outcome)

    async def _without_pending(self, stored: list[Stored]) -> list[Stored]:
        """Clones that should have come together, and had not when hyperd ended: none of them stays."""
        left = []
        for item in stored:
            if not item.pending:
                left.append(item)
                continue
            sandbox_id = item.record.sandbox_id
            log.warning("removing a clone whose restore was cut short", extra={"id": sandbox_id[:12]})
            try:
                await self._services.runner.discard(sandbox_id)
                await self._services.records.delete(sandbox_id)
            except HyperError as error:
                log.error("not removed", extra={"id": sandbox_id[:12], "error": str(error)})  # noqa: TRY400
                left.append(replace(item, unreadable=error))
        return left

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

    async def _insert(self, *records: ContainerRecord, pending: bool = False) -> None:
        self._creating.update({record.name: record.image_id for record in records})
        try:
            await self._services.records.insert(*records, pending=pending)
            # Again: somebody may have asked for the image's removal just before this creation counted as its user.
            await self._services.runner.rooms.images.get(records[0].image_id)
        except (asyncio.CancelledError, ImageNotFoundError):
            # Cancelled, the insert may happen all the same, and nobody would know of the record.
            for record in records:
                await self._services.records.delete(record.sandbox_id)
            raise
        finally:
            for record in records:
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
