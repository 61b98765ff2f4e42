# SPDX-License-Identifier: Apache-2.0
"""What takes time in a rider's life: it comes into its carrier's VM, is found there, and leaves it.

seat taken -> image's disk, writable disk plugged in -> container, just before its execve
container deleted, its disks unmounted and unplugged -> seat given back       in reverse, also after a kill of hyperd
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from hyperd.errors import (
    ExhaustedError,
    HyperError,
    NotFoundError,
    UnavailableError,
    WrongStateError,
)
from hyperd.host.groups import first_error
from hyperd.model.container import ContainerRecord, Exit, ExitReason, StartPath, StartReport
from hyperd.model.vm import HOT_PLUG_DEVICES, Accelerator, Disk, DiskFormat, SandboxId, VmStatus
from hyperd.sandbox import errands, joined, machine, plans
from hyperd.sandbox.errands import Errands, Services
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.message import IsLost, IsUp, News
from hyperd.sandbox.riders import Carrier, Rider, Seat
from hyperd.sandbox.rooms import Phases
from hyperd.sandbox.run import Live, execs_of

log = logging.getLogger(__name__)


class RiderErrands(Errands):
    def __init__(
        self,
        record: ContainerRecord,
        services: Services,
        journal: Journal,
        carrier_id: SandboxId,
        tell_end: Callable[[Exit], None],
    ) -> None:
        """``tell_end``: the carrier's run ends; how the rider's does by that."""
        super().__init__(record, services, journal)
        self._carrier_id = carrier_id
        self._tell_end = tell_end
        self._rooms = services.runner.rooms
        self._serials = plans.rider_serials(record.sandbox_id)

    @property
    def _vm_id(self) -> SandboxId:
        return self._carrier_id

    @property
    def _subject(self) -> str:
        return f"container {self._record.name}"

    async def _make(self, record: ContainerRecord, accelerator: Accelerator, phases: Phases) -> Live:
        """On any failure nothing stays in the VM. Raises NotFoundError (no such carrier), WrongStateError (it does not
        run), ExhaustedError (no room in its VM), what the rooms raise.
        """
        async with contextlib.AsyncExitStack() as stack:
            seat = await self._take_seat()
            stack.callback(seat.leave)
            async with first_error(), asyncio.TaskGroup() as tasks:
                image = tasks.create_task(self._rooms.images.get(record.image_id))
                root = tasks.create_task(self._rooms.images.root_disk(record.image_id))
                writable = tasks.create_task(
                    self._rooms.storage.create_writable(record.sandbox_id, record.spec.writable_size_bytes)
                )
                tasks.create_task(self._make_room(seat))
            phases.mark("prepare")
            await self._rooms.storage.lend_writable(record.sandbox_id, seat.vm_id)
            stack.push_async_callback(self._leave, seat)
            image_serial, writable_serial = self._serials
            for disk in (
                Disk(image_serial, root.result().path, DiskFormat.VMDK, readonly=True),
                Disk(writable_serial, writable.result(), DiskFormat.RAW, readonly=False),
            ):
                await self._rooms.hypervisor.attach_disk(seat.vm_id, disk)
            phases.mark("disks")
            plan = plans.rider_plan(record, image.result().config, root.result(), seat.carriers_container)
            guest_pid = await seat.guest.create_container(plan)
            phases.mark("create")
            return Live(
                seat.guest,
                seat.facts.vm_pid,
                guest_pid,
                Accelerator(seat.facts.accelerator),
                (),
                stack.pop_all(),
                StartReport(StartPath.JOINED, "", phases.in_ms()),
                shared=seat,
            )

    async def take_over(
        self, vm: VmStatus, facts: machine.RunFacts, tell_trouble: Callable[[HyperError | None], None]
    ) -> News | None:
        """Find its container in the VM that it shares, once its carrier's agent is found, however long that takes."""
        failures = 0
        while True:
            carrier = self._services.carriers.find(self._carrier_id)
            if carrier is None or not isinstance(carrier.state, machine.Running | machine.Stopping):
                return IsLost(self._gone_with(carrier))
            try:
                live = await self._find_again(facts)
            except HyperError as error:
                failures += 1
                tell_trouble(error)
                await asyncio.sleep(min(errands.ADOPT_DELAY_S * failures, errands.MAX_ADOPT_DELAY_S))
                continue
            if live is None:
                brief = f"it is not in the VM of container {carrier.record.name} any more"
                return IsLost(machine.lost(ExitReason.VM_LOST, brief))
            log.info("adopted", extra={"sandbox": self._record.name})
            tell_trouble(None)
            return IsUp(live)

    async def _find_again(self, facts: machine.RunFacts) -> Live | None:
        container_id = container_id_of(self._record)
        async with contextlib.AsyncExitStack() as stack:
            seat = await self._take_seat()
            stack.callback(seat.leave)
            containers = await seat.guest.list_containers()
            is_there = any(container.container_id == container_id for container in containers)
            if not is_there or seat.facts.vm_pid != facts.vm_pid:
                return None
            self._journal.open(await self._runner.examine_journal(self._journal), fresh=False)
            stack.push_async_callback(self._leave, seat)
            return Live(
                seat.guest,
                facts.vm_pid,
                0,
                Accelerator(facts.accelerator),
                (),
                stack.pop_all(),
                execs=execs_of(containers, container_id),
                shared=seat,
            )

    async def _clear(self) -> None:
        """What a run left in the carrier's VM that nobody has a hold of. Nothing, where that one does not run."""
        with contextlib.suppress(NotFoundError, WrongStateError):
            seat = await self._take_seat()
            try:
                await self._leave(seat)
            finally:
                seat.leave()

    async def _take_seat(self) -> Seat:
        carrier = self._services.carriers.find(self._carrier_id)
        if carrier is None:
            raise NotFoundError(
                f"No such container: {self._carrier_id[:12]}",
                subject=self._subject,
                hint="it has the network of a container that was removed: create it anew",
            )
        name = carrier.record.name
        rider = Rider(
            self._record.sandbox_id,
            self._record.name,
            lambda exit_: self._tell_end(joined.end_with(name, exit_)),
        )
        return await carrier.take_seat(rider)

    async def _make_room(self, seat: Seat) -> None:
        """What an earlier run left goes first. Raises ExhaustedError, UnsupportedError, what kept it from going."""
        plugged = await self._rooms.hypervisor.list_plugged(seat.vm_id)
        if set(self._serials) & set(plugged):
            log.warning("still there", extra={"sandbox": self._record.name, "carrier": seat.carrier.name})
            await self._leave(seat)
            plugged = await self._rooms.hypervisor.list_plugged(seat.vm_id)
        await seat.guest.release_disks(self._serials)  # an agent that cannot do so never gets them
        if len(plugged) + len(self._serials) > HOT_PLUG_DEVICES:
            raise ExhaustedError(
                f"the VM of container {seat.carrier.name} has room for {HOT_PLUG_DEVICES} devices beside its own: "
                f"{len(plugged)} are taken, and it needs {len(self._serials)}",
                subject=self._subject,
                hint="stop another one in that VM, or disconnect that container from a network",
            )

    async def _leave(self, seat: Seat) -> None:
        """Its processes end, and its disks are whole and out of the VM, or the VM is gone.

        Raises UnavailableError when the guest does not let go.
        """
        refusal = ""
        try:
            await seat.guest.delete_container(container_id_of(self._record))
            await seat.guest.release_disks(self._serials)
        except HyperError as error:
            refusal = str(error)
        try:
            async with first_error(), asyncio.TaskGroup() as tasks:
                left = [
                    tasks.create_task(self._rooms.hypervisor.detach_disk(seat.vm_id, serial))
                    for serial in self._serials
                ]
        except NotFoundError:
            return  # with the VM
        if refusal or not all(task.result() for task in left):
            raise UnavailableError(
                f"is not out of the VM of container {seat.carrier.name}: the guest does not let go of it",
                subject=self._subject,
                evidence=refusal,
                hint=f"`hyper rm -f {seat.carrier.name}` ends that VM, and all in it",
            )

    def _gone_with(self, carrier: Carrier | None) -> Exit:
        name = carrier.record.name if carrier is not None else self._carrier_id[:12]
        exit_ = machine.exit_of(carrier.state) if carrier is not None else None
        return joined.end_with(name, exit_ or Exit(0, ExitReason.EXITED))
