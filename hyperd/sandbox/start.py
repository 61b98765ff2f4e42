# SPDX-License-Identifier: Apache-2.0
"""How the VM of one start comes to run, the fastest way first; each that fails before the guest has its identity falls
back to the next.

spare: image's disk put in, CPUs run --------------+
template: QEMU, state restored -> agent's hello ---+--> volumes -> identity
cold: QEMU, guest boots -> agent's hello ----------+
"""

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hyperd.errors import ClockError, HyperError
from hyperd.guest.base import Guest
from hyperd.host.workers import Workers
from hyperd.model.container import ContainerRecord, StartPath
from hyperd.model.network import Attachment
from hyperd.model.share import Share
from hyperd.model.snapshot import Snapshot
from hyperd.model.vm import HOT_PLUG_DEVICES, Disk, Nic, VmDefinition, VmStatus
from hyperd.sandbox import definition, identity, plugging
from hyperd.sandbox.definition import SandboxPaths, Shape, from_template
from hyperd.sandbox.patience import PatientDialer
from hyperd.sandbox.rooms import (
    CLONE_HELLO_TIMEOUT_S,
    ENTROPY_BYTES,
    Phases,
    Rooms,
    RunSettings,
    console_as_evidence,
    make_directories,
)
from hyperd.sandbox.spares import Spare, Spares, unfit
from hyperd.sandbox.template import Offer, Templates

log = logging.getLogger(__name__)

SHARES_NEED_MEMORY = "a share needs memory of the VM's own, and a spare's is its template's"


@dataclass(frozen=True, slots=True)
class Start:
    """What one start has prepared."""

    record: ContainerRecord
    attachments: tuple[Attachment, ...]
    paths: SandboxPaths
    phases: Phases
    vm: VmDefinition  # that boots, without its volumes
    volumes: tuple[Disk, ...] = ()
    shares: tuple[Share, ...] = ()
    spare: Spare | None = None
    doubts: list[str] = field(default_factory=list)  # about a guest that goes on all the same
    faults: list[HyperError] = field(default_factory=list)  # of devices plugged in: no template is to blame

    @property
    def hot_nics(self) -> list[Nic]:
        return [Nic(attachment.tap, attachment.mac) for attachment in self.attachments[1:]]

    @property
    def subject(self) -> str:
        return f"container {self.record.name}"

    @property
    def hot(self) -> dict[str, int]:
        """What is plugged into a template's clone, and how many of each."""
        counts = {
            "volumes": len(self.volumes),
            "shares": len(self.shares),
            "further networks": len(self.hot_nics),
        }
        return {what: count for what, count in counts.items() if count}

    @contextlib.contextmanager
    def blaming_no_template(self) -> Iterator[None]:
        """What fails within is of what is beside the VM."""
        try:
            yield
        except HyperError as error:
            self.faults.append(error)
            raise

    @property
    def shape(self) -> Shape:
        return definition.shape_of(self.record, self.vm.accelerator)


@dataclass(frozen=True, slots=True)
class Up:
    """A VM whose guest has its identity."""

    vm: VmStatus
    guest: Guest
    path: StartPath
    note: str
    described: VmDefinition


class Starter:
    def __init__(
        self, rooms: Rooms, settings: RunSettings, templates: Templates, spares: Spares, files: Workers
    ) -> None:
        self._rooms = rooms
        self._settings = settings
        self._templates = templates
        self._spares = spares
        self._files = files
        self._dialer = PatientDialer(rooms.dialer, files)

    async def bring_up(self, start: Start, offer: Offer, stack: contextlib.AsyncExitStack) -> Up:
        """``stack`` undoes it. Raises what booting raises: what failed before that is in the note."""
        snapshot, note = offer.snapshot, offer.note
        if snapshot is not None and sum(start.hot.values()) > HOT_PLUG_DEVICES:
            snapshot = None
            what = " and ".join(f"{count} {kind}" for kind, count in start.hot.items())
            note = f"{what} are more than a template has room for ({HOT_PLUG_DEVICES})"
        if start.spare is not None:
            up, why = await self._from_spare(start, start.spare, snapshot, stack)
            if up is not None:
                return up
            note = "; ".join(filter(None, (note, why)))
        failure: HyperError | None = None
        if snapshot is not None:
            try:
                with self._templates.in_use(snapshot):
                    vm, guest = await self._bring_to_life(
                        start, from_template(start.vm, snapshot), stack, CLONE_HELLO_TIMEOUT_S
                    )
            except HyperError as error:
                failure = error
                if error in start.faults:
                    log.warning("devices not plugged in: booting instead", extra={"error": str(error)})
                    why = f"a device could not be plugged in: {error.brief}"
                else:
                    why = await self._templates.failed(start.shape, snapshot, error)
                note = "; ".join(filter(None, (note, why)))
                start.phases.fold("template", after="prepare")
                await make_directories(start.paths, self._files)
            else:
                self._templates.worked(snapshot)
                return Up(vm, guest, StartPath.TEMPLATE, note, from_template(start.vm, snapshot))
        booted = replace(start.vm, disks=(*start.vm.disks, *start.volumes))
        vm, guest = await self._bring_to_life(start, booted, stack, self._settings.boot_timeout_s)
        if snapshot is not None and failure is not None and failure not in start.faults:
            note = await self._templates.booted_instead(start.shape, snapshot, failure) or note
        return Up(vm, guest, StartPath.COLD, "; ".join(filter(None, (note, *start.doubts))), booted)

    async def _from_spare(
        self, start: Start, spare: Spare, template: Snapshot | None, stack: contextlib.AsyncExitStack
    ) -> tuple[Up | None, str]:
        """Or why not: then nothing of its VM is left."""
        why = unfit(spare, start.shape, template) if template is not None else ""
        why = SHARES_NEED_MEMORY if start.shares else why
        if template is not None and not why:
            described = from_template(start.vm, template)
            try:
                vm, guest = await self._bring_to_life(start, described, stack, CLONE_HELLO_TIMEOUT_S, spare)
            except HyperError as error:
                log.warning("a spare failed: starting anew", extra={"error": str(error)})
                why = f"the spare failed: {error.brief}"
            else:
                self._templates.worked(template)
                return Up(vm, guest, StartPath.SPARE, "", described), ""
        await self._spares.end(spare)
        await make_directories(start.paths, self._files)
        start.phases.fold("spare", after="prepare")
        return None, why

    async def _bring_to_life(
        self,
        start: Start,
        described: VmDefinition,
        stack: contextlib.AsyncExitStack,
        hello_timeout_s: float,
        spare: Spare | None = None,
    ) -> tuple[VmStatus, Guest]:
        """From a definition to a guest with its identity. On any failure nothing of the VM stays."""
        record, phases = start.record, start.phases
        async with contextlib.AsyncExitStack() as own:
            with start.blaming_no_template():
                ports = await plugging.serve(self._rooms, record.sandbox_id, start.shares, own)
            own.push_async_callback(self._rooms.hypervisor.destroy, record.sandbox_id)
            if spare is None:
                vm = await plugging.start(self._rooms, described, ports)
            else:
                vm = await self._spares.wake(spare, described.disks[0])
            phases.mark("vm")
            if described.restore_from is not None:  # a template has no place for them
                with start.blaming_no_template():
                    await plugging.plug_in(self._rooms, record.sandbox_id, start.volumes, ports)
                if start.volumes or ports:
                    phases.mark("volumes")
            async with console_as_evidence(start.subject, start.paths, self._files):
                if spare is None:
                    guest = await self._dialer.connect(
                        start.paths, vm_pid=vm.pid, timeout_s=hello_timeout_s, subject=start.subject
                    )
                    phases.mark("hello")
                else:
                    guest = spare.guest
                own.push_async_callback(guest.close)
                await self._plug_nics(start)
                entropy, boot_id = os.urandom(ENTROPY_BYTES), uuid.uuid4()
                try:
                    await guest.configure(identity.identity_of(record, start.attachments, entropy, boot_id))
                except ClockError as error:
                    if described.restore_from is not None:
                        raise
                    # A guest that booted read the time from its own hardware; what is missing is the proof.
                    start.doubts.append(error.brief)
                    log.warning("clock not proven", extra={"sandbox": record.name, "error": str(error)})
                phases.mark("configure")
            stack.push_async_callback(own.pop_all().aclose)
        return vm, guest

    async def _plug_nics(self, start: Start) -> None:
        """All but the first: a guest that says hello sees them come."""
        with start.blaming_no_template():
            for nic in start.hot_nics:
                await self._rooms.hypervisor.attach_nic(start.record.sandbox_id, nic)
        if start.hot_nics:
            start.phases.mark("networks")
