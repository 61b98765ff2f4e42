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
from hyperd.sandbox.message import IsDown, IsLost, IsRemoved, IsUp, News, UpFailed
from hyperd.sandbox.riders import Carrier, Rider, Seat
from hyperd.sandbox.rooms import Phases
from hyperd.sandbox.run import Live, execs_of

log = logging.getLogger(__name__)

LEAVE_TIMEOUT_S = 20.0  # for a container that is being made just now, for another connection to the agent
BUSY_DELAY_S = 0.2


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

    @property
    def _carrier_name(self) -> str:
        carrier = self._services.carriers.find(self._carrier_id)
        return carrier.record.name if carrier is not None else self._carrier_id[:12]

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
            # One that was paused meanwhile goes on some day, and so does what is in its VM.
            if carrier is None or not isinstance(
                carrier.state, machine.Running | machine.Paused | machine.Stopping
            ):
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

    async def clean_up(self, news: News | None) -> News | None:
        """Nobody ends the carrier's VM for it: what stays in there is told instead."""
        news = await super().clean_up(news)
        try:
            await self._get_out()
        except HyperError as error:
            log.error("not cleaned up", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400
            match news:
                case IsDown():
                    return IsDown(machine.lost(ExitReason.AGENT_LOST, str(error)))
                case UpFailed():
                    return UpFailed(error)
        return news

    async def discard(self, *, volumes: bool) -> IsRemoved:
        """Nothing of it stays in the carrier's VM, where nobody would know whose it is."""
        try:
            await self._get_out()
        except HyperError as error:
            return IsRemoved(error)
        return await super().discard(volumes=volumes)

    async def _get_out(self) -> None:
        """Of what a run left in the carrier's VM and this hyperd has no hold of: that is there while its disks are.

        Raises what keeps it there. Waits while its carrier ends: it goes with the VM.
        """
        while await self._is_plugged_in():
            try:
                seat = await self._take_seat()
            except HyperError as error:
                carrier = self._services.carriers.find(self._carrier_id)
                if carrier is None or not isinstance(carrier.state, machine.Stopping):
                    raise self._still_there(str(error)) from error
                await asyncio.sleep(BUSY_DELAY_S)
                continue
            try:
                await self._leave(seat)
            finally:
                seat.leave()

    async def _is_plugged_in(self) -> bool:
        try:
            plugged = await self._rooms.hypervisor.list_plugged(self._carrier_id)
        except NotFoundError:
            return False
        return bool(set(self._serials) & set(plugged))

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
        await seat.guest.delete_container(container_id_of(self._record))
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

        Raises UnavailableError when the guest does not let go. What it has mounted is not unplugged: Linux would let
        that happen, and what is written from then on is lost.
        """
        refusal = await self._let_go(seat)
        try:
            if refusal is not None:
                await self._rooms.hypervisor.list_plugged(seat.vm_id)
                seat.note_left_behind()
                raise self._still_there(str(refusal)) from refusal
            async with first_error(), asyncio.TaskGroup() as tasks:
                left = [
                    tasks.create_task(self._rooms.hypervisor.detach_disk(seat.vm_id, serial))
                    for serial in self._serials
                ]
        except NotFoundError:
            return  # with the VM
        if not all(task.result() for task in left):
            raise self._still_there("")

    async def _let_go(self, seat: Seat) -> HyperError | None:
        """Ask the guest to, for a time: an agent refuses while it makes the container. What it said last."""
        now = asyncio.get_running_loop().time
        deadline, guest = now() + LEAVE_TIMEOUT_S, seat.guest
        while True:
            try:
                await guest.delete_container(container_id_of(self._record))
                await guest.release_disks(self._serials)
            except HyperError as error:
                refusal = error
            else:
                return None
            if now() >= deadline:
                return refusal
            try:
                if isinstance(refusal, WrongStateError):
                    await asyncio.sleep(BUSY_DELAY_S)
                else:
                    guest = await seat.next_guest(guest)
            except UnavailableError:
                return refusal

    def _still_there(self, evidence: str) -> UnavailableError:
        carrier = self._carrier_name
        return UnavailableError(
            f"is not out of the VM of container {carrier}: the guest does not let go of it",
            subject=self._subject,
            evidence=evidence,
            hint=f"`hyper rm -f {carrier}` ends that VM, and all in it",
        )

    def _gone_with(self, carrier: Carrier | None) -> Exit:
        exit_ = machine.exit_of(carrier.state) if carrier is not None else None
        return joined.end_with(self._carrier_name, exit_ or Exit(0, ExitReason.EXITED))
