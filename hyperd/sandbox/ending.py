# SPDX-License-Identifier: Apache-2.0
"""How a run ends, and how a sandbox goes: whatever ends it first counts, and a removal takes what an end left.

a start is given up | a run ends --> its VM goes down --> at rest --> (asked for, or --rm) everything of it goes
"""

import logging

from hyperd.errors import HyperError, WrongStateError
from hyperd.model.container import Exit
from hyperd.sandbox import machine, preconditions, tenure
from hyperd.sandbox.execs import STOPPED_BY_FORCE
from hyperd.sandbox.instance import now
from hyperd.sandbox.message import AskStop, CarrierEnds, Done, IsDown
from hyperd.sandbox.sleeping import SleepingSandbox
from hyperd.sandbox.tenure import Tenure
from hyperd.sandbox.waiting import fail, resolve

log = logging.getLogger(__name__)


class EndingSandbox(SleepingSandbox):
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
            self._spawn(self._end_unless_reached(message.timeout_s + tenure.KILL_TIMEOUT_S, STOPPED_BY_FORCE))
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

    async def _on_carrier_ends(self, exit_: Exit) -> None:
        """Of a rider: it leaves before the VM goes, or with it."""
        if isinstance(self.state, machine.Starting):
            if self._coming_up is not None and self._coming_up.done():
                self._post(self._run, CarrierEnds(exit_))  # behind what that ended with
                return
            self._give_up(WrongStateError(exit_.message, subject=self.subject))
        elif self.tenure is None or machine.is_lost(exit_):
            await self._end(exit_)
        elif not self._ending:
            self.files.break_off("was stopped")
            await self._advance(machine.Stop())
            self.tenure.end_with_carrier(exit_)

    def _give_up(self, error: HyperError | None = None) -> None:
        """Cancel the start. One that has ended already is met in ``_on_up``. ``error``: why, unless it was stopped."""
        if self._coming_up is not None and not self._giving_up:
            self._giving_up, self._given_up_for = True, error
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
            self._spawn(self._go_down(self.tenure, exit_))
        else:
            self._give_up()
            self._send(lambda: self._errands.clean_up(IsDown(exit_)))

    async def _go_down(self, tenure: Tenure, exit_: Exit) -> None:
        vm_is_empty = await self.riders.send_off(exit_)
        await tenure.go_down(exit_, keep_disk=self._keeps_disk() or not vm_is_empty)

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

    async def _after_end(self, exit_: Exit) -> None:
        self._last_exit = exit_
        resolve(self.waiting.stops)
        if self._discarding:
            await self._begin_removal()  # whoever waits for the end is told when the name is free again
        else:
            self.waiting.tell_end(exit_)

    def _keeps_disk(self) -> bool:
        """What was written is needed again: the sandbox's own disk, or a volume."""
        return not self._discarding or bool(self.record.spec.mounts)

    async def _begin_removal(self) -> None:
        await self._advance(machine.Remove(self._with_volumes))
        if not self._removing:
            self._removing = True
            self._spawn(self._discard())

    async def _discard(self) -> None:
        self.files.break_off("was removed")
        await self.files.wait_gone(None)
        volumes = isinstance(self.state, machine.Removing) and self.state.volumes
        self.post(await self._errands.discard(volumes=volumes))

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
