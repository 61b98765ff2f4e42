# SPDX-License-Identifier: Apache-2.0
"""One sandbox: what it is made of, its state, and what others see of it. What it does is driver.py's.

A change of state is true at once, in memory; the record follows. Where memory on disk depends on it, it is the other
way round: true is what is recorded. Trouble is no state: the VM runs, and its agent cannot be reached at this moment.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

from hyperd.errors import (
    HyperError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.container import ContainerRecord, ContainerSpec, ContainerView, Exit
from hyperd.model.guest import FIRST_PROCESS
from hyperd.model.vm import VmGone, VmGoneCause, VmStatus
from hyperd.sandbox import identity, machine, preconditions
from hyperd.sandbox.actor import Actor
from hyperd.sandbox.endpoints import carrier_of
from hyperd.sandbox.errands import Errands, Services
from hyperd.sandbox.file_calls import FileCalls
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.message import (
    Adopt,
    Ask,
    AskSeat,
    AskStop,
    CarrierEnds,
    ClearAway,
    IsLost,
    Message,
    News,
    OfRun,
    UpFailed,
)
from hyperd.sandbox.pulse import Pulse
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.riders import Rider, Riders, Seat
from hyperd.sandbox.riding import RiderErrands
from hyperd.sandbox.run import Live
from hyperd.sandbox.standstill import to_the_end
from hyperd.sandbox.tenure import Tenure
from hyperd.sandbox.view import view_of
from hyperd.sandbox.waiting import Waiting

log = logging.getLogger(__name__)

MAX_ASKED = 256
LIVE_TIMEOUT_S = 30.0  # for a running container whose VM is being taken over


class SandboxInstance(Actor[Message]):
    def __init__(
        self,
        record: ContainerRecord,
        services: Services,
        journal: Journal,
        state: machine.State,
        generation: int,
    ) -> None:
        super().__init__()
        self.record = record
        self.services = services
        self.journal = journal
        self.state = state
        self.generation = generation
        self.removed = False
        self.left_networks = False  # what hyperd found it on, and it is not on by its record
        self.pending = False  # a clone that stands still until its fellows are there, too
        self.waiting = Waiting()
        self.files = FileCalls(self.subject)
        self.riders = Riders()  # who is in its VM, too
        self.tenure: Tenure | None = None
        self.pump = self._new_pump()
        self._errands = self._new_errands()
        self._changed = Pulse()  # state, tenure
        self._run = 0
        self._last_exit = machine.exit_of(state)
        self._coming_up: asyncio.Task[None] | None = None
        self._giving_up = False  # the bring-up was cancelled: once, or its clean-up would be
        self._given_up_for: HyperError | None = None  # unless it was stopped
        self._stop_asked: AskStop | None = None  # before there was a process to signal
        self._rumour: VmGone | None = None  # heard while starting
        self._late: Live | None = None  # came up when hyperd was ending
        self._trouble: HyperError | None = None  # why the agent of the VM that runs cannot be reached
        self._start_called_ms = 0.0
        self._unreadable: HyperError | None = None
        self._ending = False
        self._removing = False
        self._operations: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._recording = asyncio.Lock()  # held while a state is being recorded that is not true before
        self._discarding = record.spec.auto_remove
        self._with_volumes = record.spec.auto_remove  # and the anonymous volumes with it

    @property
    def subject(self) -> str:
        return f"container {self.record.name}"

    def view(self) -> ContainerView:
        trouble = self._trouble or (self.tenure.broken if self.tenure is not None else None)
        shown = view_of(self.record, self.state, self.generation, self.journal.directory, trouble)
        return replace(shown, ports=self.services.runner.rooms.network.published(self.record.sandbox_id))

    def ask(self, message: Ask) -> None:
        """As ``post``, for callers, of whom there are so many at most: one who hangs up leaves its question behind."""
        asked = self._inbox.qsize() + self.waiting.count + len(self._operations)
        if self.over or asked < MAX_ASKED:
            self.post(message)
            return
        hint = "try again when what is under way has ended"
        error = UnavailableError(f"{asked} calls wait for it already", subject=self.subject, hint=hint)
        message.done.set_exception(error)

    def vm_gone(self, gone: VmGone) -> None:
        self.post(gone)

    def adopt(self, vm: VmStatus | None) -> None:
        """First message after a restart of hyperd: what is left of this sandbox's VM."""
        self.post(Adopt(vm))

    def set_aside(self, error: HyperError, vm: VmStatus | None) -> None:
        """Its record cannot be read: it can be removed, its VM with it, and nothing else."""
        self._unreadable = error
        if vm is not None:
            self._hold()

    @property
    def is_rider(self) -> bool:
        """It runs in the VM of another."""
        return carrier_of(self.record.spec) is not None

    def should_have_vm(self) -> bool:
        is_up = isinstance(self.state, machine.Running | machine.Paused)
        return is_up and not self._ending and not self.is_rider

    def should_have_no_vm(self) -> bool:
        at_rest = isinstance(
            self.state, machine.Created | machine.Exited | machine.Failed | machine.Hibernated
        )
        return at_rest and self._unreadable is None and not self.files.are_there

    def vm_is_missing(self) -> None:
        self.vm_gone(VmGone(self.record.sandbox_id, VmGoneCause.LOST, "found by looking: no event came"))

    def clear_away(self) -> None:
        """What the fleet's look found of one that is at rest."""
        self.post(ClearAway())

    async def find_tenure(self) -> Tenure | None:
        """Waits while a VM is coming up or being taken over; None when none is.

        Raises TimeoutExpiredError, and UnsupportedError when its agent speaks another protocol.
        """
        try:
            async with asyncio.timeout(LIVE_TIMEOUT_S):
                while self.tenure is None and not self.over:
                    if not isinstance(self.state, machine.Starting | machine.Running | machine.Stopping):
                        return None
                    if isinstance(self._trouble, UnsupportedError):
                        raise UnsupportedError(
                            self._trouble.brief, subject=self.subject, hint=self._trouble.hint
                        )
                    await self._changed.wait()
        except TimeoutError as error:
            raise TimeoutExpiredError(
                "its agent has not answered yet",
                subject=self.subject,
                evidence=self._trouble.brief if self._trouble else "",
                hint="it is tried again and again; `hyper stop` and `hyper rm -f` do not need it",
            ) from error
        return self.tenure

    async def wait_moving(self) -> None:
        """While an operation has the VM stand still nothing can be asked of its guest. Raises TimeoutExpiredError."""
        try:
            async with asyncio.timeout(LIVE_TIMEOUT_S):
                while self._operations:
                    await self._changed.wait()
        except TimeoutError as error:
            raise TimeoutExpiredError(
                "is being saved, or paused", subject=self.subject, hint="try again when that has ended"
            ) from error

    def require_whole(self) -> None:
        """Nothing but its removal may be asked of a clone whose fellows are not there yet: it may never have been."""
        if self.pending:
            hint = "try again when it runs; `hyper rm -f` removes it and its fellows"
            raise WrongStateError("is being restored", subject=self.subject, hint=hint)

    def renew_pump(self) -> None:
        """For a new run, unless somebody who attached before its start did so already."""
        if self.pump.ended.is_set():
            self.pump = self._new_pump()

    def require_readable(self) -> None:
        """Raises what kept its record from being read."""
        if self._unreadable is not None:
            error = self._unreadable
            raise type(error)(error.brief, subject=self.subject, evidence=error.evidence, hint=error.hint)

    async def take_seat(self, rider: Rider) -> Seat:
        """As ``riders.Carrier``. Give it back."""
        done: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self.post(AskSeat(done, rider))
        try:
            return await done
        except asyncio.CancelledError:
            if done.done() and not done.cancelled() and done.exception() is None:
                done.result().leave()
            raise

    def _admit(self) -> None:
        """What it takes of the host: nothing, in the VM of another. Raises InvalidError, ExhaustedError."""
        if not self.is_rider:
            self.services.ledger.admit(self.record.sandbox_id, self.record.sizing)

    def _hold(self) -> None:
        """As ``_admit``, of what is there already."""
        if not self.is_rider:
            self.services.ledger.hold(self.record.sandbox_id, self.record.sizing)

    def _new_errands(self) -> Errands:
        carrier_id = carrier_of(self.record.spec)
        if carrier_id is None:
            return Errands(self.record, self.services, self.journal)

        def tell_end(exit_: Exit) -> None:
            self._post(self._run, CarrierEnds(exit_))

        return RiderErrands(self.record, self.services, self.journal, carrier_id, tell_end)

    def _require_startable(self) -> None:
        self.require_readable()
        preconditions.require_startable(self.state, self.record.name)

    async def _advance(self, event: machine.Event) -> None:
        after = machine.step(self.state, event)
        if after == self.state:
            return
        self.state = after
        self.generation += 1
        self._changed.beat()
        try:
            await self.services.records.save_state(self.record.sandbox_id, after, self.generation)
        except HyperError as error:
            # Memory stays true; after a restart the record is held against what exists.
            log.error("state not saved", extra={"sandbox": self.record.name, "error": str(error)})  # noqa: TRY400

    async def _record(self, event: machine.Event, spec: ContainerSpec | None = None) -> None:
        """As ``_advance``, but recorded first, power cut or not: raises, and nothing has changed, when it cannot be.

        ``spec``: what it is to be from now on, recorded with it.
        """
        after = machine.step(self.state, event)
        if after == self.state:
            return

        async def record() -> None:
            async with self._recording:
                generation = self.generation + 1
                records, sandbox_id = self.services.records, self.record.sandbox_id
                await records.save_state(sandbox_id, after, generation, lasting=True, spec=spec)
                self.state, self.generation = after, generation
                if spec is not None:
                    self._become(spec)
                self._changed.beat()

        await to_the_end(record())  # should hyperd end meanwhile, it is still known which of the two is true

    async def told_record(self) -> ContainerRecord:
        """With what its links say now."""
        return await self._errands.told_record()

    async def _respecify(self, spec: ContainerSpec) -> None:
        """Of one at rest: recorded first."""
        generation = self.generation + 1
        await self.services.records.save_state(
            self.record.sandbox_id, self.state, generation, lasting=True, spec=spec
        )
        self.generation = generation
        self._become(spec)
        self._changed.beat()

    def _become(self, spec: ContainerSpec) -> None:
        self.record = replace(self.record, spec=spec)
        self._errands = self._new_errands()

    def _tell_trouble(self, error: HyperError | None) -> None:
        """The agent of a VM that should run cannot be reached; None: now it was. Is the VM there at all?"""
        if error is not None and self._trouble is None:
            log.warning("agent not reached", extra={"sandbox": self.record.name, "error": str(error)})
        self._trouble = error
        self._changed.beat()
        if error is not None:
            self.vm_is_missing()

    def _send(self, errand: Callable[[], Awaitable[News | None]]) -> "asyncio.Task[None]":
        """On an errand of the present run; what it comes back with goes into the inbox."""
        run = self._run

        async def carry_out() -> None:
            news = await errand()
            if news is not None:
                self._post(run, news)

        return self._spawn(carry_out())

    async def _end_unless_reached(self, patience_s: float, exit_: Exit) -> None:
        """Nobody is there to be signalled or to sync: have patience, then take the VM away."""
        run = self._run
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self.tenure is None and not self._ending:
                    await self._changed.wait()
        if self.tenure is None:
            self._post(run, IsLost(exit_))

    def _come_up(
        self,
        errand: Callable[[], Awaitable[News | None]],
        first: "asyncio.Task[None] | None" = None,
    ) -> None:
        """``first`` goes before it, and to its end: who cancels the errand is told that it was when both are over."""
        self._giving_up = False
        run = self._run

        async def carry_out() -> News | None:
            if first is not None:
                await asyncio.wait((first,))
            return await errand()

        self._coming_up = self._send(carry_out)

        def tell(_: object) -> None:
            stopped = WrongStateError("was stopped while it started", subject=self.subject)
            self._post(run, UpFailed(self._given_up_for or stopped))

        def came_up(task: "asyncio.Task[None]") -> None:
            # Here and not in the task: it may have been cancelled before its first step.
            if task.cancelled() and first is not None and not first.done():
                first.add_done_callback(tell)
            elif task.cancelled():
                tell(task)

        self._coming_up.add_done_callback(came_up)

    def _post(self, run: int, news: News) -> None:
        self.post(OfRun(run, news))

    def _refuse_while_pending(self, ask: Ask) -> None:
        try:
            self.require_whole()
        except WrongStateError as error:
            if not ask.done.done():
                ask.done.set_exception(error)

    def _new_tenure(self, live: Live) -> Tenure:
        run = self._run
        tenure = Tenure(
            self.record,
            live,
            self.pump,
            self.journal,
            self.services.runner,
            lambda news: self._post(run, news),
            self._tell_trouble,
            self._spawn,
        )
        tenure.operations = self._operations
        tenure.paused = isinstance(self.state, machine.Paused)
        return tenure

    def _new_pump(self) -> Pump:
        return Pump(identity.container_id_of(self.record), FIRST_PROCESS, self.journal)

    def _over_error(self) -> HyperError:
        if self.removed:
            return NotFoundError("was removed", subject=self.subject)
        return UnavailableError("hyperd is ending", subject=self.subject)


def now() -> datetime:
    return datetime.now(UTC)
