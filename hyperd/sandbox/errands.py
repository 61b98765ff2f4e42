# SPDX-License-Identifier: Apache-2.0
"""What takes time in a sandbox's life. Each errand runs as a task of its driver and comes back with news."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from hyperd.errors import HyperError, UnavailableError, UnsupportedError
from hyperd.host.groups import first_error
from hyperd.model.container import ContainerRecord, ExitReason
from hyperd.model.guest import ProcessExit
from hyperd.model.snapshot import SnapshotKind
from hyperd.model.vm import Accelerator, SandboxId, VmGone, VmGoneCause, VmStatus
from hyperd.sandbox import identity, links, machine
from hyperd.sandbox.compatibility import HostFacts, compatibility_of
from hyperd.sandbox.facts import Facts
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.ledger import Ledger
from hyperd.sandbox.links import Peers
from hyperd.sandbox.message import IsLost, IsRemoved, IsUp, News, UpFailed
from hyperd.sandbox.records import Records
from hyperd.sandbox.revival import Origin, Reviver
from hyperd.sandbox.riders import Carriers
from hyperd.sandbox.rooms import Phases
from hyperd.sandbox.run import Live, Runner
from hyperd.sandbox.standstill import step_clock, thaw
from hyperd.sandbox.volumes import VolumeDesk

log = logging.getLogger(__name__)

ADOPT_DELAY_S = 1.0  # times the tries that failed, up to
MAX_ADOPT_DELAY_S = 30.0


@dataclass(frozen=True, slots=True)
class Services:
    """What every driver uses."""

    runner: Runner
    records: Records
    ledger: Ledger
    accelerator: Callable[[], Awaitable[Accelerator]]
    reviver: Reviver
    facts: Facts
    owner_of: Callable[[SandboxId], tuple[int, int]]  # uid and gid of a sandbox's QEMU
    volumes: VolumeDesk
    peers: Peers = field(default_factory=Peers)
    carriers: Carriers = field(default_factory=Carriers)


class Errands:
    def __init__(self, record: ContainerRecord, services: Services, journal: Journal) -> None:
        self._record = record
        self._services = services
        self._runner = services.runner
        self._journal = journal

    @property
    def _vm_id(self) -> SandboxId:
        """Whose VM it runs in."""
        return self._record.sandbox_id

    async def bring_up(self) -> News:
        """From nothing to a first process that runs, or back to nothing."""
        phases = Phases()
        try:
            live, refused = await self._bring_up(await self._services.accelerator(), phases)
        except HyperError as error:
            return UpFailed(error)
        return IsUp(live, refused)

    async def _bring_up(self, accelerator: Accelerator, phases: Phases) -> tuple[Live, ProcessExit | None]:
        live: Live | None = None
        try:
            async with first_error(), asyncio.TaskGroup() as beside:
                # Looking through the log of earlier runs takes up to 60 ms: not between the boot and the first byte.
                examining = beside.create_task(self._runner.examine_journal(self._journal))
                facts = beside.create_task(self._host_facts())
                record = await self.told_record(all_of_them=True)
                live = await self._make(record, accelerator, phases)
            self._journal.open(examining.result(), fresh=True)
            refused = await live.guest.start_container(identity.container_id_of(self._record))
            phases.mark("start")
            host = facts.result()
            if live.definition is not None and host is not None:
                live.made_of = compatibility_of(live.definition, host)
            if live.start is not None:
                live.start = replace(live.start, phases_ms=phases.in_ms())
        except BaseException:
            if live is not None:
                await live.stack.aclose()
            raise
        return live, refused

    async def _make(self, record: ContainerRecord, accelerator: Accelerator, phases: Phases) -> Live:
        return await self._runner.bring_up(record, accelerator, phases)

    async def revive(self, origin: Origin, *, log_goes_on: bool = False) -> News:
        """From a snapshot to a first process that stands still where it was, or back to nothing."""
        phases = Phases()
        live: Live | None = None
        try:
            host, accelerator = await self._services.facts.get(), await self._services.accelerator()
            async with first_error(), asyncio.TaskGroup() as beside:
                examining = beside.create_task(self._runner.examine_journal(self._journal))
                record = await self.told_record()
                live = await self._services.reviver.revive(record, origin, accelerator, host, phases)
            self._journal.open(examining.result(), fresh=not log_goes_on, base=live.output_offset)
        except BaseException as error:
            if live is not None:
                await live.stack.aclose()
            if isinstance(error, HyperError):
                return UpFailed(error)
            raise
        return IsUp(live, frozen=True)

    async def told_record(self, *, all_of_them: bool = False) -> ContainerRecord:
        """With what its links say. ``all_of_them``: raises WrongStateError for one that does not run."""
        found = links.present(self._record, self._services.peers, all_of_them=all_of_them)
        if not found:
            return self._record
        images = self._runner.rooms.images
        linked = [
            links.linked_of(link, target, (await images.get(target.record.image_id)).config.env)
            for link, target in found
        ]
        return links.told_of(self._record, linked)

    async def _host_facts(self) -> HostFacts | None:
        try:
            return await self._services.facts.get()
        except HyperError:  # a kernel that is missing is told by the boot that misses it
            return None

    async def take_over(
        self, vm: VmStatus, facts: machine.RunFacts, tell_trouble: Callable[[HyperError | None], None]
    ) -> News | None:
        """Find the agent of a VM that an earlier hyperd started: for as long as it takes, the VM is left as it is.

        None for an agent of another protocol, which no patience makes reachable.
        """
        failures = 0
        while True:
            try:
                live = await self._adopt(vm, facts)
            except HyperError as error:
                failures += 1
                tell_trouble(error)
                if isinstance(error, UnsupportedError):
                    return None
                await asyncio.sleep(min(ADOPT_DELAY_S * failures, MAX_ADOPT_DELAY_S))
            else:
                log.info("adopted", extra={"sandbox": self._record.name})
                tell_trouble(None)
                return IsUp(live)

    async def pause_again(self) -> None:
        try:
            await self._runner.rooms.hypervisor.pause(self._record.sandbox_id)
        except HyperError as error:
            log.error("not paused again", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400

    async def _adopt(self, vm: VmStatus, facts: machine.RunFacts) -> Live:
        if vm.paused:  # an earlier hyperd was killed while it had the VM stand still
            await self._runner.rooms.hypervisor.resume(self._record.sandbox_id)
        live = await self._runner.adopt(
            self._record, vm.pid, Accelerator(facts.accelerator), facts.attachments
        )
        try:
            await self._require_still(vm)
            await step_clock(live.guest)
            await thaw(live.guest)
            self._journal.open(await self._runner.examine_journal(self._journal), fresh=False)
        except BaseException:
            live.stack.pop_all()
            await live.guest.close()
            raise
        return live

    async def _require_still(self, vm: VmStatus) -> None:
        """Who answered may be the next VM's agent, which is not to be thawed by this one's errand."""
        there = await self._runner.rooms.hypervisor.find_running(vm.sandbox_id)
        if there is None or there.pid != vm.pid:
            raise UnavailableError("its VM is another by now", subject=f"container {self._record.name}")

    async def verify_gone(self, gone: VmGone, vm_pid: int) -> News | None:
        """Events are hints, and this one may be of an earlier run's VM: ask whether ours is there."""
        sandbox_id = self._vm_id
        try:
            there = await self._runner.rooms.hypervisor.find_running(sandbox_id)
        except HyperError as error:
            log.warning("cannot look for its VM", extra={"sandbox": self._record.name, "error": str(error)})
            return None  # the agent's connection, or the fleet's next look, will tell
        if there is not None and there.pid == vm_pid:
            return None
        match gone.cause:
            case VmGoneCause.CRASHED:
                tail = await self._runner.console_tail(sandbox_id)
                exit_ = machine.lost(ExitReason.GUEST_PANIC, f"the guest kernel panicked\n{tail}".strip())
            case VmGoneCause.SHUTDOWN:
                exit_ = machine.lost(ExitReason.AGENT_LOST, "the guest powered itself off")
            case _:
                detail = f"its QEMU process ended without being asked to\n{gone.detail}".strip()
                exit_ = machine.lost(ExitReason.VM_LOST, detail)
        return IsLost(exit_)

    async def clean_up(self, news: News | None) -> News | None:
        """Remove what a run left behind that this hyperd has no hold of; then ``news`` is true."""
        try:
            await self._runner.clean_up(self._record.sandbox_id)
        except HyperError as error:
            log.error("not cleaned up", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400
        return news

    async def forget_snapshots(self) -> None:
        """It is awake. What cannot be removed now is removed when the next hyperd starts."""
        try:
            await self._remove_snapshots()
        except HyperError as error:
            log.error("memory not removed", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400

    async def _remove_snapshots(self) -> None:
        """Those that are the sandbox's own: of its sleep."""
        store = self._runner.rooms.snapshots
        for snapshot in store.list(SnapshotKind.HIBERNATION):
            if snapshot.manifest.source.get("container_id") == self._record.sandbox_id:
                await store.remove(snapshot.manifest.snapshot_id)

    async def discard(self, *, volumes: bool) -> IsRemoved:
        """``volumes``: the anonymous ones that nobody else has, too."""
        try:
            await self._runner.discard(self._record.sandbox_id)
            await self._remove_snapshots()
            await self._services.volumes.forget(self._record, anonymous=volumes)
            await self._services.records.delete(self._record.sandbox_id)
        except HyperError as error:
            return IsRemoved(error)
        return IsRemoved()
