# SPDX-License-Identifier: Apache-2.0
"""What is done to a sandbox's VM as a whole while its container runs: pause it, let it go on, save it,
put it to sleep.

One operation at a time, in the order of asking, each as a task of the driver's: a stop or the end of the run breaks it
off. An operation acts and then has the driver settle what it made true.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine

from hyperd.errors import HyperError, TimeoutExpiredError, WrongStateError
from hyperd.model.container import ContainerSpec
from hyperd.model.network import Attachment
from hyperd.model.snapshot import Snapshot, SnapshotKind
from hyperd.model.vm import VmStatus
from hyperd.sandbox import instance, joined, machine, mounts, ports, preconditions, wiring
from hyperd.sandbox.instance import now
from hyperd.sandbox.message import (
    AskConnect,
    AskDisconnect,
    AskHibernate,
    AskPause,
    AskSeat,
    AskSnapshot,
    AskUnpause,
    Operation,
    Settle,
)
from hyperd.sandbox.opened import OpenedSandbox
from hyperd.sandbox.saving import Saver
from hyperd.sandbox.standstill import to_the_end
from hyperd.sandbox.tenure import Tenure
from hyperd.sandbox.waiting import fail, resolve
from hyperd.vm.base import Hypervisor

log = logging.getLogger(__name__)

RETRY_DELAY_S = 5.0  # between two tries to have a VM go on


class SandboxOperations(OpenedSandbox):
    def _on_operation(self, ask: Operation) -> None:
        def over(task: "asyncio.Task[None]") -> None:
            # Also when it was cancelled before its first step: nobody may wait for ever.
            if not ask.done.done():
                ask.done.set_exception(WrongStateError("ended meanwhile", subject=self.subject))
                ask.done.exception()

        self._as_operation(self._operate(ask)).add_done_callback(over)

    def _as_operation(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        task = self._spawn(work)
        self._operations.add(task)

        def over(task: "asyncio.Task[None]") -> None:
            self._operations.discard(task)
            self._changed.beat()

        task.add_done_callback(over)
        return task

    async def _on_settle(self, settle: Settle) -> None:
        if isinstance(settle.event, machine.Slept | machine.Rewired):
            try:
                await self._record(settle.event, settle.spec)
            except HyperError as error:
                fail([settle.done], error)
                return
        else:
            await self._advance(settle.event)
        if isinstance(self.state, machine.Hibernated):
            self._run += 1  # what the run that sleeps still reports is of no run
            self.tenure = self._trouble = None
        if self.tenure is not None:
            self.tenure.paused = isinstance(self.state, machine.Paused)
        if not settle.done.done():
            settle.done.set_result(None)

    @property
    def _hypervisor(self) -> Hypervisor:
        return self.services.runner.rooms.hypervisor

    async def _operate(self, ask: Operation) -> None:
        try:
            async with self._one_at_a_time:
                match ask:
                    case AskPause(done):
                        await self._pause()
                        resolve([done])
                    case AskUnpause(done):
                        await self._unpause()
                        resolve([done])
                    case AskHibernate(done):
                        await self._hibernate()
                        resolve([done])
                    case AskSnapshot(made):
                        snapshot = await self._snapshot(ask)
                        if not made.done():
                            made.set_result(snapshot)
                    case AskSeat():
                        await self._seat(ask)
                    case AskConnect(told, endpoint):
                        warnings = await (await self._rewiring()).connect(endpoint)
                        if not told.done():
                            told.set_result(warnings)
                    case AskDisconnect(told, network, force):
                        warnings = await (await self._rewiring()).disconnect(network, force=force)
                        if not told.done():
                            told.set_result(warnings)
        except HyperError as error:
            if not ask.done.done():
                ask.done.set_exception(error)

    async def _seat(self, ask: AskSeat) -> None:
        """Nothing has the VM stand still now, nor will while it is taken."""
        if not isinstance(self.state, machine.Running) or self._ending:
            raise joined.not_running(self.record.name, ask.rider.name)
        facts = self.state.facts
        tenure = await self._require_tenure(facts)
        if not ask.done.done():
            ask.done.set_result(self.riders.seat(ask.rider, self.record, facts, tenure))

    def require_vm_alone(self, what: str) -> None:
        """It has one, and alone. Raises UnsupportedError, WrongStateError."""
        joined.require_own_vm(self.record, what)
        self.riders.require_none(self.subject, what)

    async def _pause(self) -> None:
        if isinstance(self.state, machine.Paused):
            return
        preconditions.require_running(self.state, self.record.name)
        self.require_vm_alone("a pause")
        await self._close_files("was paused")
        try:
            await self._hypervisor.pause(self.record.sandbox_id)
            await self._settle(machine.Pause())
            self._require_settled(machine.Paused)
        except BaseException:
            if not isinstance(self.state, machine.Paused):
                await to_the_end(self._resume_after_all())
            raise

    async def _resume_after_all(self) -> None:
        """What it was to be is not recorded: it was stopped meanwhile, or hyperd is ending."""
        try:
            await self._hypervisor.resume(self.record.sandbox_id)
        except HyperError as error:
            log.warning("not resumed", extra={"sandbox": self.record.name, "error": str(error)})

    def _require_settled(self, wanted: type[machine.State]) -> None:
        if not isinstance(self.state, wanted):
            raise WrongStateError(f"is {machine.name_of(self.state)} meanwhile", subject=self.subject)

    async def _unpause(self) -> None:
        if isinstance(self.state, machine.Running):  # perhaps one that did not go on when it was saved
            await self._hypervisor.resume(self.record.sandbox_id)
            if self.tenure is not None:
                await self.tenure.thaw()
            return
        preconditions.require_paused(self.state, self.record.name)
        await self._hypervisor.resume(self.record.sandbox_id)
        await self._settle(machine.Unpause())
        if self.tenure is not None:
            await self.tenure.unpause()
        elif isinstance(self.state, machine.Running):
            self._take_over_again(self.state.facts)

    async def _snapshot(self, ask: AskSnapshot) -> Snapshot:
        facts = preconditions.require_up(self.state, self.record.name)
        self.require_vm_alone("a snapshot")
        mounts.require_none(self.record, "a snapshot")
        await self._require_saveable(facts, "a snapshot")
        self.files.require_none()
        await self.files.wait_gone()
        async with self._stood_still(facts) as tenure:
            saver = Saver(self.record, self.services, self.journal)
            snapshot = await saver.save(
                tenure, facts.made_of, SnapshotKind.SANDBOX, name=ask.name, passing=ask.passing
            )
        source = snapshot.manifest.source
        fields = {"sandbox": self.record.name, "snapshot": snapshot.manifest.snapshot_id[:12]}
        log.info(
            "saved", extra={**fields, "pause_ms": source["pause_ms"], "stopped_ms": source["stopped_ms"]}
        )
        return snapshot

    async def _hibernate(self) -> None:
        if isinstance(self.state, machine.Hibernated):
            return
        facts = preconditions.require_up(self.state, self.record.name)
        self.require_vm_alone("sleep")
        mounts.require_none(self.record, "one that sleeps")
        await self._require_saveable(facts, "one that sleeps")
        await self._close_files("was put to sleep")
        saver = Saver(self.record, self.services, self.journal)
        async with self._stood_still(facts) as tenure:
            snapshot = await saver.save(tenure, facts.made_of, SnapshotKind.HIBERNATION)
            published = self.services.runner.rooms.network.published(self.record.sandbox_id)
            kept = ports.kept(self.record.spec, published)
            try:
                await self._settle(machine.Slept(snapshot.manifest.snapshot_id, now(), kept))
                self._require_settled(machine.Hibernated)
            except BaseException:
                if not await to_the_end(self._sleeps_after_all(saver, tenure)):
                    raise
        # From here on it sleeps, whatever comes: its VM goes now, or when the next hyperd finds it.
        await to_the_end(self._fall_asleep(tenure))

    async def _sleeps_after_all(self, saver: Saver, tenure: Tenure) -> bool:
        """Else it goes on, and what was saved of it goes first: its disk would be another."""
        async with self._recording:
            if isinstance(self.state, machine.Hibernated):
                return True
        await self._errands.forget_snapshots()
        try:
            await saver.go_on(tenure)
        except HyperError as error:
            log.warning("does not go on", extra={"sandbox": self.record.name, "error": str(error)})
        return False

    @contextlib.asynccontextmanager
    async def _stood_still(self, facts: machine.RunFacts) -> AsyncIterator[Tenure]:
        """For being saved. Whatever comes of that, what was paused stands still, and what ran runs."""
        try:
            tenure = await self._require_tenure(facts)
        except BaseException:
            await to_the_end(self._stand_again())
            raise
        try:
            yield tenure
        except HyperError:
            self._spawn(self._keep_going(tenure))
            await to_the_end(self._stand_again())
            raise
        except BaseException:  # stopped meanwhile, or hyperd is ending: nothing begins any more
            await to_the_end(self._stand_again())
            raise

    async def _stand_again(self) -> None:
        """One that is paused, and ran for as long as its agent was spoken to."""
        if isinstance(self.state, machine.Paused):
            await self._errands.pause_again()

    async def _keep_going(self, tenure: Tenure) -> None:
        """Of one that could not be saved: until it runs and is thawed, or is to stand still, or has ended."""
        while self.tenure is tenure and not tenure.is_ending and isinstance(self.state, machine.Running):
            try:
                async with self._one_at_a_time:
                    await self._hypervisor.resume(self.record.sandbox_id)
                    await tenure.thaw()
            except HyperError as error:
                self._tell_trouble(error)
                await asyncio.sleep(RETRY_DELAY_S)
            else:
                if self._trouble is not None:
                    self._tell_trouble(None)
                return

    async def _fall_asleep(self, tenure: Tenure) -> None:
        await tenure.end_unnoticed()
        self.services.ledger.release(self.record.sandbox_id)
        log.info("hibernated", extra={"sandbox": self.record.name})

    async def _require_tenure(self, facts: machine.RunFacts) -> Tenure:
        """Its guest can be spoken to; one that this hyperd found paused runs for as long as saying hello takes."""
        if isinstance(self.state, machine.Paused) and self.tenure is None:
            await self._take_over_paused(facts)
        tenure = await self.find_tenure() if self.tenure is None else self.tenure
        if tenure is None or tenure.is_ending:
            raise WrongStateError("is not running: its process has ended", subject=self.subject)
        return tenure

    async def _take_over_paused(self, facts: machine.RunFacts) -> None:
        self._take_over_again(facts)
        try:
            async with asyncio.timeout(instance.LIVE_TIMEOUT_S):
                while self.tenure is None:
                    await self._changed.wait()
        except TimeoutError as error:
            if self._coming_up is not None:
                self._coming_up.cancel()
            raise TimeoutExpiredError("its agent has not answered", subject=self.subject) from error

    def _take_over_again(self, facts: machine.RunFacts) -> None:
        """Of one that this hyperd found paused and has not spoken to."""
        vm = VmStatus(self.record.sandbox_id, facts.vm_pid, paused=True)
        self._come_up(lambda: self._errands.take_over(vm, facts, self._tell_trouble))

    async def _require_saveable(self, facts: machine.RunFacts, what: str) -> None:
        network = self.services.runner.rooms.network
        await wiring.require_saveable(network, self.record, facts.attachments, what)
        if left := await self._hypervisor.list_plugged(self.record.sandbox_id):
            raise WrongStateError(
                f"has a disk of another container's in its VM, and {what} does not hold it",
                subject=self.subject,
                evidence=f"its guest has not let go of {', '.join(left)}",
                hint="stop and start it",
            )

    async def _rewiring(self) -> wiring.Rewiring:
        """Raises WrongStateError unless it runs."""
        preconditions.require_running(self.state, self.record.name)
        facts = preconditions.require_up(self.state, self.record.name)
        tenure = await self._require_tenure(facts)
        runner, guest = self.services.runner, tenure.live.guest
        told = (await self.told_record()).spec.extra_hosts
        return wiring.Rewiring(
            self.record, told, facts.attachments, runner.rooms, runner.spares, guest, self._rewired
        )

    async def _rewired(self, spec: ContainerSpec, attachments: tuple[Attachment, ...]) -> None:
        await self._settle(machine.Rewired(attachments), spec)
        if self.record.spec != spec:
            self._require_settled(machine.Running)
            raise WrongStateError("ended meanwhile", subject=self.subject)

    async def _settle_wiring(self) -> None:
        """Of one that was taken over: what a hyperd that was killed left of it halfway."""
        try:
            async with self._one_at_a_time:
                rewiring = await self._rewiring()
                if self.left_networks or await rewiring.has_parked():
                    await rewiring.settle()
                else:  # killed before its ports were led to where they belong
                    await rewiring.lead_ports(self.record.spec, rewiring.before)
                self.left_networks = False
        except HyperError as error:
            log.warning("networks not settled", extra={"sandbox": self.record.name, "error": str(error)})

    async def _settle(self, event: machine.Event, spec: ContainerSpec | None = None) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._post(self._run, Settle(event, done, spec))
        await done
