# SPDX-License-Identifier: Apache-2.0
"""One task per sandbox, the only writer of its state.

RPC handlers put a message into the inbox and await a future: a client that hangs up cancels its wait, never the work.
Handlers of messages never wait long; what takes time runs as a task of the driver's and posts a message when it ends,
so that a stop is heard while a start is under way.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from signal import SIGKILL

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError, WrongStateError
from hyperd.guest.base import Guest
from hyperd.model.container import (
    DEFAULT_STOP_TIMEOUT_S,
    ContainerRecord,
    ContainerView,
    ExecSpec,
    Exit,
    ExitReason,
)
from hyperd.model.guest import FIRST_PROCESS, ProcessId
from hyperd.model.vm import Accelerator, VmGone, VmGoneCause, VmStatus
from hyperd.sandbox import assembly, machine
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.ledger import Ledger
from hyperd.sandbox.message import (
    Adopt,
    AskRemove,
    AskStart,
    AskStop,
    Done,
    IsDown,
    IsLost,
    IsRemoved,
    IsUp,
    Message,
    ProcessEnded,
    UpFailed,
)
from hyperd.sandbox.process import ProcessSession
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.records import Records
from hyperd.sandbox.run import Live, Runner, now_ms
from hyperd.sandbox.tenure import KILL_TIMEOUT_S, STOPPED_BY_FORCE, Tenure

log = logging.getLogger(__name__)

LIVE_TIMEOUT_S = 30.0  # for a running container whose VM is being taken over


@dataclass(frozen=True, slots=True)
class Services:
    """What every driver uses."""

    runner: Runner
    records: Records
    ledger: Ledger
    accelerator: Callable[[], Awaitable[Accelerator]]


class SandboxDriver:
    def __init__(
        self,
        record: ContainerRecord,
        services: Services,
        journal: Journal,
        state: machine.State,
        generation: int,
    ) -> None:
        self.record = record
        self.state = state
        self.generation = generation
        self.removed = False
        self._services = services
        self._journal = journal
        self._container_id = assembly.container_id_of(record.sandbox_id)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._tasks = asyncio.TaskGroup()
        self._starts: list[Done] = []
        self._stops: list[Done] = []
        self._removes: list[Done] = []
        self._run_end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._last_exit = machine.exit_of(state)
        self._tenure: Tenure | None = None
        self._has_tenure = asyncio.Event()
        self._pump = self._new_pump()
        self._coming_up: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._start_called_ms = 0.0
        self._ending = False
        self._discarding = record.spec.auto_remove

    def view(self) -> ContainerView:
        facts = self.state.facts if isinstance(self.state, machine.Running | machine.Stopping) else None
        ended = self.state if isinstance(self.state, machine.Exited | machine.Failed) else None
        started_at = facts.started_at if facts else ended.started_at if ended else None
        return ContainerView(
            record=self.record,
            state=machine.name_of(self.state),
            generation=self.generation,
            exit=machine.exit_of(self.state),
            started_at=started_at,
            finished_at=ended.finished_at if ended else None,
            vm_pid=facts.vm_pid if facts else 0,
            guest_pid=facts.guest_pid if facts else 0,
            accelerator=facts.accelerator if facts else "",
            guest_kernel=facts.guest_kernel if facts else "",
            start_ms=facts.start_ms if facts else 0,
            attachment=facts.attachment if facts else None,
            log_path=str(self._journal.directory),
        )

    @property
    def journal(self) -> Journal:
        return self._journal

    async def start(self) -> None:
        """Return when the first process runs; at once when it already does."""
        done = self._future()
        self._post(AskStart(done))
        await done

    async def stop(self, *, timeout_s: float | None = None, signal: int | None = None) -> None:
        """Return when the VM is off; at once when there is none."""
        spec = self.record.spec
        if timeout_s is None:
            timeout_s = DEFAULT_STOP_TIMEOUT_S if spec.stop_timeout_s is None else spec.stop_timeout_s
        if signal is None:
            signal = assembly.parse_signal(spec.stop_signal or "TERM")
        done = self._future()
        self._post(AskStop(done, signal, timeout_s))
        await done

    async def kill(self, signal: int) -> None:
        """Signal the first process. Raises WrongStateError unless there is one."""
        if not isinstance(self.state, machine.Stopping):
            machine.require_running(self.state, self.record.name)
        tenure = await self._require_tenure()
        tenure.stop_asked |= signal == SIGKILL
        await tenure.live.guest.signal(self._container_id, FIRST_PROCESS, signal)

    async def remove(self, *, force: bool) -> None:
        """Raises WrongStateError while a VM exists, unless ``force``."""
        done = self._future()
        self._post(AskRemove(done, force))
        await done

    async def wait_ended(self) -> Exit:
        """The exit of the run that is under way, or of the last one."""
        if isinstance(self.state, machine.Created):
            return Exit(0, ExitReason.EXITED)
        if isinstance(self.state, machine.Exited | machine.Failed):
            return self.state.exit
        return await asyncio.shield(self._run_end)

    async def attach(self, *, start: bool) -> ProcessSession:
        """Join the first process's streams; with ``start`` from its first byte on."""
        exists = isinstance(self.state, machine.Running | machine.Starting)
        if not start:
            machine.require_running(self.state, self.record.name)
        elif not exists:
            machine.require_startable(self.state, self.record.name)
            self._renew_pump()
        session = ProcessSession(
            self.record, FIRST_PROCESS, self._pump, self._guest, self._run_end, tty=self.record.spec.tty
        )
        if start and not exists:
            try:
                await self.start()
            except BaseException:
                await session.aclose()
                raise
        return session

    async def exec(self, spec: ExecSpec) -> ProcessSession:
        """Start a further process and hold its streams. Raises WrongStateError unless running."""
        machine.require_running(self.state, self.record.name)
        image = await self._services.runner.rooms.images.get(self.record.image_id)
        plan = assembly.exec_plan(self.record, image.config, spec)
        tenure = await self._require_tenure()
        process_id = ProcessId(secrets.token_hex(16))
        await tenure.live.guest.exec_process(self._container_id, process_id, plan)
        pump = Pump(self._container_id, process_id, None)
        end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        session = ProcessSession(self.record, process_id, pump, self._guest, end, tty=spec.tty)
        self._tasks.create_task(tenure.watch_exec(process_id, pump, end))
        return session

    def vm_gone(self, gone: VmGone) -> None:
        self._post(gone)

    def should_have_vm(self) -> bool:
        return isinstance(self.state, machine.Running) and not self._ending

    def should_have_no_vm(self) -> bool:
        return isinstance(self.state, machine.Created | machine.Exited | machine.Failed)

    def vm_is_missing(self) -> None:
        self._post(VmGone(self.record.sandbox_id, VmGoneCause.LOST, "found by looking: no event came"))

    def adopt(self, vm: VmStatus | None) -> None:
        """First message after a restart of hyperd: what is left of this sandbox's VM."""
        self._post(Adopt(vm))

    async def run(self) -> None:
        """Until the sandbox is removed; when cancelled, its VM is left running."""
        try:
            async with self._tasks:
                while not self.removed:
                    await self._handle(await self._inbox.get())
        finally:
            if self._tenure is not None and not self._ending:
                await self._tenure.leave()

    async def _handle(self, message: Message) -> None:
        match message:
            case AskStart(done):
                await self._on_start(done)
            case AskStop():
                await self._on_stop(message)
            case AskRemove(done, force):
                await self._on_remove(done, force=force)
            case Adopt(vm):
                await self._on_adopt(vm)
            case IsUp(live):
                await self._on_up(live)
            case UpFailed(error):
                await self._on_up_failed(error)
            case ProcessEnded(status):
                if self._tenure is not None:
                    await self._end(self._tenure.exit_of(status))
            case VmGone():
                await self._on_vm_gone(message)
            case IsLost(exit_):
                await self._end(exit_)
            case IsDown(exit_):
                await self._on_down(exit_)
            case IsRemoved(error):
                self._on_removed(error)

    async def _on_start(self, done: Done) -> None:
        if isinstance(self.state, machine.Running):
            _resolve([done])
            return
        if isinstance(self.state, machine.Starting):
            self._starts.append(done)
            return
        try:
            machine.require_startable(self.state, self.record.name)
            self._services.ledger.admit(self.record.sandbox_id, self.record.sizing)
        except HyperError as error:
            _fail([done], error)
            return
        self._starts.append(done)
        self._start_called_ms = now_ms()
        self._ending = False
        self._renew_pump()
        await self._advance(machine.Start(_now()))
        self._come_up(self._bring_up())

    async def _on_stop(self, message: AskStop) -> None:
        if not isinstance(self.state, machine.Starting | machine.Running | machine.Stopping):
            _resolve([message.done])
            return
        self._stops.append(message.done)
        if isinstance(self.state, machine.Starting) and self._coming_up is not None:
            self._coming_up.cancel()
        elif isinstance(self.state, machine.Running):
            await self._advance(machine.Stop())
            if self._tenure is not None:
                self._tasks.create_task(self._tenure.stop_gently(message.signal, message.timeout_s))

    async def _on_remove(self, done: Done, *, force: bool) -> None:
        if isinstance(self.state, machine.Removing):
            self._removes.append(done)
            return
        try:
            machine.require_removable(self.state, self.record.name)
        except WrongStateError as error:
            if not force:
                _fail([done], error)
                return
            self._removes.append(done)
            self._discarding = True
            if self._coming_up is not None:
                self._coming_up.cancel()
            else:
                await self._end(STOPPED_BY_FORCE)
            return
        self._removes.append(done)
        await self._begin_removal()

    async def _on_adopt(self, vm: VmStatus | None) -> None:
        match self.state:
            case machine.Running(facts) | machine.Stopping(facts) if vm is not None:
                self._services.ledger.hold(self.record.sandbox_id, self.record.sizing)
                self._come_up(self._take_over(vm, facts))
            case machine.Running() | machine.Stopping():
                await self._end(machine.lost(ExitReason.VM_LOST, "the VM ended while hyperd was not running"))
            case machine.Starting():
                self._tasks.create_task(self._clean_up(UpFailed(_interrupted(self.record.name))))
            case machine.Removing():
                self._tasks.create_task(self._discard())

    async def _on_up(self, live: Live) -> None:
        self._coming_up = None
        if isinstance(self.state, machine.Starting):
            facts = machine.RunFacts(
                started_at=_now(),
                vm_pid=live.vm_pid,
                guest_pid=live.guest_pid,
                accelerator=live.accelerator,
                guest_kernel=live.guest.hello.kernel_release,
                start_ms=round(now_ms() - self._start_called_ms),
                attachment=live.attachment,
            )
            await self._advance(machine.Started(facts))
            log.info("running", extra={"sandbox": self.record.name, "start_ms": facts.start_ms})
        tenure = Tenure(self.record, live, self._pump, self._journal, self._services.runner, self._post)
        self._tenure = tenure
        self._has_tenure.set()
        self._watching = self._tasks.create_task(tenure.watch())
        _resolve(self._starts)
        if self._discarding and self._removes:
            await self._end(STOPPED_BY_FORCE)
        elif isinstance(self.state, machine.Stopping):  # taken over in the middle of a stop
            self._tasks.create_task(tenure.stop_gently(SIGKILL, KILL_TIMEOUT_S))

    async def _on_up_failed(self, error: HyperError) -> None:
        self._coming_up = None
        self._services.ledger.release(self.record.sandbox_id)
        self._pump.finish()
        self._journal.close()
        exit_ = Exit(machine.LOST_EXIT_CODE, ExitReason.START_FAILED, message=str(error))
        await self._advance(machine.StartFailed(exit_, _now()))
        log.info("start failed", extra={"sandbox": self.record.name, "error": str(error)})
        _fail(self._starts, error)
        await self._after_end(exit_)

    async def _on_vm_gone(self, gone: VmGone) -> None:
        if isinstance(self.state, machine.Starting):
            return  # the bring-up sees its connection break and has the better evidence
        match gone.cause:
            case VmGoneCause.CRASHED:
                tail = await self._services.runner.console_tail(self.record.sandbox_id)
                await self._end(
                    machine.lost(ExitReason.GUEST_PANIC, f"the guest kernel panicked\n{tail}".strip())
                )
            case VmGoneCause.SHUTDOWN:
                await self._end(machine.lost(ExitReason.AGENT_LOST, "the guest powered itself off"))
            case _:
                message = f"its QEMU process ended without being asked to\n{gone.detail}".strip()
                await self._end(machine.lost(ExitReason.VM_LOST, message))

    async def _on_down(self, exit_: Exit) -> None:
        self._tenure = None
        self._has_tenure.clear()
        self._services.ledger.release(self.record.sandbox_id)
        event = machine.Lost(exit_, _now()) if machine.is_lost(exit_) else machine.Gone(exit_, _now())
        await self._advance(event)
        log.info(
            "ended", extra={"sandbox": self.record.name, "code": exit_.code, "reason": exit_.reason.value}
        )
        await self._after_end(exit_)

    def _on_removed(self, error: HyperError | None) -> None:
        if error is not None:
            log.error("not removed", extra={"sandbox": self.record.name, "error": str(error)})
            _fail(self._removes, error)
        else:
            self.removed = True
            _resolve(self._removes)
        if self._last_exit is not None:
            self._resolve_end(self._last_exit)

    async def _advance(self, event: machine.Event) -> None:
        after = machine.step(self.state, event)
        if after == self.state:
            return
        self.state = after
        self.generation += 1
        try:
            await self._services.records.save_state(self.record.sandbox_id, after, self.generation)
        except HyperError as error:
            # Memory stays true; after a restart the record is held against what exists.
            log.error("state not saved", extra={"sandbox": self.record.name, "error": str(error)})  # noqa: TRY400

    async def _end(self, exit_: Exit) -> None:
        """The run is over, for whatever reason: take the VM down. Only the first call counts."""
        if self._ending or not isinstance(self.state, machine.Running | machine.Stopping):
            return
        self._ending = True
        await self._advance(machine.Stop())
        if self._tenure is not None:
            self._tenure.begin_end()
            down = self._tenure.go_down(exit_, self._watching, keep_disk=not self._discarding)
            self._tasks.create_task(down)
        else:
            self._tasks.create_task(self._clean_up(IsDown(exit_)))

    async def _after_end(self, exit_: Exit) -> None:
        self._last_exit = exit_
        _resolve(self._stops)
        if self._discarding:
            await self._begin_removal()  # whoever waits for the end is told when the name is free again
        else:
            self._resolve_end(exit_)

    async def _begin_removal(self) -> None:
        await self._advance(machine.Remove())
        self._tasks.create_task(self._discard())

    def _resolve_end(self, exit_: Exit) -> None:
        end, self._run_end = self._run_end, asyncio.get_running_loop().create_future()
        end.set_result(exit_)

    def _come_up(self, work: "asyncio._CoroutineLike[None]") -> None:
        self._coming_up = self._tasks.create_task(work)
        self._coming_up.add_done_callback(self._came_up)

    def _came_up(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            self._post(UpFailed(WrongStateError("was stopped while it started", subject=self.record.name)))

    async def _bring_up(self) -> None:
        runner = self._services.runner
        try:
            accelerator = await self._services.accelerator()
            image = await runner.rooms.images.get(self.record.image_id)
            live = await runner.bring_up(self.record, image, accelerator)
            try:
                self._journal.open(fresh=True)
                await live.guest.start_container(self._container_id)
            except BaseException:
                await live.stack.aclose()
                raise
        except HyperError as error:
            self._post(UpFailed(error))
        else:
            self._post(IsUp(live))

    async def _take_over(self, vm: VmStatus, facts: machine.RunFacts) -> None:
        try:
            accelerator = Accelerator(facts.accelerator)
            live = await self._services.runner.adopt(self.record, vm.pid, accelerator, facts.attachment)
            self._journal.open(fresh=False)
        except HyperError as error:
            log.error("not adopted", extra={"sandbox": self.record.name, "error": str(error)})  # noqa: TRY400
            message = f"its agent did not answer a new hyperd: {error}"
            self._post(IsLost(machine.lost(ExitReason.AGENT_LOST, message)))
        else:
            log.info("adopted", extra={"sandbox": self.record.name})
            self._post(IsUp(live))

    async def _clean_up(self, news: Message) -> None:
        """Remove what a run left behind that this hyperd has no hold of."""
        rooms = self._services.runner.rooms
        try:
            await rooms.hypervisor.destroy(self.record.sandbox_id)
            await rooms.network.detach(self.record.sandbox_id)
        except HyperError as error:
            log.error("not cleaned up", extra={"sandbox": self.record.name, "error": str(error)})  # noqa: TRY400
        self._post(news)

    async def _discard(self) -> None:
        try:
            await self._services.runner.discard(self.record.sandbox_id)
            await self._services.records.delete(self.record.sandbox_id)
        except HyperError as error:
            self._post(IsRemoved(error))
        else:
            self._post(IsRemoved())

    async def _require_tenure(self) -> Tenure:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIVE_TIMEOUT_S):
                await self._has_tenure.wait()
        if self._tenure is None:
            raise TimeoutExpiredError(
                "its agent has not answered yet", subject=f"container {self.record.name}"
            )
        return self._tenure

    def _guest(self) -> Guest | None:
        return self._tenure.live.guest if self._tenure else None

    def _renew_pump(self) -> None:
        if self._pump.ended.is_set():
            self._pump = self._new_pump()

    def _new_pump(self) -> Pump:
        return Pump(self._container_id, FIRST_PROCESS, self._journal)

    def _post(self, message: Message) -> None:
        self._inbox.put_nowait(message)

    def _future(self) -> Done:
        if self.removed:
            raise WrongStateError("was removed", subject=f"container {self.record.name}")
        return asyncio.get_running_loop().create_future()


def _interrupted(name: str) -> UnavailableError:
    return UnavailableError("hyperd ended while it was starting", subject=f"container {name}")


def _now() -> datetime:
    return datetime.now(UTC)


def _resolve(waiting: list[Done]) -> None:
    for done in waiting:
        if not done.done():
            done.set_result(None)
    waiting.clear()


def _fail(waiting: list[Done], error: HyperError) -> None:
    for done in waiting:
        if not done.done():
            done.set_exception(error)
    waiting.clear()
