# SPDX-License-Identifier: Apache-2.0
"""Exec'd processes of a container that runs, each carried from its start to its end, whether anybody listens or not."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from signal import SIGKILL

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError, WrongStateError
from hyperd.guest.base import Guest, ProcessRun
from hyperd.host.groups import first_error
from hyperd.model.container import ContainerRecord, Exit, ExitReason
from hyperd.model.guest import ProcessExit, ProcessId, ProcessPlan
from hyperd.sandbox import machine
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.presence import Presence
from hyperd.sandbox.pump import Pump

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0  # for output still in pipes when a process has ended
EXEC_DRAIN_TIMEOUT_S = 2.0  # without output, once an exec'd process has ended: something else holds its pipes

STOPPED_BY_FORCE = Exit(128 + SIGKILL, ExitReason.STOPPED, signal=SIGKILL)

Spawn = Callable[[Coroutine[object, object, None]], "asyncio.Task[None]"]


class Execs:
    def __init__(
        self,
        record: ContainerRecord,
        vm: Presence,
        spawn: Spawn,
        exit_of: Callable[[ProcessExit, Collection[int]], Exit],
    ) -> None:
        """``exit_of``: with the signals that were sent to it."""
        self._record = record
        self._container_id = container_id_of(record)
        self._vm = vm
        self._spawn = spawn
        self._exit_of = exit_of
        self._pumps: dict[asyncio.Task[None], Pump] = {}
        self._sent: dict[ProcessId, set[int]] = {}

    @property
    def tasks(self) -> Collection["asyncio.Task[None]"]:
        return self._pumps.keys()

    @property
    def pumps(self) -> Collection[Pump]:
        return self._pumps.values()

    def adopt(self, processes: dict[ProcessId, int]) -> None:
        """Exec'd processes of an earlier hyperd, each with the end of its output: nobody listens, nobody blocks."""
        for process_id, offset in processes.items():
            pump = Pump(self._container_id, process_id, None, offset)
            end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
            self._watch(process_id, pump, end)

    def has(self, process_id: ProcessId) -> bool:
        return process_id in self._sent

    def note_signal(self, process_id: ProcessId, number: int) -> None:
        """See ``Tenure.note_signal``."""
        if (sent := self._sent.get(process_id)) is not None:
            sent.add(number)

    async def start(
        self, process_id: ProcessId, plan: ProcessPlan, pump: Pump, end: "asyncio.Future[Exit]"
    ) -> None:
        """Start a further process. A caller who hangs up ends its wait, not the start: the process stays watched."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch(process_id, pump, end, plan, started)
        await started

    def _watch(
        self,
        process_id: ProcessId,
        pump: Pump,
        end: "asyncio.Future[Exit]",
        plan: ProcessPlan | None = None,
        started: "asyncio.Future[None] | None" = None,
    ) -> None:
        task = self._spawn(self._run(process_id, pump, end, plan, started))
        self._pumps[task] = pump
        self._sent[process_id] = set()

        def over(task: "asyncio.Task[None]") -> None:
            # Also when it was cancelled before its first step: nobody may wait for ever.
            self._pumps.pop(task, None)
            self._sent.pop(process_id, None)
            pump.finish()
            if not end.done():
                end.set_result(self._exit_without_status())
            if started is not None and not started.done():
                started.set_exception(
                    WrongStateError("ended meanwhile", subject=f"container {self._record.name}")
                )
                started.exception()

        task.add_done_callback(over)

    async def _run(
        self,
        process_id: ProcessId,
        pump: Pump,
        end: "asyncio.Future[Exit]",
        plan: ProcessPlan | None,
        started: "asyncio.Future[None] | None",
    ) -> None:
        """Carry an exec'd process from its start to its end, whether anybody listens or not."""
        guest = self._vm.live.guest
        run = guest.run_process(self._container_id, process_id)
        try:
            if plan is not None and started is not None:
                if not await self._start(run, process_id, plan, started):
                    return
                if (
                    guest is not self._vm.live.guest
                ):  # the start was not answered, and that connection is another
                    guest = self._vm.live.guest
                    run = guest.run_process(self._container_id, process_id)
            while True:
                try:
                    status = await self._carry(guest, run, pump)
                    exit_ = self._exit_of(status, self._sent.get(process_id, ()))
                    if not end.done():
                        end.set_result(exit_)
                    await run.end()
                except UnavailableError:
                    run.close()
                    other = None if end.done() else await self._vm.other_guest(guest)
                    if other is None:
                        return
                    guest, run = other, other.run_process(self._container_id, process_id)
                else:
                    return
        except HyperError as error:
            log.warning("exec lost", extra={"sandbox": self._record.name, "error": str(error)})
        finally:
            run.close()

    async def _start(
        self, run: ProcessRun, process_id: ProcessId, plan: ProcessPlan, started: "asyncio.Future[None]"
    ) -> bool:
        """Tell ``started``. Whether there is a process to carry now."""
        try:
            await run.start(plan)
        except HyperError as error:
            if not started.done():
                started.set_exception(error)
                started.exception()  # heard, if nobody waits any more
            return isinstance(error, TimeoutExpiredError | UnavailableError) and await self._kill_late(
                process_id
            )
        if not started.done():
            started.set_result(None)
        return True

    async def _kill_late(self, process_id: ProcessId) -> bool:
        """Of a process whose start was not answered in time: a guest that stood still may yet start it. Whether it is
        there, killed; then it is carried to its end, or its output would block it.
        """
        while not self._vm.is_ending:
            await self._vm.while_paused()
            guest = self._vm.live.guest
            try:
                await guest.signal(self._container_id, process_id, SIGKILL)
            except TimeoutExpiredError:  # it stands still yet
                continue
            except UnavailableError:
                await self._vm.other_guest(guest)
            except HyperError:  # it never came
                return False
            else:
                return True
        return False

    async def _carry(self, guest: Guest, run: ProcessRun, pump: Pump) -> ProcessExit:
        """Its output until the end; not until the end of a child that it left behind with its pipes in hand."""
        async with first_error(), asyncio.TaskGroup() as both:
            reading = both.create_task(run.carry())
            carrying = both.create_task(pump.run(guest, run.output))
            status = await run.wait()
            pump.drain()
            await pump.wait_quiet(carrying, idle_s=EXEC_DRAIN_TIMEOUT_S, total_s=DRAIN_TIMEOUT_S)
            carrying.cancel()
            reading.cancel()
        pump.finish()
        return status

    def _exit_without_status(self) -> Exit:
        """Of an exec'd process that went with the VM."""
        return (
            self._vm.exit
            if self._vm.exit is not None and machine.is_lost(self._vm.exit)
            else STOPPED_BY_FORCE
        )
