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

from hyperd.errors import HyperError, NotFoundError, WrongStateError
from hyperd.model.container import ExitReason
from hyperd.model.vm import VmGone
from hyperd.sandbox import endpoints, machine
from hyperd.sandbox.beginning import BeginningSandbox
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
    AskReroute,
    AskRollback,
    AskSeat,
    AskSnapshot,
    AskStart,
    AskStop,
    AskUnpause,
    AskWake,
    CarrierEnds,
    ClearAway,
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
    UpFailed,
)
from hyperd.sandbox.waiting import fail, resolve

log = logging.getLogger(__name__)


class SandboxDriver(BeginningSandbox):
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
            case AskConnect() | AskDisconnect() | AskReroute() if self._is_at_rest:
                await self._on_rewire(message)
            case (
                AskPause()
                | AskUnpause()
                | AskSnapshot()
                | AskHibernate()
                | AskSeat()
                | AskConnect()
                | AskDisconnect()
                | AskReroute()
            ):
                self._on_operation(message)
            case AskWake():
                await self._on_wake(message)
            case AskRollback():
                await self._on_rollback(message)
            case OpenFiles():
                self._on_open_files(message)
            case Adopt(vm):
                await self._on_adopt(vm)
            case ClearAway():
                self._on_clear_away()
            case VmGone():
                self._on_vm_gone(message)
            case IsRemoved(error):
                self._on_removed(error)
            case OfRun(run, news) if run == self._run:
                await self._on_news(news)
            case OfRun(_, IsUp(live)):
                self._spawn(live.let_go())
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
                case AskConnect(_, endpoint):
                    before = self.record.spec
                    await self._respecify(endpoints.connected(self.record, endpoint))
                    try:
                        network.get_network(endpoint.network)  # from here on it counts as one that is on it
                    except NotFoundError:
                        await self._respecify(before)
                        raise
                case AskReroute():
                    pass
                case AskDisconnect(_, name):
                    await self._respecify(endpoints.disconnected(self.record, name))
                    await network.disconnect(self.record.sandbox_id, name)
            if not ask.done.done():
                ask.done.set_result([])
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
            case CarrierEnds(exit_):
                await self._on_carrier_ends(exit_)
            case IsDown(exit_):
                await self._on_down(exit_)
            case Settle():
                await self._on_settle(news)

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
        self.riders.tell_end(exit_)
        self.riders.forget()
        if tenure is not None:
            tenure.begin_end(exit_)
            tenure.live.stack.pop_all()
        try:
            if tenure is not None:
                await tenure.live.hang_up()
            if had_run:
                await self._errands.clean_up(None)
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
            await self._late.hang_up()
        if self.tenure is not None:  # one that is going down, too: the next hyperd finds how far it came
            await self.tenure.leave()
