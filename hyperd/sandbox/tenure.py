# SPDX-License-Identifier: Apache-2.0
"""The time in which a container runs: from its VM being up to the VM being gone.

The driver decides; this carries. Each coroutine runs as a task of the driver's and posts what it learned.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from signal import SIGKILL

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError
from hyperd.model.container import ContainerRecord, Exit, ExitReason
from hyperd.model.guest import FIRST_PROCESS, ProcessExit, ProcessId
from hyperd.sandbox import machine
from hyperd.sandbox.assembly import container_id_of
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.message import IsDown, IsLost, Message, ProcessEnded
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.run import Live, Runner

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0  # for output still in pipes when the first process has ended
KILL_TIMEOUT_S = 5.0  # from SIGKILL to its effect, before the VM is destroyed
LOST_GRACE_S = 1.0  # for the hypervisor to say why, when the agent's connection broke

STOPPED_BY_FORCE = Exit(128 + SIGKILL, ExitReason.STOPPED, signal=SIGKILL)


class Tenure:
    def __init__(
        self,
        record: ContainerRecord,
        live: Live,
        pump: Pump,
        journal: Journal,
        runner: Runner,
        post: Callable[[Message], None],
    ) -> None:
        self.live = live
        self.stop_asked = False
        self._record = record
        self._container_id = container_id_of(record.sandbox_id)
        self._pump = pump
        self._journal = journal
        self._runner = runner
        self._post = post
        self._process_ended = asyncio.Event()
        self._ending = asyncio.Event()

    def exit_of(self, status: ProcessExit) -> Exit:
        if status.start_error:
            return Exit(status.code, ExitReason.START_FAILED, message=status.start_error)
        reason = ExitReason.EXITED
        if status.oom_killed:
            reason = ExitReason.OOM
        elif self.stop_asked:
            reason = ExitReason.STOPPED
        return Exit(status.code, reason, signal=status.signal)

    async def watch(self) -> None:
        """Carry output and wait for the first process; dial again when only the connection broke."""
        while True:
            try:
                await self._watch_connection()
            except HyperError as error:
                cause = error
            else:
                return
            if self._ending.is_set():
                return
            try:
                await self._runner.reconnect(self._record, self.live)
            except HyperError:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOST_GRACE_S):
                        await self._ending.wait()
                self._post(IsLost(machine.lost(ExitReason.AGENT_LOST, f"the agent is gone: {cause}")))
                return

    async def _watch_connection(self) -> None:
        try:
            async with asyncio.TaskGroup() as both:
                if not self._pump.ended.is_set():
                    both.create_task(self._pump.run(self.live.guest))
                status = await self.live.guest.wait_process(self._container_id, FIRST_PROCESS)
                if not self._process_ended.is_set():
                    self._process_ended.set()
                    self._post(ProcessEnded(status))
        except BaseExceptionGroup as group:
            lost, bugs = group.split(HyperError)
            if bugs is not None or lost is None:
                raise
            raise lost.exceptions[0] from group

    async def watch_exec(self, process_id: ProcessId, pump: Pump, end: "asyncio.Future[Exit]") -> None:
        """Carry an exec'd process to its end, whether anybody listens or not."""
        exit_ = STOPPED_BY_FORCE
        guest = self.live.guest
        try:
            await pump.run_to_end(guest)
            exit_ = self.exit_of(await guest.wait_process(self._container_id, process_id))
            await guest.forget_process(self._container_id, process_id)
        except HyperError as error:
            log.debug("exec lost", extra={"sandbox": self._record.name, "error": str(error)})
        finally:
            pump.finish()
            if not end.done():
                end.set_result(exit_)

    async def stop_gently(self, signal: int, timeout_s: float) -> None:
        """Signal, wait, SIGKILL, wait; then the VM itself, which needs nobody's consent."""
        self.stop_asked = True
        try:
            for number, patience_s, everyone in ((signal, timeout_s, False), (SIGKILL, KILL_TIMEOUT_S, True)):
                await self.live.guest.signal(self._container_id, FIRST_PROCESS, number, everyone=everyone)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        await self._process_ended.wait()
                if self._process_ended.is_set() or self._ending.is_set():
                    return
        except (UnavailableError, TimeoutExpiredError) as error:
            log.warning("cannot signal", extra={"sandbox": self._record.name, "error": str(error)})
        self._post(IsLost(STOPPED_BY_FORCE))

    def begin_end(self) -> None:
        self._ending.set()

    async def go_down(self, exit_: Exit, watching: "asyncio.Task[None] | None", *, keep_disk: bool) -> None:
        """Hand on what the process still wrote, then take the VM down."""
        if self._process_ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._pump.ended.wait()
        if watching is not None:
            watching.cancel()
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
