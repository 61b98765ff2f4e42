# SPDX-License-Identifier: Apache-2.0
"""The time in which a container runs: from its VM being up to the VM being gone.

The driver decides; this carries. Each coroutine runs as a task of the driver's and posts what it learned.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from signal import SIGKILL

from hyperd.errors import HyperError, UnavailableError, WrongStateError
from hyperd.guest.base import Guest
from hyperd.model.container import ContainerRecord, Exit, ExitReason
from hyperd.model.guest import FIRST_PROCESS, ProcessExit, ProcessId, ProcessPlan
from hyperd.sandbox import machine
from hyperd.sandbox.assembly import container_id_of
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.message import IsDown, IsLost, News, ProcessEnded
from hyperd.sandbox.pulse import Pulse
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.run import Live, Runner

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0  # for output still in pipes when the first process has ended
KILL_TIMEOUT_S = 5.0  # from SIGKILL to its effect, before the VM is destroyed
LOST_GRACE_S = 1.0  # for the hypervisor to say why, when the agent's connection broke
MAX_REDIALS = 8  # of connections that break as soon as they are made
STEADY_S = 10.0  # a connection that held so long counts as one that works
REDIAL_DELAY_S = 0.1  # times the number of failures so far

STOPPED_BY_FORCE = Exit(128 + SIGKILL, ExitReason.STOPPED, signal=SIGKILL)

Spawn = Callable[[Coroutine[object, object, None]], "asyncio.Task[None]"]


class Tenure:
    def __init__(
        self,
        record: ContainerRecord,
        live: Live,
        pump: Pump,
        journal: Journal,
        runner: Runner,
        post: Callable[[News], None],
        spawn: Spawn,
    ) -> None:
        self.live = live
        self.stop_asked = False
        self.killed_with: set[int] = set()
        self._record = record
        self._container_id = container_id_of(record.sandbox_id)
        self._pump = pump
        self._journal = journal
        self._runner = runner
        self._post = post
        self._spawn = spawn
        self._process_ended = False
        self._exit: Exit | None = None
        self._changed = Pulse()  # process ended, run ended, connection renewed
        self._watching: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._execs: dict[asyncio.Task[None], Pump] = {}

    @property
    def is_ending(self) -> bool:
        return self._exit is not None

    def begin(self) -> None:
        self._watching = self._spawn(self._watch())

    def adopt_execs(self, processes: dict[ProcessId, int]) -> None:
        """Exec'd processes of an earlier hyperd, each with the end of its output: nobody listens, nobody blocks."""
        for process_id, offset in processes.items():
            pump = Pump(self._container_id, process_id, None, offset)
            end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
            self._watch_exec_in_background(process_id, pump, end)

    def exit_of(self, status: ProcessExit) -> Exit:
        if status.start_error:
            return Exit(status.code, ExitReason.START_FAILED, message=status.start_error)
        reason = ExitReason.EXITED
        if status.oom_killed:
            reason = ExitReason.OOM
        elif self.stop_asked or (status.signal and status.signal in self.killed_with):
            reason = ExitReason.STOPPED
        return Exit(status.code, reason, signal=status.signal)

    def stop(self, signal: int, timeout_s: float) -> None:
        """Signal, wait, SIGKILL, wait; then the VM itself, which needs nobody's consent. May be asked more than once."""
        self.stop_asked = True
        task = self._spawn(self._stop_gently(signal, timeout_s))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def exec(
        self, process_id: ProcessId, plan: ProcessPlan, pump: Pump, end: "asyncio.Future[Exit]"
    ) -> None:
        """Start a further process. A caller who hangs up ends its wait, not the start: the process stays watched."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch_exec_in_background(process_id, pump, end, plan, started)
        await started

    async def other_guest(self, guest: Guest) -> Guest | None:
        """The connection after ``guest`` broke; None when the run is over instead."""
        while self.live.guest is guest and not self.is_ending:
            await self._changed.wait()
        return None if self.is_ending else self.live.guest

    def begin_end(self, exit_: Exit) -> None:
        self._exit = exit_
        self._changed.beat()

    async def go_down(self, exit_: Exit, *, keep_disk: bool) -> None:
        """Hand on what the processes still wrote, then take the VM down."""
        watching = {task for task in (self._watching, *self._execs) if task is not None}
        for pump in (self._pump, *self._execs.values()):
            pump.drain()
        if self._process_ended and watching:
            await asyncio.wait(watching, timeout=DRAIN_TIMEOUT_S)
        left = {task for task in watching | self._stopping if not task.done()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        self._pump.finish()
        self._journal.close()
        try:
            await self._runner.tear_down(self.live, keep_disk=keep_disk and not machine.is_lost(exit_))
        except HyperError as error:
            log.error("not torn down", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400
        self._post(IsDown(exit_))

    async def leave(self) -> None:
        """hyperd is ending: hang up and let the VM run."""
        self.live.stack.pop_all()
        self._journal.close()
        await self.live.guest.close()

    async def _watch(self) -> None:
        """Carry output and wait for the first process; dial again when only the connection broke."""
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
            await self._ended_within(REDIAL_DELAY_S * (failures - 1))
            if self.is_ending:
                return
            try:
                if failures > MAX_REDIALS:
                    raise cause
                await self._runner.reconnect(self._record, self.live)
            except HyperError:
                await self._ended_within(LOST_GRACE_S)
                self._post(IsLost(machine.lost(ExitReason.AGENT_LOST, f"the agent is gone: {cause}")))
                return
            log.info("agent reached again", extra={"sandbox": self._record.name, "cause": cause.brief})
            self._changed.beat()

    async def _watch_connection(self) -> None:
        guest = self.live.guest
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump.run(guest))
                status = await guest.wait_process(self._container_id, FIRST_PROCESS)
                self._pump.drain()
                if not self._process_ended:
                    self._process_ended = True
                    self._changed.beat()
                    self._post(ProcessEnded(status))
        except BaseExceptionGroup as group:
            lost, bugs = group.split(HyperError)
            if bugs is not None or lost is None:
                raise
            raise _first(lost) from group

    async def _ended_within(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_ending:
                    await self._changed.wait()

    async def _stop_gently(self, signal: int, timeout_s: float) -> None:
        try:
            for number, patience_s, everyone in ((signal, timeout_s, False), (SIGKILL, KILL_TIMEOUT_S, True)):
                await self.live.guest.signal(self._container_id, FIRST_PROCESS, number, everyone=everyone)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        while not (self._process_ended or self.is_ending):
                            await self._changed.wait()
                if self._process_ended or self.is_ending:
                    return
        except HyperError as error:
            log.warning("cannot signal", extra={"sandbox": self._record.name, "error": str(error)})
        self._post(IsLost(STOPPED_BY_FORCE))

    def _watch_exec_in_background(
        self,
        process_id: ProcessId,
        pump: Pump,
        end: "asyncio.Future[Exit]",
        plan: ProcessPlan | None = None,
        started: "asyncio.Future[None] | None" = None,
    ) -> None:
        task = self._spawn(self._run_exec(process_id, pump, end, plan, started))
        self._execs[task] = pump

        def over(task: "asyncio.Task[None]") -> None:
            # Also when it was cancelled before its first step: nobody may wait for ever.
            self._execs.pop(task, None)
            pump.finish()
            if not end.done():
                end.set_result(self._exit_without_status())
            if started is not None and not started.done():
                started.set_exception(
                    WrongStateError("ended meanwhile", subject=f"container {self._record.name}")
                )
                started.exception()

        task.add_done_callback(over)

    async def _run_exec(
        self,
        process_id: ProcessId,
        pump: Pump,
        end: "asyncio.Future[Exit]",
        plan: ProcessPlan | None,
        started: "asyncio.Future[None] | None",
    ) -> None:
        """Carry an exec'd process from its start to its end, whether anybody listens or not."""
        if plan is not None and started is not None:
            try:
                await self.live.guest.exec_process(self._container_id, process_id, plan)
            except HyperError as error:
                if not started.done():
                    started.set_exception(error)
                return
            if not started.done():
                started.set_result(None)
        guest: Guest | None = self.live.guest
        while guest is not None:
            try:
                await pump.run(guest)
                exit_ = self.exit_of(await guest.wait_process(self._container_id, process_id))
                if not end.done():
                    end.set_result(exit_)
                await guest.forget_process(self._container_id, process_id)
            except UnavailableError:
                guest = None if end.done() else await self.other_guest(guest)
            except HyperError as error:
                log.warning("exec lost", extra={"sandbox": self._record.name, "error": str(error)})
                return
            else:
                return

    def _exit_without_status(self) -> Exit:
        """Of an exec'd process that went with the VM."""
        return self._exit if self._exit is not None and machine.is_lost(self._exit) else STOPPED_BY_FORCE


def _first(group: BaseExceptionGroup[HyperError]) -> HyperError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("a group holds at least one")
