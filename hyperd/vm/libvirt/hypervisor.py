# SPDX-License-Identifier: Apache-2.0
"""The hypervisor room's adapter for libvirt's QEMU driver.

A VM is in exactly one of these places:

    (nowhere) --start--> _starting --> _running --destroy--> _ending --libvirt has tidied up--> (nowhere)
                             │             └--- it ended by itself: libvirt's event ---------------^
                             └--- it failed, or nobody waits for it any more: nothing stays -------^
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import libvirt

from hyperd.errors import ExistsError, HyperError, RestoreError, TimeoutExpiredError, UnavailableError
from hyperd.host.lock import FileLock
from hyperd.model.stats import VmUsage
from hyperd.model.vm import SandboxId, VmDefinition, VmGone, VmGoneCause, VmStatus
from hyperd.vm.console import Consoles
from hyperd.vm.libvirt.adoption import found_ours, listed_ours, settle_ours
from hyperd.vm.libvirt.bridge import Lane, LibvirtBridge, LifecycleEvent, answered_within
from hyperd.vm.libvirt.capabilities import (
    HypervisorCapabilities,
    kept_answers,
    read_capabilities,
    were_old,
)
from hyperd.vm.libvirt.domain import OurDomain, create, destroy
from hyperd.vm.libvirt.ends import Ends
from hyperd.vm.libvirt.errors import libvirt_errors
from hyperd.vm.libvirt.log import qemu_log_tail, remove_qemu_log
from hyperd.vm.libvirt.probes import end_probes
from hyperd.vm.libvirt.process import QemuProcess
from hyperd.vm.libvirt.saving import Restore
from hyperd.vm.libvirt.settings import LibvirtSettings, write_configuration
from hyperd.vm.libvirt.states import VmStates
from hyperd.vm.libvirt.steering import Steering
from hyperd.vm.libvirt.transitions import Ending, Starting
from hyperd.vm.libvirt.unfinished import end_unfinished, unfinished
from hyperd.vm.libvirt.usage import Usages
from hyperd.vm.libvirt.xml import domain_name, find_sandbox_id, render_domain

_log = logging.getLogger(__name__)

_EVENT_TIMEOUT_S = 2.0
_PREPARE_TIMEOUT_S = 90.0
_POLL_S = 0.01


class LibvirtHypervisor(Steering):
    """An async context manager. Leaving it leaves the VMs running; the next one of the same root adopts them.

    Wants ``hyperd.host.reaper.Reaper`` around it, or QEMU's zombies are PID 1's to reap.
    """

    def __init__(self, settings: LibvirtSettings) -> None:
        self.settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._running: dict[SandboxId, QemuProcess] = {}
        self._consoles = Consoles()
        self._starting: dict[SandboxId, Starting] = {}
        self._ending: dict[SandboxId, Ending] = {}
        self._ends = Ends()
        self._kept: dict[str, int] = {}  # of libvirt's capability cache, before libvirt looked

    async def __aenter__(self) -> Self:
        """Raises WrongStateError when another process has this root, UnavailableError when something is missing."""
        async with contextlib.AsyncExitStack() as stack:
            if self.settings.embedded:
                lock = FileLock(self.settings.root / "hyperd.lock")
                lock.acquire()
                stack.callback(lock.release)
                write_configuration(self.settings)
                await end_unfinished(self.settings)
                await end_probes(self.settings)
                self._kept = kept_answers(self.settings)
            self._bridge = await stack.enter_async_context(
                LibvirtBridge(self.settings.connection_uri, self._on_lifecycle)
            )
            self._states = VmStates(self._bridge, self.settings)
            self._usages = Usages(self._bridge)
            stack.callback(self._usages.close)
            stack.callback(self._close)
            await self._adopt()
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._tasks.create_task(self._warm_up())
            stack.enter_context(self._consoles.kept_short())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def prepare(self) -> HypervisorCapabilities:
        """Fill libvirt's capability cache. For set-up: some 5 s the first time, nothing afterwards."""
        emulator = str(self.settings.platform.emulator)
        async with answered_within(_PREPARE_TIMEOUT_S, "asked QEMU what it can", emulator):
            with libvirt_errors(emulator):
                read = await self._bridge.call(
                    lambda connection: read_capabilities(connection, self.settings)
                )
        return replace(read, asked_anew=were_old(self._kept, kept_answers(self.settings)))

    async def start(self, definition: VmDefinition) -> VmStatus:
        """As ``Hypervisor.start``. A cancelled caller stops waiting; what it began is ended behind it."""
        sandbox_id = definition.sandbox_id
        described = render_domain(definition, self.settings)
        starting = Starting()
        try:
            async with asyncio.timeout(self.settings.start_timeout_s):
                await self._wait_startable(sandbox_id)
                self._starting[sandbox_id] = starting
                self._ends.forget(sandbox_id)
                self._tasks.create_task(self._start(definition, described, starting))
                try:
                    return await starting.outcome
                except asyncio.CancelledError:
                    if (
                        starting.outcome.done() and sandbox_id in self._running
                    ):  # the good news was on its way
                        self._tasks.create_task(self._abandon(sandbox_id))
                    raise
        except TimeoutError as error:
            raise TimeoutExpiredError(
                f"did not start in {self.settings.start_timeout_s:g} s", subject=domain_name(sandbox_id)
            ) from error

    async def destroy(self, sandbox_id: SandboxId) -> None:
        name = domain_name(sandbox_id)
        try:
            async with asyncio.timeout(self.settings.destroy_timeout_s):
                while (ending := self._ending.get(sandbox_id)) is None:
                    process = self._take(sandbox_id) or QemuProcess.find(self.settings.pid_dir, name)
                    if process is not None:
                        process.kill()
                        ending = self._ending[sandbox_id] = Ending(process)
                        self._tasks.create_task(self._finish(sandbox_id, ending))
                        break
                    if sandbox_id not in self._starting:
                        await self._forget(sandbox_id)
                        return
                    await asyncio.sleep(
                        _POLL_S
                    )  # a start under way that has no process yet: no event will tell us
                await ending.process.wait_gone()
        except TimeoutError as error:
            raise TimeoutExpiredError(
                f"still there {self.settings.destroy_timeout_s:g} s after it was killed", subject=name
            ) from error

    async def list_running(self) -> list[VmStatus]:
        found = await listed_ours(self._bridge, self.settings.connection_uri)
        return [status for domain in found if (status := self._status(domain)) is not None]

    async def find_running(self, sandbox_id: SandboxId) -> VmStatus | None:
        domain = await found_ours(self._bridge, sandbox_id)
        return self._status(domain) if domain is not None else None

    def _status(self, domain: OurDomain) -> VmStatus | None:
        """None of one that is coming or going, or ended meanwhile: its event is on the way."""
        if domain.sandbox_id in self._ending or domain.sandbox_id in self._starting:
            return None
        process = self._running.get(domain.sandbox_id) or self._hold(domain.sandbox_id)
        return VmStatus(domain.sandbox_id, process.pid, domain.paused) if process is not None else None

    async def usage(self, sandbox_id: SandboxId) -> VmUsage:
        return await self._usages.read(sandbox_id, self._running.get(sandbox_id))

    def events(self) -> AsyncIterator[VmGone]:
        return self._ends.events()

    async def _wait_startable(self, sandbox_id: SandboxId) -> None:
        """Until what came before is quite gone. Raises ExistsError when it is not going."""
        while True:
            starting, ending = self._starting.get(sandbox_id), self._ending.get(sandbox_id)
            if sandbox_id in self._running or (starting is not None and not starting.outcome.done()):
                raise ExistsError("the VM exists", subject=domain_name(sandbox_id))
            if ending is not None:
                await ending.forgotten.wait()
            elif starting is not None:
                await starting.over.wait()
            else:
                return

    async def _start(self, definition: VmDefinition, described: str, starting: Starting) -> None:
        """Never raises: ``starting`` has the outcome, for the caller who may have gone."""
        sandbox_id = definition.sandbox_id
        try:
            if definition.restore_from is not None:
                starting.outcome.add_done_callback(lambda outcome: self._kill_unwanted(sandbox_id, outcome))
            process = await self._create(definition, described)
        except Exception as error:  # noqa: BLE001 - handed on, bugs too
            if not starting.outcome.done():
                starting.outcome.set_exception(error)
        else:
            self._running[sandbox_id] = process
            self._consoles.add(sandbox_id, definition.console_log)
            if not starting.outcome.done():
                starting.outcome.set_result(VmStatus(sandbox_id, process.pid))
            else:
                await self._abandon(sandbox_id)
        finally:
            del self._starting[sandbox_id]
            starting.over.set()

    async def _abandon(self, sandbox_id: SandboxId) -> None:
        try:
            await self.destroy(sandbox_id)
        except HyperError as error:
            _log.warning("a VM nobody waits for stays", extra={"sandbox": sandbox_id, "error": str(error)})

    async def _create(self, definition: VmDefinition, described: str) -> QemuProcess:
        sandbox_id = definition.sandbox_id
        name = domain_name(sandbox_id)
        log_dir = self.settings.log_dir
        try:
            with libvirt_errors(name, evidence=lambda: qemu_log_tail(log_dir, name)):
                if definition.restore_from is None:
                    # False while libvirt removes the one before: nothing says when that is done
                    await self._bridge.until(lambda connection: create(connection, sandbox_id, described))
                else:
                    await self._restore_domain(definition, definition.restore_from, described)
            process = QemuProcess.find(self.settings.pid_dir, name)
            if process is None:
                evidence = qemu_log_tail(log_dir, name)
                await self._forget(sandbox_id)
                raise UnavailableError("the VM ended as soon as it ran", subject=name, evidence=evidence)
        except ExistsError:
            raise
        except HyperError:
            remove_qemu_log(log_dir, name)
            raise
        return process

    async def _restore_domain(self, definition: VmDefinition, state: Path, described: str) -> None:
        name = domain_name(definition.sandbox_id)
        restore = Restore(
            definition,
            state,
            described,
            self.settings.pid_dir,
            lambda: qemu_log_tail(self.settings.log_dir, name),
        )
        with unfinished(self.settings, name):
            try:
                await self._bridge.until(restore.runs, lane=Lane.RESTORE)
            except RestoreError:
                await self._end_failed(definition.sandbox_id)
                raise

    def _kill_unwanted(self, sandbox_id: SandboxId, outcome: "asyncio.Future[VmStatus]") -> None:
        """A QEMU that hangs reading a state would hold a thread for good: only its end lets that go."""
        if outcome.cancelled():
            process = QemuProcess.find(self.settings.pid_dir, domain_name(sandbox_id))
            if process is not None:
                process.kill()
                process.close()

    async def _end_failed(self, sandbox_id: SandboxId) -> None:
        """Of a VM that never ran: return when its process is gone; libvirt tidies up in the background."""
        ending = self._ending.get(sandbox_id)
        if ending is None:
            process = QemuProcess.find(self.settings.pid_dir, domain_name(sandbox_id))
            if process is None:
                await self._forget(sandbox_id)
                return
            process.kill()
            ending = self._ending[sandbox_id] = Ending(process)
            self._tasks.create_task(self._finish(sandbox_id, ending))
        await ending.process.wait_gone()

    async def _finish(self, sandbox_id: SandboxId, ending: Ending) -> None:
        """Wait in the background until libvirt has tidied up and said so; the name is free again then."""
        try:
            async with asyncio.timeout(self.settings.destroy_timeout_s):
                # While it still dies libvirt would look again after 200 ms, in a thread that others' removals need.
                await ending.process.wait_gone()
                await self._forget(sandbox_id)
        except (HyperError, TimeoutError) as error:
            _log.warning("libvirt cannot forget a VM", extra={"sandbox": sandbox_id, "error": str(error)})
        else:
            # A late event must not be taken for the next VM of this sandbox. One that never was announced has none.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVENT_TIMEOUT_S):
                    await ending.stopped.wait()
        finally:
            del self._ending[sandbox_id]
            ending.process.close()
            ending.forgotten.set()

    async def _forget(self, sandbox_id: SandboxId) -> None:
        """libvirt's own destroy: ends what still runs, returns when nothing of it is known any more."""
        name = domain_name(sandbox_id)
        with libvirt_errors(name):
            await self._bridge.call(lambda connection: destroy(connection, sandbox_id), lane=Lane.URGENT)
        remove_qemu_log(self.settings.log_dir, name)

    async def _adopt(self) -> None:
        """VMs of an earlier process. libvirt reconnects in the background: wait until it has."""
        for domain in await settle_ours(self._bridge, self.settings.connection_uri):
            if domain.console is not None:
                self._consoles.add(domain.sandbox_id, domain.console)
            self._hold(domain.sandbox_id)
        if self.settings.embedded:
            for log in self.settings.log_dir.glob("*.log"):
                if find_sandbox_id(log.stem) not in self._running:
                    log.unlink(missing_ok=True)

    def _hold(self, sandbox_id: SandboxId) -> QemuProcess | None:
        process = QemuProcess.find(self.settings.pid_dir, domain_name(sandbox_id))
        if process is not None:
            self._running[sandbox_id] = process
        return process

    def _take(self, sandbox_id: SandboxId) -> QemuProcess | None:
        self._consoles.remove(sandbox_id)
        return self._running.pop(sandbox_id, None)

    def _on_lifecycle(self, event: LifecycleEvent) -> None:
        sandbox_id = find_sandbox_id(event.name)
        if sandbox_id is None:
            return
        self._ends.note(sandbox_id, event)
        if event.event != libvirt.VIR_DOMAIN_EVENT_STOPPED:
            return
        ending = self._ending.get(sandbox_id)
        cause = self._ends.cause(sandbox_id, event, destroyed=ending is not None)
        if ending is not None:
            ending.stopped.set()
        elif (process := self._take(sandbox_id)) is not None:
            process.close()
        detail = ""
        if cause is VmGoneCause.LOST:
            detail = qemu_log_tail(self.settings.log_dir, event.name)
        if sandbox_id not in self._starting:  # a start that fails has its own use for the log
            remove_qemu_log(self.settings.log_dir, event.name)
        self._ends.tell(VmGone(sandbox_id, cause, detail))

    async def _warm_up(self) -> None:
        """libvirt reads its capability cache at first use, in 0.7 s: before the first VM, not in its start."""
        try:
            capabilities = await self.prepare()
        except HyperError as error:
            _log.warning("QEMU's capabilities cannot be read", extra={"error": str(error)})
        else:
            _log.info(
                "hypervisor ready",
                extra={
                    "libvirt": capabilities.libvirt_version,
                    "qemu": capabilities.qemu_version,
                    "asked_anew": capabilities.asked_anew,
                },
            )

    def _close(self) -> None:
        for process in self._running.values():
            process.close()
