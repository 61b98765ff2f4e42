# SPDX-License-Identifier: Apache-2.0
"""The time in which a container runs: from its VM being up to the VM being gone.

The driver decides; this carries. Each coroutine runs as a task of the driver's and posts what it learned.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from signal import SIGKILL

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError
from hyperd.guest.base import Guest
from hyperd.host.groups import first_error
from hyperd.model.container import ContainerRecord, Exit, ExitReason
from hyperd.model.guest import FIRST_PROCESS, ProcessExit, ProcessId
from hyperd.sandbox import machine
from hyperd.sandbox.execs import DRAIN_TIMEOUT_S, STOPPED_BY_FORCE, Execs, Spawn
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.lookout import watch_served
from hyperd.sandbox.message import IsDown, IsLost, News, ProcessEnded
from hyperd.sandbox.presence import Presence
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.run import Live, Runner
from hyperd.sandbox.standstill import step_clock, thaw

log = logging.getLogger(__name__)

KILL_TIMEOUT_S = 5.0  # from SIGKILL to its effect, before the VM is destroyed
LOST_GRACE_S = 1.0  # for the hypervisor to say why, when the agent's connection broke
STEADY_S = 10.0  # a connection that held so long counts as one that works
REDIAL_DELAY_S = 0.1  # doubled with each failure but the first, up to
MAX_REDIAL_DELAY_S = 30.0
THAW_TRIES = 10
THAW_PATIENCE_S = 5.0  # for another connection, between two of them
THAW_TIMEOUT_S = 60.0  # for all of them
GO_ON_TIMEOUT_S = 10.0  # for a guest that is to end and stands still, before its VM is destroyed


class Tenure(Presence):
    def __init__(
        self,
        record: ContainerRecord,
        live: Live,
        pump: Pump,
        journal: Journal,
        runner: Runner,
        post: Callable[[News], None],
        tell_trouble: Callable[[HyperError | None], None],
        spawn: Spawn,
    ) -> None:
        """``tell_trouble``: why the agent cannot be reached, None once it is."""
        super().__init__(live)
        self.stop_asked = False
        self.killed_with: set[int] = set()
        self.carrier_ended: Exit | None = None  # of a rider: how it ends when it was killed for that
        self.operations: set[asyncio.Task[None]] = (
            set()
        )  # the driver's, that have the VM stand still for a time
        self._record = record
        self._container_id = container_id_of(record)
        self._pump = pump
        self._journal = journal
        self._runner = runner
        self._post = post
        self._tell_trouble = tell_trouble
        self._spawn = spawn
        self._process_ended = False
        self._stands_still = False  # and could not be made to go on
        self._watching: asyncio.Task[None] | None = None
        self._lookout: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self.execs = Execs(record, self, spawn, self.exit_of)

    def begin(self, *, process_ended: bool = False) -> None:
        """``process_ended``: an earlier hyperd has seen that."""
        self._process_ended = process_ended
        self._watching = self._spawn(self._watch())
        if self._record.spec.mounts:
            self._lookout = self._spawn(watch_served(self._record, self, self._runner.rooms))

    def note_signal(self, process_id: ProcessId, number: int) -> None:
        """It is about to be sent on somebody's behalf: an end by it is no accident."""
        if process_id == FIRST_PROCESS:
            self.killed_with.add(number)
            self.stop_asked |= number == SIGKILL
        else:
            self.execs.note_signal(process_id, number)

    def exit_of(self, status: ProcessExit, sent: Collection[int] = ()) -> Exit:
        """``sent``: the signals that were sent to this process alone. With the first process all others are killed."""
        if status.start_error:
            return Exit(status.code, ExitReason.START_FAILED, message=status.start_error)
        if self.carrier_ended is not None and status.signal == SIGKILL:
            return self.carrier_ended
        reason = ExitReason.EXITED
        if status.signal and (status.signal in self.killed_with or status.signal in sent):
            reason = ExitReason.STOPPED
        elif status.oom_killed and status.signal == SIGKILL:  # the kernel may have killed a child alone
            reason = ExitReason.OOM
        elif self.stop_asked:
            reason = ExitReason.STOPPED
        return Exit(status.code, reason, signal=status.signal)

    def stop(self, signal: int, timeout_s: float) -> None:
        """Signal, wait, SIGKILL, wait; then the VM itself, which needs nobody's consent. Can be asked again."""
        self.stop_asked = True
        self.killed_with.add(signal)
        task = self._spawn(self._stop_gently(signal, timeout_s))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def end_with_carrier(self, exit_: Exit) -> None:
        """Of a rider, whose VM goes: at once, but its output and its disk whole."""
        self.carrier_ended = exit_
        self.stop(SIGKILL, KILL_TIMEOUT_S)

    async def unpause(self) -> None:
        """The VM runs again: its clock is stepped, and its guest thawed where a snapshot was made meanwhile."""
        self.paused = False
        self.changed.beat()
        await self.thaw()

    async def thaw(self) -> None:
        """Over the next connection when this one is broken. Raises what the last try raised, TimeoutExpiredError."""
        try:
            async with asyncio.timeout(THAW_TIMEOUT_S):
                await self._thaw()
        except TimeoutError as error:
            brief = f"was not thawed in {THAW_TIMEOUT_S:g} s"
            raise TimeoutExpiredError(brief, subject=f"container {self._record.name}") from error

    async def _thaw(self) -> None:
        for left in reversed(range(THAW_TRIES)):
            guest = self.live.guest
            await step_clock(guest)
            try:
                return await thaw(guest)
            except HyperError as error:
                if not left or self.is_ending:
                    raise
                log.warning("not thawed yet", extra={"sandbox": self._record.name, "error": str(error)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(THAW_PATIENCE_S):
                    await self.other_guest(guest)
        return None

    def begin_end(self, exit_: Exit) -> None:
        self.exit = exit_
        self.changed.beat()

    async def go_down(self, exit_: Exit, *, keep_disk: bool) -> None:
        """Hand on what the processes still wrote, then take the VM down."""
        watching = {task for task in (self._watching, *self.execs.tasks) if task is not None}
        sync = keep_disk and not machine.is_lost(exit_) and not self._stands_still
        if sync:
            try:
                await self._let_run()
            except HyperError as error:
                log.warning(
                    "not resumed for its end", extra={"sandbox": self._record.name, "error": str(error)}
                )
        await self.break_off(0)
        for pump in (self._pump, *self.execs.pumps):
            pump.drain()
        if self._process_ended and watching:
            await asyncio.wait(watching, timeout=DRAIN_TIMEOUT_S)
        left = {task for task in watching | self._besides() if not task.done()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        self._pump.finish()
        self._journal.close()
        try:
            keep_disk = sync and not self.vm_ended
            await self._runner.tear_down(self.live, keep_disk=keep_disk)
        except HyperError as error:
            log.error("not torn down", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400
            if self.live.shared is not None:  # nobody ends that VM for it
                exit_ = machine.lost(ExitReason.AGENT_LOST, str(error))
        self._post(IsDown(exit_))

    async def end_unnoticed(self) -> None:
        """The VM goes and the run does not end with it: it is saved, or counts no more. Exec'd processes go with it."""
        self.begin_end(STOPPED_BY_FORCE)
        tasks = {task for task in (self._watching, *self.execs.tasks) if task is not None} | self._besides()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._journal.close()
        try:
            await self.live.hang_up()
            await self.live.stack.aclose()
        except HyperError as error:  # the fleet's next look ends what is left
            log.error("not torn down", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400

    async def leave(self) -> None:
        """hyperd is ending: hang up and let the VM run."""
        self.live.stack.pop_all()
        self._journal.close()
        await self.live.hang_up()

    async def _watch(self) -> None:
        """Carry output and wait for the first process; dial again when only the connection broke.

        For as long as the VM is there: a guest that is paused, swapped out or starved answers again some day, and its
        processes are not hyperd's to kill.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                await self._watch_connection()
            except HyperError as error:
                cause = error
            else:
                return
            failures = 1 if loop.time() - began > STEADY_S else failures + 1
            if not await self._redial(failures):
                return
            log.info("agent reached again", extra={"sandbox": self._record.name, "cause": cause.brief})
            self._tell_trouble(None)
            self.changed.beat()

    def _besides(self) -> "set[asyncio.Task[None]]":
        """What nobody waits for at the end."""
        return self._stopping | ({self._lookout} if self._lookout is not None else set())

    async def _redial(self, failures: int) -> bool:
        """Until it is reached: True; or until the run is over: False."""
        while True:
            await self.ended_within(redial_delay_s(failures))
            await self.while_paused()
            if self.is_ending:
                return False
            try:
                await self._runner.reconnect(self._record, self.live)
                await step_clock(self.live.guest)
            except HyperError as error:
                failures += 1
                await self.ended_within(LOST_GRACE_S)
                if not self.is_ending:
                    self._tell_trouble(error)
            else:
                return True

    async def _watch_connection(self) -> None:
        guest = self.live.guest
        async with first_error(), asyncio.TaskGroup() as both:
            both.create_task(self._pump.run(guest))
            status = await guest.wait_process(self._container_id, FIRST_PROCESS)
            self._pump.drain()
            if not self._process_ended:
                self._process_ended = True
                self.changed.beat()
                self._post(ProcessEnded(status))

    async def _let_run(self) -> None:
        """A guest that does not run cannot be asked anything. Raises TimeoutExpiredError, what resuming raises."""
        try:
            async with asyncio.timeout(GO_ON_TIMEOUT_S):
                if under_way := self._cancel_operations():
                    await asyncio.wait(under_way)
                if self.paused:
                    await self._runner.rooms.hypervisor.resume(self._record.sandbox_id)
                    await self.unpause()
        except TimeoutError as error:
            self._stands_still = True
            brief = f"has not gone on for {GO_ON_TIMEOUT_S:g} s"
            raise TimeoutExpiredError(brief, subject=f"container {self._record.name}") from error

    async def break_off(self, patience_s: float = GO_ON_TIMEOUT_S) -> None:
        """What has the VM stand still for a time. What has not ended after ``patience_s`` has its VM destroyed."""
        under_way = self._cancel_operations()
        if under_way:
            await asyncio.wait(under_way, timeout=patience_s)
        if not (left := {task for task in under_way if not task.done()}):
            return
        self.vm_ended = True
        self.changed.beat()
        try:
            await self._runner.rooms.hypervisor.destroy(self._record.sandbox_id)
        except HyperError as error:
            log.error("not destroyed", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400
        await asyncio.wait(left, timeout=GO_ON_TIMEOUT_S)  # all that they undo fails at once now

    def _cancel_operations(self) -> "set[asyncio.Task[None]]":
        under_way = {task for task in self.operations if not task.done()}
        for task in under_way:
            if not task.cancelling():  # once, or its undoing would be cancelled
                task.cancel()
        return under_way

    async def _stop_gently(self, signal: int, timeout_s: float) -> None:
        try:
            await self._let_run()
            for number, patience_s, everyone in ((signal, timeout_s, False), (SIGKILL, KILL_TIMEOUT_S, True)):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        self.killed_with.add(number)
                        await self._signal(number, everyone=everyone)
                        while not (self._process_ended or self.is_ending):
                            await self.changed.wait()
                if self._process_ended or self.is_ending:
                    return
        except HyperError as error:
            log.warning("cannot signal", extra={"sandbox": self._record.name, "error": str(error)})
        self._post(IsLost(self.carrier_ended or STOPPED_BY_FORCE))

    async def _signal(self, number: int, *, everyone: bool) -> None:
        """Over the next connection when this one is broken."""
        guest: Guest | None = self.live.guest
        while guest is not None:
            try:
                await guest.signal(self._container_id, FIRST_PROCESS, number, everyone=everyone)
            except UnavailableError:
                guest = await self.other_guest(guest)
            else:
                return


def redial_delay_s(failures: int) -> float:
    """At once, then after longer and longer."""
    return min(REDIAL_DELAY_S * 2 ** min(failures - 2, 30), MAX_REDIAL_DELAY_S) if failures > 1 else 0.0
