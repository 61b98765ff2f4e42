# SPDX-License-Identifier: Apache-2.0
"""All sandboxes of this host: makes them, finds them, and holds the records against what really exists."""

import asyncio
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from hyperd.errors import (
    HyperError,
    NotFoundError,
    UnsupportedError,
)
from hyperd.model.container import ContainerRecord, ContainerSpec, ContainerView
from hyperd.model.image import ImageId, Platform
from hyperd.model.network import Named
from hyperd.model.stats import ContainerStats
from hyperd.model.vm import SandboxId, VmStatus
from hyperd.sandbox import (
    admission,
    endpoints,
    filters,
    identity,
    joined,
    links,
    machine,
    mount_sources,
    mounts,
    names,
    policy_desk,
    specification,
    statistics,
)
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.errands import Services
from hyperd.sandbox.handle import SandboxHandle
from hyperd.sandbox.network_desk import settled
from hyperd.sandbox.records import Stored
from hyperd.sandbox.restoring import RestoringFleet
from hyperd.sandbox.roster import FleetSettings

log = logging.getLogger(__name__)

RECONCILE_EVERY_S = 30.0
_UP = machine.Running | machine.Paused


class Fleet(RestoringFleet):
    def __init__(self, services: Services, settings: FleetSettings) -> None:
        super().__init__(services, settings)
        services.peers.find = self._find_running
        services.carriers.find = self._drivers.get
        self._missing: set[SandboxId] = set()
        self._surplus: set[SandboxId] = set()
        self._holding: set[SandboxId] = set()
        self._unknown: set[SandboxId] = set()  # what no record knows, and could not be removed

    async def run(self, ready: asyncio.Event) -> None:
        """Adopt what exists, then serve until cancelled; running VMs are left running.

        Raises what the rooms raise when they cannot say what exists. A record that cannot be read is set aside: shown
        as failed, with its VM left alone, until somebody removes it.
        """
        stored = await self._without_pending(await self._services.records.load())
        running = {vm.sandbox_id: vm for vm in await self._services.runner.rooms.hypervisor.list_running()}
        stored = [await self._as_found(item, running) for item in stored]
        # A VM that no record knows has what it has until it is gone, too.
        await self._services.runner.rooms.volumes.keep_only(
            {item.record.sandbox_id for item in stored} | set(running), set(running)
        )
        await self._services.runner.rooms.shares.keep_only(set(running))
        # Before any VM goes on: memory that is older than its sandbox's disk must not be there any more.
        await self.snapshots.tidy(
            [key for item in stored if (key := machine.asleep_in(item.state))],
            [item.record.sandbox_id for item in stored if item.unreadable is not None],
        )
        await self._discard_staged(stored)
        left = await self._leave_networks(stored)
        async with self._tasks:
            for item in stored:
                driver = self._admit(item.record, item.state, item.generation)
                driver.left_networks = item.record.sandbox_id in left
                if item.unreadable is None:
                    driver.adopt(_vm_of(item, running))
                else:
                    fields = {"id": item.record.sandbox_id, "error": str(item.unreadable)}
                    log.error("record set aside", extra=fields)
                    driver.set_aside(item.unreadable, running.get(item.record.sandbox_id))
            await self._discard_unknown(set(running))
            self._tasks.create_task(self._listen())
            self._tasks.create_task(self._reconcile_regularly())
            ready.set()

    async def _discard_staged(self, stored: Sequence[Stored]) -> None:
        """Of rollbacks that were not recorded: nobody goes on with these."""
        back = {
            item.record.sandbox_id
            for item in stored
            if item.unreadable is not None
            or (isinstance(item.state, machine.Starting) and item.state.back_to is not None)
        }
        try:
            await self._services.runner.rooms.storage.discard_all_staged(back)
        except HyperError as error:  # the next hyperd tries again
            log.error("staged disks not removed", extra={"error": str(error)})  # noqa: TRY400

    async def _leave_networks(self, stored: Sequence[Stored]) -> set[SandboxId]:
        """Those that a hyperd that was killed was about to join, or to leave; and who was on one."""
        wanted = {
            item.record.sandbox_id: [at.network for at in endpoints.endpoints_of(item.record.spec)]
            for item in stored
            if item.unreadable is None
        }
        try:
            return await self._services.runner.rooms.network.keep_only(wanted)
        except HyperError as error:  # the next hyperd tries again
            log.error("networks not left", extra={"error": str(error)})  # noqa: TRY400
            return set()

    async def create(self, spec: ContainerSpec) -> tuple[ContainerView, list[str]]:
        """Record a container. Raises ImageNotFoundError, InvalidError, ExistsError, UnsupportedError."""
        specification.require_valid(spec)
        network = self._services.runner.rooms.network
        network.policies.require_valid(policy_desk.limits_of(spec))
        spec = joined.settled(spec, lambda name: self._find(name).record)
        spec = settled(network, spec)
        spec = links.settled(spec, lambda name: self._find(name).view())
        image = await self._services.runner.rooms.images.get(spec.image)
        self._require_platform(spec, image.platform)
        command = specification.command_of(spec, image.config)
        spec, warnings = specification.with_image_defaults(spec, image.config)
        shared = [self._shared(text) for text in spec.volumes_from]
        carrier = self._carrier_of(spec)
        joined.require_mountable(spec)
        spec, further = mounts.resolve(spec, image.config.volumes if carrier is None else (), shared)
        warnings += further
        if carrier is not None:
            warnings += joined.warnings_of(image.config.volumes)
        if binds := mount_sources.bind_requests(spec.mounts):
            await self._services.runner.rooms.shares.require_possible(binds)
        sizing = specification.sizing_of(spec, carrier.sizing if carrier else self._settings.default_sizing)
        if carrier is not None:
            joined.require_fits(spec, sizing, carrier)
        held = self._services.ledger.admission
        admission.require_sane(sizing, max_vcpus=held.max_vcpus_each, largest_mib=held.largest_mib)
        name = spec.name.removeprefix("/")
        if name:
            names.require_valid(name)
            self._require_free(name)
        else:
            name = names.invent(self._taken())
        promised = self._services.runner.spares.promise(spec, sizing)
        record = ContainerRecord(
            sandbox_id=promised or SandboxId(secrets.token_hex(32)),
            name=name,
            spec=spec,
            image_id=image.image_id,
            command=command,
            sizing=sizing,
            created_at=datetime.now(UTC),
        )
        try:
            driver = await self._record(record)
        except BaseException:
            if promised is not None:
                self._tasks.create_task(self._services.runner.spares.take_back(promised))
            raise
        log.info("created", extra={"sandbox": name, "id": record.sandbox_id[:12], "image": spec.image})
        return driver.view(), warnings

    async def _record(self, record: ContainerRecord) -> SandboxDriver:
        """With its volumes, those that were not there yet made for it: all of it or nothing."""
        asked = record.spec.mounts
        uses = mount_sources.uses_of(asked)
        if not uses:
            await self._insert(record)
            return self._admit(record, machine.Created(), 0)
        volumes = self._services.runner.rooms.volumes
        requests = mount_sources.requests_of(asked)
        async with volumes.providing(record.sandbox_id, record.name, requests, uses) as recording:
            await self._insert(record, along=recording)
            return self._admit(record, machine.Created(), 0)

    def _carrier_of(self, spec: ContainerSpec) -> ContainerRecord | None:
        carrier_id = endpoints.carrier_of(spec)
        return self._find(carrier_id).record if carrier_id is not None else None

    def _shared(self, text: str) -> mounts.Sharing:
        reference, readonly = mounts.parse_volumes_from(text)
        return mounts.Sharing(self._find(reference).record.spec.mounts, readonly)

    def get(self, reference: str) -> SandboxHandle:
        """By full id, name, or unique prefix of an id. Raises NotFoundError, InvalidError (ambiguous)."""
        return SandboxHandle(self._find(reference))

    def list_views(self, wanted: Sequence[tuple[str, str]], *, everything: bool) -> list[ContainerView]:
        """Newest first; see filters.py."""
        views = [driver.view() for driver in self._present()]
        return filters.choose(views, wanted, everything=everything, find=lambda name: self._find(name).view())

    async def stats(self, references: Sequence[str], *, everything: bool) -> list[ContainerStats]:
        """Of those, or of all that run; of all there are, with ``everything``. Raises NotFoundError, InvalidError."""
        shown = references or [view.record.sandbox_id for view in self.list_views((), everything=everything)]
        rooms = self._services.runner.rooms
        return await statistics.read([self.get(each) for each in shown], rooms.hypervisor, rooms.network)

    def _find_running(self, sandbox_id: str) -> ContainerView | None:
        driver = self._drivers.get(SandboxId(sandbox_id))
        view = driver.view() if driver is not None else None
        return view if view is None or is_running(view) else replace(view, attachments=())

    def views(self) -> list[ContainerView]:
        """Of all, in whatever state."""
        return [driver.view() for driver in self._present()]

    def named(self) -> list[Named]:
        """Those that can be reached now, as others on their networks call them."""
        return [
            Named(
                at.network,
                at.address,
                identity.names_of(view.record, at.network),
                view.record.sandbox_id,
                tuple((link.alias, SandboxId(link.target)) for link in view.record.spec.links),
                at.address6,
            )
            for view in self.views()
            if is_running(view)
            for at in view.attachments
        ]

    def name_of(self, sandbox_id: SandboxId) -> str:
        """Running or not; "" of what is none."""
        driver = self._drivers.get(sandbox_id)
        return driver.record.name if driver is not None else ""

    def images_in_use(self) -> dict[ImageId, str]:
        """And by whom, in short. Those of containers that are being created, too."""
        users = self.snapshots.images()
        for record in self.records():
            users[record.image_id] = "a container"
        return users

    async def reconcile(self) -> None:
        """Hold what runs against what should. Acted upon when seen twice: a start or an end may be under way.

        What is left of a run its driver clears away, if it is at rest still, and no start is under way meanwhile.
        """
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
            self._drivers[sandbox_id].clear_away()
        self._missing, self._surplus = missing, surplus
        await self._detach_idle(running)
        await self.volume_vms.end_left()
        await self._discard_left()
        await self._services.runner.rooms.shares.tidy()

    async def _detach_idle(self, running: Collection[SandboxId]) -> None:
        """Volumes of a VM that could not be ended, and has gone since."""
        try:
            attached = await self._services.runner.rooms.volumes.attached()
        except HyperError as error:
            log.error("volumes not looked at", extra={"error": str(error)})  # noqa: TRY400
            return
        idle = {holder for holder in attached if self._is_idle(holder)} - set(running)
        for sandbox_id in idle & self._holding:
            log.warning("detaching the volumes of a VM that is gone", extra={"id": sandbox_id[:12]})
            self._drivers[sandbox_id].clear_away()
        self._holding = idle

    def _is_idle(self, sandbox_id: SandboxId) -> bool:
        driver = self._drivers.get(sandbox_id)
        return driver is not None and driver.should_have_no_vm()

    async def _as_found(self, item: Stored, running: Collection[SandboxId]) -> Stored:
        """One whose VM is gone after it was saved whole sleeps there, recorded or not.

        Hyperd was killed, or could not write, in between. Its disk tells whether it went on since.
        """
        record, state = item.record, item.state
        if record.sandbox_id in running or item.unreadable or not isinstance(state, _UP):
            return item
        snapshot = self.snapshots.memory_of(record.sandbox_id)
        if snapshot is None:
            return item
        asleep = machine.Hibernated(snapshot.manifest.snapshot_id, state.facts, snapshot.manifest.created_at)
        generation = item.generation + 1
        try:
            if await self._services.runner.disk_changed_at(record.sandbox_id) > snapshot.manifest.created_at:
                return item
            await self._services.records.save_state(record.sandbox_id, asleep, generation, lasting=True)
        except NotFoundError:
            return item
        except HyperError as error:  # the next start finds the same
            log.error("state not saved", extra={"sandbox": record.name, "error": str(error)})  # noqa: TRY400
        log.warning("found asleep", extra={"sandbox": record.name})
        return replace(item, state=asleep, generation=generation)

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

    async def _discard_unknown(self, running: set[SandboxId]) -> None:
        """What no record knows is of a removal, a probe, a template's build or a spare of a hyperd that was killed."""
        rooms = self._services.runner.rooms
        owned = running | await rooms.storage.list_sandboxes() | await rooms.network.list_attached()
        owned |= await self._services.runner.list_directories()
        self._unknown = owned - set(self._drivers)
        await self._discard_left()

    async def _discard_left(self) -> None:
        """What cannot go now is tried again at the next look: its volumes are nobody else's until then."""
        for sandbox_id in sorted(self._unknown):
            log.warning("removing what no record knows", extra={"id": sandbox_id[:12]})
            try:
                await self._services.runner.discard(sandbox_id)
                await self._services.runner.rooms.volumes.release(sandbox_id)
            except HyperError as error:
                log.error("not removed", extra={"id": sandbox_id[:12], "error": str(error)})  # noqa: TRY400
            else:
                self._unknown.discard(sandbox_id)

    async def _listen(self) -> None:
        async for gone in self._services.runner.rooms.hypervisor.events():
            self._services.runner.spares.vm_gone(gone.sandbox_id)
            driver = self._drivers.get(gone.sandbox_id)
            if driver is not None:
                driver.vm_gone(gone)

    async def _reconcile_regularly(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_EVERY_S)
            await self.reconcile()

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


def _vm_of(item: Stored, running: Mapping[SandboxId, VmStatus]) -> VmStatus | None:
    """What there is of the VM that it ran in: its own, or the very one of its carrier that it was in."""
    carrier_id = endpoints.carrier_of(item.record.spec)
    if carrier_id is None or not isinstance(item.state, machine.Running | machine.Stopping):
        return running.get(item.record.sandbox_id)
    vm = running.get(carrier_id)
    return vm if vm is not None and vm.pid == item.state.facts.vm_pid else None


def is_running(view: ContainerView) -> bool:
    return view.state in filters.UP
