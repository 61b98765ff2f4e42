# SPDX-License-Identifier: Apache-2.0
"""A hypervisor in memory that can be told to fail, to stall and to lose a VM."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from hyperd.errors import ExistsError, HyperError, NotFoundError, UnavailableError
from hyperd.model.vm import SandboxId, VmDefinition, VmGone, VmGoneCause, VmStatus


class FakeHypervisor:
    def __init__(self) -> None:
        self.running: dict[SandboxId, VmStatus] = {}
        self.definitions: list[VmDefinition] = []  # of every start that was tried
        self.destroyed: list[SandboxId] = []  # of every destroy that was asked for
        self.fail_next_start: HyperError | None = None
        self.fail_next_destroy: HyperError | None = None
        self.calls: list[str] = []  # of pause, resume and save
        self.saved: list[Path] = []
        self._failures: dict[str, HyperError] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self.gate = asyncio.Event()  # closed with clear(): starts wait before they do anything
        self.gate.set()
        self._pid = 4241
        self._events: asyncio.Queue[VmGone] = asyncio.Queue()

    async def start(self, definition: VmDefinition) -> VmStatus:
        self.definitions.append(definition)
        await self.gate.wait()
        if definition.sandbox_id in self.running:
            raise ExistsError("the VM exists", subject=definition.sandbox_id)
        if (error := self.fail_next_start) is not None:
            self.fail_next_start = None
            raise error
        self._pid += 1
        status = VmStatus(definition.sandbox_id, self._pid)
        self.running[definition.sandbox_id] = status
        return status

    def fail_next(self, verb: str, error: HyperError) -> None:
        """The next pause, resume or save raises ``error``; a save has paused the VM by then."""
        self._failures[verb] = error

    def hold(self, verb: str) -> asyncio.Event:
        """Calls of ``verb`` wait until the returned gate is set; `calls` shows that one has come."""
        return self._gates.setdefault(verb, asyncio.Event())

    async def pause(self, sandbox_id: SandboxId) -> None:
        await self._enter("pause")
        self._set_paused(sandbox_id, paused=True)

    async def resume(self, sandbox_id: SandboxId) -> None:
        await self._enter("resume")
        self._set_paused(sandbox_id, paused=False)

    async def save(self, sandbox_id: SandboxId, state: Path) -> None:
        self._set_paused(sandbox_id, paused=True)
        await self._enter("save")
        self._status(sandbox_id)
        self.saved.append(state)

    async def destroy(self, sandbox_id: SandboxId) -> None:
        self.destroyed.append(sandbox_id)
        if (error := self.fail_next_destroy) is not None:
            self.fail_next_destroy = None
            raise error
        self._end(sandbox_id, VmGoneCause.DESTROYED)

    async def list_running(self) -> list[VmStatus]:
        return list(self.running.values())

    async def events(self) -> AsyncIterator[VmGone]:
        while True:
            yield await self._events.get()

    def crash(self, sandbox_id: SandboxId) -> None:
        """The guest panics."""
        self._end(sandbox_id, VmGoneCause.CRASHED)

    def shut_down(self, sandbox_id: SandboxId) -> None:
        """The guest powers itself off."""
        self._end(sandbox_id, VmGoneCause.SHUTDOWN)

    def lose(self, sandbox_id: SandboxId) -> None:
        """The hypervisor's process is killed by somebody else."""
        self._end(sandbox_id, VmGoneCause.LOST, "terminating on signal 9")

    async def _enter(self, verb: str) -> None:
        self.calls.append(verb)
        if (gate := self._gates.get(verb)) is not None:
            await gate.wait()
        if (error := self._failures.pop(verb, None)) is not None:
            raise error

    def _set_paused(self, sandbox_id: SandboxId, *, paused: bool) -> None:
        self.running[sandbox_id] = replace(self._status(sandbox_id), paused=paused)

    def _status(self, sandbox_id: SandboxId) -> VmStatus:
        status = self.running.get(sandbox_id)
        if status is None:
            raise NotFoundError("no such VM", subject=sandbox_id)
        return status

    def _end(self, sandbox_id: SandboxId, cause: VmGoneCause, detail: str = "") -> None:
        if self.running.pop(sandbox_id, None) is not None:
            self._events.put_nowait(VmGone(sandbox_id, cause, detail))


def kvm_refused() -> UnavailableError:
    """What a start raises when QEMU may not use KVM."""
    line = "qemu-system-x86_64: Could not access KVM kernel module: Permission denied"
    return UnavailableError("QEMU ended", subject="hyper-box", evidence=line)


def qemu_died() -> UnavailableError:
    """What a start raises when QEMU ends at once, for ``fail_next_start``."""
    return UnavailableError("QEMU ended", subject="hyper-box", evidence="qemu-system-x86_64: bad luck")
