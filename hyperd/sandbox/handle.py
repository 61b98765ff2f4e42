# SPDX-License-Identifier: Apache-2.0
"""What callers do with a sandbox. Every wait here ends, whatever becomes of the sandbox or of hyperd."""

import asyncio
import secrets
from collections.abc import Sequence

from hyperd.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    HyperError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import (
    DEFAULT_STOP_TIMEOUT_S,
    ContainerRecord,
    ContainerView,
    ExecSpec,
    Exit,
    ExitReason,
)
from hyperd.model.guest import FIRST_PROCESS, GuestStats, ProcessExit, ProcessId
from hyperd.model.network import Endpoint, PortRequest, PublishedPort, UnpublishRequest
from hyperd.model.snapshot import Snapshot
from hyperd.sandbox import identity, machine, plans, ports, preconditions, signals
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.files import ContainerFiles
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.message import (
    AskConnect,
    AskDisconnect,
    AskHibernate,
    AskPause,
    AskRemove,
    AskRollback,
    AskSnapshot,
    AskStart,
    AskStop,
    AskUnpause,
    AskWake,
    Done,
    Started,
)
from hyperd.sandbox.process import ProcessSession
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.revival import Origin
from hyperd.sandbox.session import STALL_TIMEOUT_S
from hyperd.sandbox.tenure import Tenure

_REFUSALS: dict[int, type[HyperError]] = {126: CommandNotExecutableError, 127: CommandNotFoundError}


class SandboxHandle:
    def __init__(self, driver: SandboxDriver) -> None:
        self._driver = driver
        self.files = ContainerFiles(driver)

    @property
    def record(self) -> ContainerRecord:
        return self._driver.record

    @property
    def journal(self) -> Journal:
        return self._driver.journal

    @property
    def is_being_removed(self) -> bool:
        """Or was."""
        return self._driver.removed or isinstance(self._driver.state, machine.Removing)

    def view(self) -> ContainerView:
        return self._driver.view()

    async def log_goes_on(self) -> bool:
        """Asked where a follower of the log has come to its end: whether more will come, for it was rolled back.

        Raises WrongStateError when it was put to sleep, TimeoutExpiredError when the rollback takes too long.
        """
        match self._driver.state:
            case machine.Hibernated():
                raise WrongStateError(
                    "was put to sleep",
                    subject=self._driver.subject,
                    hint=f"`hyper wake {self.record.name}`, then follow its log again",
                )
            case machine.Starting(back_to=snapshot) if snapshot is not None:
                return await self._driver.find_tenure() is not None
            case _:
                return False

    async def start(self) -> None:
        """Return when the first process runs; at once when it already does.

        Raises CommandNotFoundError or CommandNotExecutableError for a program that cannot be executed.
        """
        refused = await self._start()
        if refused is not None:
            raise self._refusal(refused)

    async def revive(self, origin: Origin) -> None:
        """Of a clone: return when it stands still where its snapshot was, with an identity of its own."""
        await self._start(origin)

    async def stop(self, *, timeout_s: float | None = None, signal: int | None = None) -> None:
        """Return when the VM is off; at once when there is none."""
        spec = self.record.spec
        if timeout_s is None:
            timeout_s = DEFAULT_STOP_TIMEOUT_S if spec.stop_timeout_s is None else spec.stop_timeout_s
        if signal is None:
            signal = signals.parse_signal(spec.stop_signal or "TERM")
        done = _future()
        self._driver.ask(AskStop(done, signal, timeout_s))
        await done

    async def remove(self, *, force: bool, volumes: bool = False) -> None:
        """With ``volumes`` its anonymous ones go too. Raises WrongStateError while a VM exists, unless ``force``."""
        done = _future()
        self._driver.ask(AskRemove(done, force, volumes))
        await done

    async def kill(self, signal: int) -> None:
        """Signal the first process. Raises WrongStateError unless there is one."""
        tenure = await self._require_tenure()
        tenure.note_signal(FIRST_PROCESS, signal)
        try:
            delivered = await tenure.live.guest.signal(
                identity.container_id_of(self.record), FIRST_PROCESS, signal
            )
        except (UnavailableError, NotFoundError) as error:
            if not tenure.is_ending:
                raise
            raise self._has_ended() from error
        if not delivered:
            raise self._has_ended()

    async def signal_exec(self, exec_id: str, signal: int) -> None:
        """Of a further process, whoever holds its streams. Raises NotFoundError when there is none, WrongStateError."""
        tenure = await self._require_tenure()
        process_id = ProcessId(exec_id)
        gone = NotFoundError(f"has no process {exec_id[:64]!r}", subject=f"container {self.record.name}")
        if not tenure.execs.has(process_id):
            raise gone
        tenure.note_signal(process_id, signal)
        if not await tenure.live.guest.signal(identity.container_id_of(self.record), process_id, signal):
            raise gone

    async def guest_stats(self) -> tuple[GuestStats, GuestStats] | None:
        """Of its container, and of its guest as a whole; None unless it runs."""
        tenure = self._driver.tenure
        if tenure is None or tenure.is_ending or tenure.paused:
            return None
        guest = tenure.live.guest
        return await guest.stats(identity.container_id_of(self.record)), await guest.stats()

    async def pause(self) -> None:
        """Return when its CPUs stand still. Raises WrongStateError unless running."""
        done = _future()
        self._driver.ask(AskPause(done))
        await done

    async def unpause(self) -> None:
        """Return when it runs and its clock is right again. Raises WrongStateError unless paused."""
        done = _future()
        self._driver.ask(AskUnpause(done))
        await done

    async def snapshot(self, name: str = "", *, passing: bool = False) -> Snapshot:
        """Save memory and disk; it goes on by itself. Raises WrongStateError unless it runs or is paused."""
        done: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._driver.ask(AskSnapshot(done, name, passing))
        return await done

    async def hibernate(self) -> None:
        """Return when it is on disk and its memory is free. Raises WrongStateError unless running or paused."""
        done = _future()
        self._driver.ask(AskHibernate(done))
        await done

    async def wake(self) -> None:
        """Return when it goes on where it was. Raises WrongStateError, ExhaustedError (no memory now)."""
        done: Started = asyncio.get_running_loop().create_future()
        self._driver.ask(AskWake(done))
        await done

    async def roll_back(self, origin: Origin) -> None:
        """Return when it goes on where it was then. Raises WrongStateError, what reviving it raises."""
        done: Started = asyncio.get_running_loop().create_future()
        self._driver.ask(AskRollback(done, origin))
        await done

    async def publish(self, requests: Sequence[PortRequest]) -> tuple[PublishedPort, ...]:
        """Until it stops. Raises WrongStateError unless running or paused, and as ``Network.publish``."""
        preconditions.require_up(self._driver.state, self.record.name)
        ports.require_valid_requests(requests)
        out = self.view().attachment
        if out is None:
            raise WrongStateError("has no network of its own", subject=f"container {self.record.name}")
        network = self._driver.services.runner.rooms.network
        return await network.publish(self.record.sandbox_id, requests, self.record.name, out.network)

    async def unpublish(self, chosen: Sequence[UnpublishRequest]) -> tuple[PublishedPort, ...]:
        """All of them or none; those that it was. Raises NotFoundError."""
        network = self._driver.services.runner.rooms.network
        found = ports.choose(network.published(self.record.sandbox_id), chosen, self.record.name)
        await network.unpublish(self.record.sandbox_id, found)
        return found

    async def connect(self, endpoint: Endpoint) -> list[str]:
        """At once where it runs, else from its next start on; what is to be told.

        Raises WrongStateError, InvalidError, as ``attach``.
        """
        told: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._driver.ask(AskConnect(told, endpoint))
        return await told

    async def disconnect(self, network: str, *, force: bool = False) -> list[str]:
        """What is to be told. Raises NotFoundError when it is not on it."""
        told: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._driver.ask(AskDisconnect(told, network, force))
        return await told

    async def wait_ended(self) -> Exit:
        """The exit of the run that is under way, or of the last one. Raises NotFoundError when removed unrun."""
        state = self._driver.state
        if isinstance(state, machine.Created):
            return Exit(0, ExitReason.EXITED)
        if isinstance(state, machine.Exited | machine.Failed):
            return state.exit
        return await asyncio.shield(self._driver.waiting.end)

    async def attach(self, *, start: bool, stdin: bool = True) -> ProcessSession:
        """Join the first process's streams; with ``start`` from its first byte on.

        Who starts it can hold the process up by not reading, as a pipe does; who joins one that runs is dropped.
        """
        driver = self._driver
        looks_on = not start or isinstance(driver.state, machine.Running)
        if not start:
            preconditions.require_running(driver.state, self.record.name)
        elif not isinstance(driver.state, machine.Running | machine.Starting):
            preconditions.require_startable(driver.state, self.record.name)
            driver.renew_pump()
        session = ProcessSession(
            self.record,
            FIRST_PROCESS,
            driver.pump,
            driver.find_tenure,
            driver.waiting.end,
            tty=self.record.spec.tty,
            stdin=stdin and self.record.spec.stdin,
            patience_s=STALL_TIMEOUT_S if looks_on else None,
        )
        if start:
            try:
                await self._start()  # a program that is not executed is the session's exit
            except BaseException:
                await session.aclose()
                raise
        return session

    async def exec(self, spec: ExecSpec) -> ProcessSession:
        """Start a further process and hold its streams. Raises WrongStateError unless running."""
        preconditions.require_running(self._driver.state, self.record.name)
        image = await self._driver.services.runner.rooms.images.get(self.record.image_id)
        plan = plans.exec_plan(await self._driver.told_record(), image.config, spec)
        tenure = await self._require_tenure()
        process_id = ProcessId(secrets.token_hex(16))
        pump = Pump(identity.container_id_of(self.record), process_id, None)
        end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

        async def same_tenure() -> Tenure | None:
            return None if tenure.is_ending else tenure

        # Before the process starts, so that its first byte finds a reader.
        session = ProcessSession(
            self.record, process_id, pump, same_tenure, end, tty=spec.tty, stdin=spec.stdin
        )
        try:
            await tenure.execs.start(process_id, plan, pump, end)
        except BaseException:
            await session.aclose()
            raise
        return session

    async def _start(self, origin: Origin | None = None) -> ProcessExit | None:
        started: Started = asyncio.get_running_loop().create_future()
        self._driver.ask(AskStart(started, origin))
        return await started

    def _refusal(self, refused: ProcessExit) -> HyperError:
        kind = _REFUSALS.get(refused.code, InvalidError)
        return kind(
            "the process could not be started",
            subject=f"container {self.record.name}",
            evidence=refused.start_error,
        )

    async def _require_tenure(self) -> Tenure:
        self._driver.require_whole()
        await self._driver.wait_moving()
        state = self._driver.state
        if not isinstance(state, machine.Stopping):
            preconditions.require_running(state, self.record.name)
        tenure = await self._driver.find_tenure()
        if tenure is None or tenure.is_ending:
            raise self._has_ended()
        return tenure

    def _has_ended(self) -> HyperError:
        return WrongStateError(
            "is not running: its process has ended",
            subject=f"container {self.record.name}",
            hint=f"`hyper start {self.record.name}` starts it",
        )


def _future() -> Done:
    return asyncio.get_running_loop().create_future()
