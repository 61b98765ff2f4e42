# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that go on from what was saved of themselves: waking, and rolling back.

Both come up frozen. That they run is recorded first, then they are thawed: a hyperd that is killed between finds them
running and thaws them; one that is killed before finds them asleep as they were, or rolls back once more.
"""

import asyncio
import logging
from dataclasses import replace

from hyperd.errors import HyperError, NotFoundError, WrongStateError
from hyperd.model.container import ExitReason
from hyperd.model.network import PortRequest
from hyperd.model.snapshot import Snapshot, SnapshotId, SnapshotKind
from hyperd.sandbox import machine, operations, ports, preconditions
from hyperd.sandbox.instance import now
from hyperd.sandbox.message import AskRollback, AskWake, UpFailed
from hyperd.sandbox.operations import SandboxOperations
from hyperd.sandbox.revival import Origin
from hyperd.sandbox.run import Live, now_ms
from hyperd.sandbox.source import parse_source
from hyperd.sandbox.tenure import Tenure
from hyperd.sandbox.waiting import fail, resolve, resolve_starts

log = logging.getLogger(__name__)


class SleepingSandbox(SandboxOperations):
    async def _on_wake(self, ask: AskWake) -> None:
        done = ask.done
        if isinstance(self.state, machine.Hibernated) and self._operations:
            # Its VM is still going: what is taken for the new one would be given away with the old.
            self._spawn(self._wait_still()).add_done_callback(lambda _: self.post(ask))
            return
        match self.state:
            case machine.Running() | machine.Paused():
                resolve_starts([done])
                return
            case machine.Starting():
                self.waiting.starts.append(done)
                return
        try:
            preconditions.require_hibernated(self.state, self.record.name)
            snapshot, published = self._own_snapshot()
            self.services.ledger.admit(self.record.sandbox_id, self.record.sizing)
        except HyperError as error:
            fail([done], error)
            return
        self.waiting.starts.append(done)
        self._begin_run()
        await self._advance(machine.Start(now()))
        origin = Origin(snapshot, own_disk=True, ports=published)
        self._come_up(lambda: self._errands.revive(origin, log_goes_on=True))

    async def _wait_still(self) -> None:
        while self._operations:
            await self._changed.wait()

    def _on_clear_away(self) -> None:
        """The look that found something may be older than what has begun since; what begins now waits for this."""
        if self.should_have_no_vm() and not self._operations:
            self._as_operation(self._clear_away())

    async def _clear_away(self) -> None:
        """What its last run left: a VM did not end, or hyperd did, while it put it to sleep or had its files open."""
        await self._errands.clean_up(None)

    def require_can_roll_back(self) -> None:
        possible = isinstance(self.state, machine.Running | machine.Paused | machine.Exited | machine.Failed)
        if not possible or (self._ending and self.tenure is not None):
            raise WrongStateError(f"is {machine.name_of(self.state)}", subject=self.subject)
        self.require_vm_alone("a rollback")
        if isinstance(self.state, machine.Exited | machine.Failed):
            self.files.require_none()

    async def _on_rollback(self, ask: AskRollback) -> None:
        if self._is_put_off(ask):
            return
        try:
            self.require_can_roll_back()
            self.services.ledger.admit(self.record.sandbox_id, self.record.sizing)
        except HyperError as error:
            fail([ask.done], error)
            return
        self.waiting.starts.append(ask.done)
        self.files.break_off("was rolled back")
        tenure, self.tenure, self._trouble = self.tenure, None, None
        coming_up, self._coming_up = self._coming_up, None
        if coming_up is not None:  # what is being taken over is to end, and the next VM has its sockets
            coming_up.cancel()
        origin = replace(ask.origin, ports=self._published_now())
        self._begin_run()
        await self._advance(machine.RollBack(origin.snapshot.manifest.snapshot_id, now(), origin.ports))
        first = self._spawn(self._take_down(tenure, coming_up))
        self._come_up(lambda: self._errands.revive(origin), first)

    def _published_now(self) -> tuple[PortRequest, ...] | None:
        """None: it does not run, and what it was created with is published at its next start."""
        if not isinstance(self.state, machine.Running | machine.Paused):
            return None
        network = self.services.runner.rooms.network
        return ports.kept(self.record.spec, network.published(self.record.sandbox_id))

    def _roll_forward(self, snapshot_id: SnapshotId, published: tuple[PortRequest, ...] | None) -> None:
        """An earlier hyperd was killed while it rolled back: the run of before is gone in any case."""
        try:
            snapshot = self.services.runner.rooms.snapshots.get(SnapshotKind.SANDBOX, snapshot_id)
            offset = parse_source(snapshot.manifest).output_offset
            origin = Origin(snapshot, back=True, output_offset=offset, ports=published)
        except HyperError as error:
            failure = UpFailed(error)
            self._send(lambda: self._errands.clean_up(failure))
            return
        self.services.ledger.hold(self.record.sandbox_id, self.record.sizing)
        self._come_up(lambda: self._errands.revive(origin), self._spawn(self._take_down(None, None)))

    async def _take_down(self, tenure: Tenure | None, coming_up: "asyncio.Task[None] | None") -> None:
        """All of the run that counts no more. Nothing of the next one may begin before."""
        if coming_up is not None:
            await asyncio.wait((coming_up,))
        if tenure is not None:
            await tenure.break_off()
            await tenure.end_unnoticed()
        else:
            await self._break_off_operations()
        await self._errands.clean_up(None)

    async def _break_off_operations(self) -> None:
        """Those that wait for an agent which will never answer them."""
        under_way = set(self._operations)
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)

    def _begin_run(self) -> None:
        self._start_called_ms = now_ms()
        self._run += 1
        self._ending = self._giving_up = False
        self._given_up_for = None
        self._stop_asked = self._rumour = None
        self.renew_pump()

    async def _record_started(self, tenure: Tenure, was: machine.Starting, facts: machine.RunFacts) -> bool:
        """One that sleeps, or rolls back, runs once that is recorded. Before it nothing of it has run: it can go."""
        if was.asleep is None and was.back_to is None:
            await self._advance(machine.Started(facts))
            return True
        try:
            await self._record(machine.Started(facts))
        except HyperError as error:
            self.tenure, failure = None, UpFailed(error)

            async def take_away() -> UpFailed:
                await tenure.end_unnoticed()
                return failure

            self._send(take_away)
            return False
        return True

    async def _let_go(self, tenure: Tenure, *, wakes: bool) -> None:
        """It is recorded that it runs: now it may. Its memory on disk goes when it does, and no sooner."""
        await self._keep_thawing(tenure)
        if tenure.is_ending:
            fail(self.waiting.starts, WrongStateError("ended meanwhile", subject=self.subject))
            return
        resolve_starts(self.waiting.starts)
        if wakes:
            await self._errands.forget_snapshots()

    def let_go(self) -> "asyncio.Task[None]":
        """A clone that was revived goes on."""
        return self._spawn(self._let_clone_go())

    async def _let_clone_go(self) -> None:
        if self.tenure is not None:
            await self._keep_thawing(self.tenure)

    async def _keep_thawing(self, tenure: Tenure) -> None:
        """Until it is, or its run is over: an agent that does not answer now may do so later."""
        while not tenure.is_ending:
            try:
                await tenure.thaw()
            except HyperError as error:
                fail(self.waiting.starts, error)
                if not tenure.is_ending:
                    self._tell_trouble(error)
                    await asyncio.sleep(operations.RETRY_DELAY_S)
            else:
                if self._trouble is not None:
                    self._tell_trouble(None)
                return

    async def _back_to_sleep(self, error: HyperError) -> None:
        """It could not be woken: all that it was is still there."""
        await self._advance(machine.StartFailed(machine.lost(ExitReason.START_FAILED, str(error)), now()))
        log.info("not woken", extra={"sandbox": self.record.name, "error": str(error)})
        fail(self.waiting.starts, error)
        resolve(self.waiting.stops)

    def _own_snapshot(self) -> tuple[Snapshot, tuple[PortRequest, ...] | None]:
        """And the ports that were published when it fell asleep."""
        if isinstance(self.state, machine.Hibernated):
            store = self.services.runner.rooms.snapshots
            return store.get(SnapshotKind.HIBERNATION, self.state.snapshot_id), self.state.ports
        raise NotFoundError("has no memory that it could wake with", subject=self.subject)

    def _facts_of(self, was: machine.Starting, live: Live) -> machine.RunFacts:
        """The facts of a run that begins, or goes on."""
        return machine.RunFacts(
            started_at=was.asleep.facts.started_at if was.asleep is not None else now(),
            vm_pid=live.vm_pid,
            guest_pid=live.guest_pid,
            accelerator=live.accelerator,
            guest_kernel=live.guest.hello.kernel_release,
            start_ms=round(now_ms() - self._start_called_ms),
            attachment=live.attachments[0] if live.attachments else None,
            start=live.start,
            made_of=live.made_of,
            further=live.attachments[1:],
        )
