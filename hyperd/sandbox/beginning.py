# SPDX-License-Identifier: Apache-2.0
"""How a run begins: it is started, or found by a hyperd that follows another; and what was asked of it meanwhile."""

import logging
from signal import SIGKILL

from hyperd.errors import HyperError, UnavailableError
from hyperd.model.container import Exit, ExitReason
from hyperd.model.guest import ProcessExit
from hyperd.model.snapshot import SnapshotId
from hyperd.model.vm import VmGone, VmStatus
from hyperd.sandbox import machine, tenure
from hyperd.sandbox.ending import EndingSandbox
from hyperd.sandbox.execs import STOPPED_BY_FORCE
from hyperd.sandbox.instance import now
from hyperd.sandbox.message import AskStart, Started, UpFailed
from hyperd.sandbox.revival import Origin
from hyperd.sandbox.run import Live
from hyperd.sandbox.waiting import fail, resolve_starts

log = logging.getLogger(__name__)

# For the agent of a VM that was to end when an earlier hyperd ended. By then its kernel has written back by itself what
# it will (dirty_expire_centisecs is 30 s), so that a VM taken away unsynced loses next to nothing.
FINISH_TIMEOUT_S = 60.0


class BeginningSandbox(EndingSandbox):
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
            self._admit()
        except HyperError as error:
            fail([done], error)
            if self._discarding:
                await self._begin_removal()
            return
        self.waiting.starts.append(done)
        self._begin_run()
        await self._advance(machine.Start(now()))
        self._come_up(self._errands.bring_up if origin is None else lambda: self._errands.revive(origin))

    async def _on_adopt(self, vm: VmStatus | None) -> None:
        match self.state:
            case machine.Running(facts) | machine.Stopping(facts) if vm is not None:
                self._hold()
                self._come_up(lambda: self._errands.take_over(vm, facts, self._tell_trouble))
                if isinstance(self.state, machine.Stopping):
                    exit_ = self.state.exit or STOPPED_BY_FORCE
                    self._spawn(self._end_unless_reached(FINISH_TIMEOUT_S, exit_))
            case machine.Paused() if vm is not None:
                self._hold()
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
            self._spawn(live.let_go())
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
        if (isinstance(was, machine.Running) and not self.is_rider) or self._has_stale_routes():
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
            self.tenure.stop(SIGKILL, tenure.KILL_TIMEOUT_S)
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
