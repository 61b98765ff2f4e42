# SPDX-License-Identifier: Apache-2.0
"""One task per sandbox, the only writer of its state.

RPC handlers put a message into the inbox and await a future (handle.py): a client that hangs up cancels its wait, never
the work. Handlers of messages never wait long; what takes time runs as a task of the driver's and posts a message when
it ends, so that a stop is heard while a start is under way. News carries the number of the run that it is of: what
arrives late from an earlier run changes nothing.

A bug ends the sandbox as failed, with an id in the log and in the exit's message; the fleet goes on.
"""

import asyncio
import logging
import secrets
from signal import SIGKILL

from hyperd.errors import (
    HyperError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import Exit, ExitReason
from hyperd.model.guest import ProcessExit
from hyperd.model.snapshot import SnapshotId
from hyperd.model.vm import VmGone, VmStatus
from hyperd.sandbox import endpoints, machine, preconditions
from hyperd.sandbox.execs import STOPPED_BY_FORCE
from hyperd.sandbox.instance import now
from hyperd.sandbox.message import (
    Adopt,
    Ask,
    AskConnect,
    AskDisconnect,
    AskHibernate,
    AskOfWhole,
    AskPause,
    AskRemove,
    AskRollback,
    AskSnapshot,
    AskStart,
    AskStop,
    AskUnpause,
    AskWake,
    Done,
    IsDown,
    IsLost,
    IsRemoved,
    IsUp,
    Message,
    News,
    OfRun,
    OpenFiles,
    ProcessEnded,
    Rewire,
    Settle,
    Started,
    UpFailed,
)
from hyperd.sandbox.revival import Origin
from hyperd.sandbox.run import Live
from hyperd.sandbox.sleeping import SleepingSandbox
from hyperd.sandbox.tenure import KILL_TIMEOUT_S
from hyperd.sandbox.waiting import fail, resolve, resolve_starts

log = logging.getLogger(__name__)

# For the agent of a VM that was to end when an earlier hyperd ended. By then its kernel has written back by itself what
# it will (dirty_expire_centisecs is 30 s), so that a VM taken away unsynced loses next to nothing.
FINISH_TIMEOUT_S = 60.0


class SandboxDriver(SleepingSandbox):
    async def _handle(self, message: Message) -> None:  # noqa: PLR0912 - a message a branch
        match message:
            case _ if self.pending and isinstance(message, AskOfWhole):
                self._refuse_while_pending(message)
            case AskStart(done, origin):
                await self._on_start(done, origin)
            case AskStop():
                await self._on_stop(message)
            case AskRemove(done, force, volumes):
                await self._on_remove(done, force=force, volumes=volumes)
            case AskConnect() | AskDisconnect() if self._is_at_rest:
                await self._on_rewire(message)
            case AskPause() | AskUnpause() | AskSnapshot() | AskHibernate() | AskConnect() | AskDisconnect():
                self._on_operation(message)
            case AskWake():
                await self._on_wake(message)
            case AskRollback():
                await self._on_rollback(message)
            case OpenFiles():
                self._on_open_files(message)
            case Adopt(vm):
                await self._on_adopt(vm)
            case VmGone():
                self._on_vm_gone(message)
            case IsRemoved(error):
                self._on_removed(error)
            case OfRun(run, news) if run == self._run:
                await self._on_news(news)
            case OfRun(_, IsUp(live)):
                self._spawn(live.guest.close())
            case OfRun(_, Settle(_, done)):
                fail([done], WrongStateError("ended meanwhile", subject=self.subject))

    @property
    def _is_at_rest(self) -> bool:
        return isinstance(self.state, machine.Created | machine.Exited | machine.Failed)

    async def _on_rewire(self, ask: Rewire) -> None:
        """Of one without a VM: from its next start on."""
        network = self.services.runner.rooms.network
        try:
            self.require_readable()
            match ask:
                case AskConnect(done, endpoint):
                    await self._respecify(endpoints.connected(self.record, endpoint))
                    resolve([done])
                case AskDisconnect(told, name):
                    await self._respecify(endpoints.disconnected(self.record, name))
                    await network.disconnect(self.record.sandbox_id, name)
                    if not told.done():
                        told.set_result("")
        except HyperError as error:
            if not ask.done.done():
                ask.done.set_exception(error)

    async def _on_news(self, news: News) -> None:
        match news:
            case IsUp(live, refused, frozen):
                await self._on_up(live, refused, frozen=frozen)
            case UpFailed(error):
                await self._on_up_failed(error)
            case ProcessEnded(status):
                if self.tenure is not None:
                    await self._end(self.tenure.exit_of(status))
            case IsLost(exit_):
                await self._end(exit_)
            case IsDown(exit_):
                await self._on_down(exit_)
            case Settle():
                await self._on_settle(news)

    async def _on_start(self, done: Started, origin: Origin | None) -> None:
        if isinstance(self.state, machine.Running):
            resolve_starts([done])
            return
        if isinstance(self.state, machine.Starting):
            self.waiting.starts.append(done)
            return
        try:
            self._require_startable()
        except HyperError as error:
            fail([done], error)
            return
        if self._is_put_off(AskStart(done, origin)):
            return
        try:
            self.services.ledger.admit(self.record.sandbox_id, self.record.sizing)
        except HyperError as error:
            fail([done], error)
            if self._discarding:
                await self._begin_removal()
            return
        self.waiting.starts.append(done)
        self._begin_run()
        await self._advance(machine.Start(now()))
        self._come_up(self._errands.bring_up if origin is None else lambda: self._errands.revive(origin))

    async def _on_stop(self, message: AskStop) -> None:
        was_paused = isinstance(self.state, machine.Paused)
        if isinstance(self.state, machine.Hibernated):
            hint = f"`hyper wake {self.record.name}` first, or `hyper rm` it"
            fail([message.done], WrongStateError("is hibernated", subject=self.subject, hint=hint))
            return
        if not isinstance(self.state, machine.Starting | machine.Running | machine.Paused | machine.Stopping):
            resolve([message.done])
            return
        self.waiting.stops.append(message.done)
        self.files.break_off("was stopped")
        if isinstance(self.state, machine.Starting):
            self._stop_asked = message
            self._give_up()
            return
        await self._advance(machine.Stop())
        if self.tenure is None:
            self._stop_asked = message
            if was_paused and isinstance(self.state, machine.Stopping):
                self._take_over_again(self.state.facts)
            self._spawn(self._end_unless_reached(message.timeout_s + KILL_TIMEOUT_S, STOPPED_BY_FORCE))
        elif not self._ending:
            self.tenure.stop(message.signal, message.timeout_s)

    async def _on_remove(self, done: Done, *, force: bool, volumes: bool) -> None:
        if not force:
            try:
                preconditions.require_removable(self.state, self.record.name)
                self.files.require_none()
            except WrongStateError as error:
                if not isinstance(self.state, machine.Removing):
                    fail([done], error)
                    return
        self.waiting.removes.append(done)
        self._discarding = True
        self._with_volumes |= volumes
        match self.state:
            case machine.Starting():
                self._give_up()
            case machine.Running() | machine.Paused() | machine.Stopping():
                await self._end(STOPPED_BY_FORCE)
            case _:
                await self._begin_removal()

    async def _on_adopt(self, vm: VmStatus | None) -> None:
        match self.state:
            case machine.Running(facts) | machine.Stopping(facts) if vm is not None:
                self.services.ledger.hold(self.record.sandbox_id, self.record.sizing)
                self._come_up(lambda: self._errands.take_over(vm, facts, self._tell_trouble))
                if isinstance(self.state, machine.Stopping):
                    exit_ = self.state.exit or STOPPED_BY_FORCE
                    self._spawn(self._end_unless_reached(FINISH_TIMEOUT_S, exit_))
            case machine.Paused() if vm is not None:
                self.services.ledger.hold(self.record.sandbox_id, self.record.sizing)
                if not vm.paused:  # killed while it was about to be let go on
                    self._send(self._errands.pause_again)
            case machine.Running() | machine.Paused() | machine.Stopping():
                await self._end(machine.lost(ExitReason.VM_LOST, "the VM ended while hyperd was not running"))
            case machine.Starting(_, _, str(snapshot_id), published):
                self._roll_forward(SnapshotId(snapshot_id), published)
            case machine.Starting():
                error = UnavailableError("hyperd ended while it was starting", subject=self.subject)
                self._send(lambda: self._errands.clean_up(UpFailed(error)))
            case machine.Removing():
                await self._begin_removal()
            case machine.Exited() | machine.Failed() if self._discarding:
                await self._begin_removal()
            case machine.Hibernated():
                self._as_operation(self._clear_away())
            case _ if vm is not None:
                self._as_operation(self._clear_away())

    async def _on_up(  # noqa: PLR0912 - what it was asked meanwhile, a branch each
        self, live: Live, refused: ProcessExit | None, *, frozen: bool
    ) -> None:
        self._coming_up = None
        if self._ending:  # while it was taken over its VM went, or it was removed
            self._spawn(live.guest.close())
            return
        # First of all: should hyperd end in the middle of this, somebody has to hang up.
        exit_ = self.state.exit if isinstance(self.state, machine.Stopping) else None
        self.tenure = self._new_tenure(live)
        if frozen:
            self.pump.rebase(live.output_offset)
        if not frozen:  # listening comes before saving: nothing is lost by it, the process runs in any case
            self.tenure.begin(process_ended=exit_ is not None and not machine.is_lost(exit_))
        was = self.state
        if isinstance(was, machine.Starting):
            facts = self._facts_of(was, live)
            if not await self._record_started(self.tenure, was, facts):
                return
            log.info("running", extra={"sandbox": self.record.name, "start_ms": facts.start_ms})
        if frozen:
            self.tenure.begin()
        self._changed.beat()
        self.tenure.execs.adopt(live.execs)
        if isinstance(was, machine.Running):
            self._as_operation(self._settle_wiring())
        if isinstance(was, machine.Starting) and (was.asleep or was.back_to):
            self._spawn(self._let_go(self.tenure, wakes=was.asleep is not None))
        else:
            resolve_starts(self.waiting.starts, refused)
        if self.waiting.removes:
            await self._end(STOPPED_BY_FORCE)
        elif exit_ is not None:  # an earlier hyperd ended while it was going down
            await self._end(exit_)
        elif self._stop_asked is not None:  # the stop came when the process already ran
            await self._advance(machine.Stop())
            self.tenure.stop(self._stop_asked.signal, self._stop_asked.timeout_s)
        elif isinstance(self.state, machine.Stopping):  # taken over in the middle of a stop
            self.tenure.stop(SIGKILL, KILL_TIMEOUT_S)
        elif self._rumour is not None:
            self._on_vm_gone(self._rumour)

    async def _on_up_failed(self, error: HyperError) -> None:
        self._coming_up = None
        if not isinstance(self.state, machine.Starting):
            return
        self.services.ledger.release(self.record.sandbox_id)
        if self.state.asleep is not None:
            await self._back_to_sleep(error)
            if self.waiting.removes:
                await self._begin_removal()
            return
        self.pump.finish()
        self.journal.close()
        exit_ = Exit(machine.LOST_EXIT_CODE, ExitReason.START_FAILED, message=str(error))
        await self._advance(machine.StartFailed(exit_, now()))
        log.info("start failed", extra={"sandbox": self.record.name, "error": str(error)})
        self.waiting.refusal = error
        await self._after_end(exit_)

    def _on_vm_gone(self, gone: VmGone) -> None:
        if isinstance(self.state, machine.Starting):
            self._rumour = gone  # a failing bring-up has the better evidence
        elif isinstance(self.state, machine.Running | machine.Paused | machine.Stopping) and not self._ending:
            vm_pid = self.state.facts.vm_pid
            self._send(lambda: self._errands.verify_gone(gone, vm_pid))

    async def _on_down(self, exit_: Exit) -> None:
        self.tenure = self._trouble = None
        self.pump.finish()
        self.journal.close()
        self.services.ledger.release(self.record.sandbox_id)
        event = machine.Lost(exit_, now()) if machine.is_lost(exit_) else machine.Gone(exit_, now())
        await self._advance(event)
        log.info(
            "ended", extra={"sandbox": self.record.name, "code": exit_.code, "reason": exit_.reason.value}
        )
        await self._after_end(exit_)

    def _on_removed(self, error: HyperError | None) -> None:
        self._removing = False
        if error is not None:
            log.error("not removed", extra={"sandbox": self.record.name, "error": str(error)})
            fail(self.waiting.removes, error)
            if self._last_exit is None:
                self.waiting.fail_end(error)
        else:
            self.removed = self.over = True
            self.services.ledger.release(self.record.sandbox_id)  # of one that was set aside
            log.info("removed", extra={"sandbox": self.record.name})
            resolve(self.waiting.removes)
        if self._last_exit is not None:
            self.waiting.tell_end(self._last_exit)

    def _keeps_disk(self) -> bool:
        """What was written is needed again: the sandbox's own disk, or a volume."""
        return not self._discarding or bool(self.record.spec.mounts)

    def _give_up(self) -> None:
        """Cancel the start. One that has ended already is met in ``_on_up``."""
        if self._coming_up is not None and not self._giving_up:
            self._giving_up = True
            self._coming_up.cancel()

    async def _end(self, exit_: Exit) -> None:
        """The run is over, for whatever reason: take the VM down. Only the first call counts."""
        if self._ending or not isinstance(self.state, machine.Running | machine.Paused | machine.Stopping):
            return
        if isinstance(self.state, machine.Stopping) and self.state.exit is not None:
            exit_ = self.state.exit  # known to an earlier hyperd
        self._ending = True
        self.files.break_off("has ended")
        await self._advance(machine.Stop(exit_))
        if self.tenure is not None:
            self.tenure.begin_end(exit_)
            self._spawn(self.tenure.go_down(exit_, keep_disk=self._keeps_disk()))
        else:
            self._give_up()
            self._send(lambda: self._errands.clean_up(IsDown(exit_)))

    async def _after_end(self, exit_: Exit) -> None:
        self._last_exit = exit_
        resolve(self.waiting.stops)
        if self._discarding:
            await self._begin_removal()  # whoever waits for the end is told when the name is free again
        else:
            self.waiting.tell_end(exit_)

    async def _begin_removal(self) -> None:
        await self._advance(machine.Remove(self._with_volumes))
        if not self._removing:
            self._removing = True
            self._spawn(self._discard())

    async def _recover(self, error: Exception) -> None:
        """After a bug nothing is known but the state: end the run by force and tell everyone who waits."""
        bug_id = secrets.token_hex(4)
        log.error("bug", extra={"sandbox": self.record.name, "bug_id": bug_id}, exc_info=error)
        brief = f"hyperd met a bug of its own (bug_id={bug_id} in its log)"
        was_starting = isinstance(self.state, machine.Starting)
        had_run = was_starting or isinstance(self.state, machine.Running | machine.Paused | machine.Stopping)
        exit_ = machine.lost(ExitReason.START_FAILED if was_starting else ExitReason.AGENT_LOST, brief)
        self._run += 1
        tenure, self.tenure, self._coming_up, self._trouble = self.tenure, None, None, None
        self._ending, self._removing = True, False
        if tenure is not None:
            tenure.begin_end(exit_)
            tenure.live.stack.pop_all()
        try:
            if tenure is not None:
                await tenure.live.guest.close()
            if had_run:
                await self.services.runner.clean_up(self.record.sandbox_id)
        except Exception as further:
            log.exception("not cleaned up", extra={"sandbox": self.record.name, "error": str(further)})
        self.pump.finish()
        self.journal.close()
        if had_run:
            self.services.ledger.release(self.record.sandbox_id)
            await self._advance(
                machine.StartFailed(exit_, now()) if was_starting else machine.Lost(exit_, now())
            )
            self._last_exit = exit_
            self.waiting.tell_end(exit_)
        failure = HyperError(brief, subject=self.subject)
        failure.bug_id = bug_id
        discard = self._discarding and not isinstance(
            self.state, machine.Removing
        )  # a bug in that would be met again
        fail(self.waiting.starts, failure)
        fail(self.waiting.stops, failure)
        if discard:
            self.post(AskRemove(asyncio.get_running_loop().create_future(), force=True))
        else:
            fail(self.waiting.removes, failure)

    def _refuse(self, message: Message) -> None:
        if isinstance(message, OfRun) and isinstance(message.news, IsUp):
            self._late = message.news.live
        if isinstance(message, OfRun) and isinstance(message.news, Settle):
            fail([message.news.done], self._over_error())
        if isinstance(message, OpenFiles):
            self._on_open_files(message)
        if not isinstance(message, Ask):
            return
        if self.removed and isinstance(message, AskStop | AskRemove):
            resolve([message.done])
        elif not message.done.done():
            message.done.set_exception(self._over_error())

    async def _close(self) -> None:
        self._changed.beat()
        self.files.break_off("hyperd ended")
        self.waiting.abandon(self._over_error())
        self.journal.close()
        if self._late is not None:
            self._late.stack.pop_all()
            await self._late.guest.close()
        if self.tenure is not None:  # one that is going down, too: the next hyperd finds how far it came
            await self.tenure.leave()

    async def _discard(self) -> None:
        self.files.break_off("was removed")
        await self.files.wait_gone(None)
        volumes = isinstance(self.state, machine.Removing) and self.state.volumes
        self.post(await self._errands.discard(volumes=volumes))
