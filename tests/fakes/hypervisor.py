# SPDX-License-Identifier: Apache-2.0
"""A hypervisor in memory that can be told to fail, to stall and to lose a VM."""

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

from hyperd.errors import ExistsError, HyperError, InvalidError, NotFoundError, RestoreError, UnavailableError
from hyperd.model.stats import VmUsage
from hyperd.model.vm import (
    HOT_PLUG_DEVICES,
    Disk,
    Nic,
    SandboxId,
    SharePort,
    VmDefinition,
    VmGone,
    VmGoneCause,
    VmStatus,
)


class FakeHypervisor:
    def __init__(self) -> None:
        self.running: dict[SandboxId, VmStatus] = {}
        self.definitions: list[VmDefinition] = []  # of every start that was tried
        self.saved: list[tuple[SandboxId, Path]] = []  # of every save that was asked for
        self.destroyed: list[SandboxId] = []  # of every destroy that was asked for
        self.fail_next_start: HyperError | None = None
        self.fail_next_restore: HyperError | None = None  # of a start with restore_from
        self.fail_next_pause: HyperError | None = None
        self.fail_next_resume: HyperError | None = None
        self.fail_next_save: HyperError | None = None
        self.fail_next_destroy: HyperError | None = None
        self.fail_next_attach: HyperError | None = None
        self.fail_next_resize_disk: HyperError | None = None
        self.disk_sizes: dict[Path, int] = {}  # of those that were made larger under a VM
        self.fail_next_replace: HyperError | None = None
        self.undying: set[SandboxId] = set()  # a destroy of these fails
        self.fail_next_detach: HyperError | None = None
        self.clinging: set[SandboxId] = set()  # guests that let go of no NIC and no disk
        self.plugged: dict[SandboxId, list[Disk | Nic | SharePort]] = {}
        self.gate = asyncio.Event()  # closed with clear(): starts wait before they do anything
        self.gate.set()
        self.save_gate = asyncio.Event()  # closed with clear(): saves wait, the VM paused
        self.save_gate.set()
        self.listed = 0  # how often all were
        self.calls: list[str] = []  # of pause, resume and save
        self._gates: dict[str, asyncio.Event] = {}
        self._ended: dict[SandboxId, asyncio.Event] = {}
        self._defined: dict[SandboxId, VmDefinition] = {}
        self._used_ns = 0
        self._pid = 1 << 22  # the kernel gives none above: it is no process of this host
        self._events: asyncio.Queue[VmGone] = asyncio.Queue()

    async def start(self, definition: VmDefinition) -> VmStatus:
        self.definitions.append(definition)
        await self.gate.wait()
        if definition.sandbox_id in self.running:
            raise ExistsError("the VM exists", subject=definition.sandbox_id)
        self._raise_once("fail_next_start")
        if definition.shares and not definition.shared_memory:
            raise InvalidError("shares need memory that is shared", subject=definition.sandbox_id)
        if definition.restore_from is not None:
            self._raise_once("fail_next_restore")
            _require_restorable(definition, definition.restore_from)
        self._pid += 1
        status = VmStatus(definition.sandbox_id, self._pid)
        self.running[definition.sandbox_id] = status
        self._defined[definition.sandbox_id] = definition
        return status

    def hold(self, verb: str) -> asyncio.Event:
        """Calls of ``verb`` (pause, resume, destroy) wait until the returned gate is set; `calls` shows it came."""
        return self._gates.setdefault(verb, asyncio.Event())

    async def usage(self, sandbox_id: SandboxId) -> VmUsage:
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        self._used_ns += 1_000_000
        return VmUsage(time.monotonic_ns(), self._used_ns, 64 << 20, 1 << 20, 1 << 16)

    async def pause(self, sandbox_id: SandboxId) -> None:
        await self._enter("pause", sandbox_id)
        self._set_paused(sandbox_id, paused=True, failure="fail_next_pause")

    async def resume(self, sandbox_id: SandboxId) -> None:
        await self._enter("resume", sandbox_id)
        self._set_paused(sandbox_id, paused=False, failure="fail_next_resume")

    async def save(self, sandbox_id: SandboxId, state: Path) -> None:
        """``state`` gets a line of JSON: enough to refuse a VM of another shape, or a truncated file."""
        self.calls.append("save")
        self.saved.append((sandbox_id, state))
        self._set_paused(sandbox_id, paused=True)
        await self.save_gate.wait()
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        self._raise_once("fail_next_save")
        state.write_text(json.dumps(_shape(self._defined[sandbox_id])))

    async def attach_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        self._plug_in(sandbox_id, disk)

    async def detach_disk(self, sandbox_id: SandboxId, serial: str) -> bool:
        self._require_running(sandbox_id)
        self._raise_once("fail_next_detach")
        if sandbox_id not in self.clinging:
            plugged = self.plugged.get(sandbox_id, [])
            self.plugged[sandbox_id] = [
                at for at in plugged if not isinstance(at, Disk) or at.serial != serial
            ]
        disks = [*self._defined[sandbox_id].disks, *self.plugged.get(sandbox_id, [])]
        return serial not in [disk.serial for disk in disks if isinstance(disk, Disk)]

    async def list_plugged(self, sandbox_id: SandboxId) -> list[str]:
        self._require_running(sandbox_id)
        return [_told_from(device) for device in self.plugged.get(sandbox_id, [])]

    def _require_running(self, sandbox_id: SandboxId) -> None:
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)

    async def attach_share(self, sandbox_id: SandboxId, share: SharePort) -> None:
        self._plug_in(sandbox_id, share)
        if not self._defined[sandbox_id].shared_memory:
            raise InvalidError("shares need memory that is shared", subject=sandbox_id)

    def _plug_in(self, sandbox_id: SandboxId, device: Disk | SharePort) -> None:
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        self._raise_once("fail_next_attach")
        self._plug(sandbox_id, device)

    async def attach_nic(self, sandbox_id: SandboxId, nic: Nic) -> None:
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        self._raise_once("fail_next_attach")
        if nic.tap not in self.taps_of(sandbox_id):
            self._plug(sandbox_id, nic)

    async def detach_nic(self, sandbox_id: SandboxId, tap: str) -> bool:
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        self._raise_once("fail_next_detach")
        if sandbox_id not in self.clinging:
            plugged = self.plugged.get(sandbox_id, [])
            self.plugged[sandbox_id] = [at for at in plugged if not isinstance(at, Nic) or at.tap != tap]
        return tap not in self.taps_of(sandbox_id)

    def taps_of(self, sandbox_id: SandboxId) -> list[str]:
        """Of all its NICs, those that it was started with first."""
        plugged = [device for device in self.plugged.get(sandbox_id, []) if isinstance(device, Nic)]
        return [nic.tap for nic in (*self._defined[sandbox_id].nics, *plugged)]

    def _plug(self, sandbox_id: SandboxId, device: Disk | Nic | SharePort) -> None:
        plugged = self.plugged.setdefault(sandbox_id, [])
        if len(plugged) >= HOT_PLUG_DEVICES:
            raise UnavailableError("no room for another device", subject=sandbox_id)
        plugged.append(device)

    async def resize_disk(self, sandbox_id: SandboxId, path: Path, size_bytes: int) -> None:
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        self._raise_once("fail_next_resize_disk")
        disks = [*self._defined[sandbox_id].disks, *self.plugged.get(sandbox_id, [])]
        if path not in [disk.path for disk in disks if isinstance(disk, Disk)]:
            raise NotFoundError("has no such disk", subject=sandbox_id)
        self.disk_sizes[path] = size_bytes

    async def replace_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        self.calls.append("replace_disk")
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        defined = self._defined[sandbox_id]
        if disk.serial not in [one.serial for one in defined.disks]:
            raise NotFoundError(f"has no disk {disk.serial}", subject=sandbox_id)
        self._raise_once("fail_next_replace")
        disks = tuple(disk if one.serial == disk.serial else one for one in defined.disks)
        self._defined[sandbox_id] = dataclasses.replace(defined, disks=disks)

    def disks(self, sandbox_id: SandboxId) -> list[Path]:
        """The files behind them now."""
        return [disk.path for disk in self._defined[sandbox_id].disks]

    async def destroy(self, sandbox_id: SandboxId) -> None:
        self.destroyed.append(sandbox_id)
        if (gate := self._gates.get("destroy")) is not None:
            await gate.wait()
        self._raise_once("fail_next_destroy")
        if sandbox_id in self.undying:
            raise UnavailableError("QEMU does not end", subject=sandbox_id)
        self._end(sandbox_id, VmGoneCause.DESTROYED)

    async def list_running(self) -> list[VmStatus]:
        self.listed += 1
        return list(self.running.values())

    async def find_running(self, sandbox_id: SandboxId) -> VmStatus | None:
        return self.running.get(sandbox_id)

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

    def _end(self, sandbox_id: SandboxId, cause: VmGoneCause, detail: str = "") -> None:
        self._defined.pop(sandbox_id, None)
        self.plugged.pop(sandbox_id, None)
        if (ended := self._ended.pop(sandbox_id, None)) is not None:
            ended.set()
        if self.running.pop(sandbox_id, None) is not None:
            self._events.put_nowait(VmGone(sandbox_id, cause, detail))

    def _set_paused(self, sandbox_id: SandboxId, *, paused: bool, failure: str = "") -> None:
        if sandbox_id not in self.running:
            raise NotFoundError("no such VM", subject=sandbox_id)
        if failure:
            self._raise_once(failure)
        self.running[sandbox_id] = dataclasses.replace(self.running[sandbox_id], paused=paused)

    async def _enter(self, verb: str, sandbox_id: SandboxId) -> None:
        """A call that hangs comes back when its VM is killed."""
        self.calls.append(verb)
        if (gate := self._gates.get(verb)) is None or sandbox_id not in self.running:
            return
        ended = self._ended.setdefault(sandbox_id, asyncio.Event())
        waits = [asyncio.ensure_future(event.wait()) for event in (gate, ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _raise_once(self, failure: str) -> None:
        error: HyperError | None = getattr(self, failure)
        if error is not None:
            setattr(self, failure, None)
            raise error


def _told_from(device: Disk | Nic | SharePort) -> str:
    match device:
        case Disk(serial):
            return serial
        case Nic(tap):
            return tap
        case SharePort(tag):
            return tag


def _shape(definition: VmDefinition) -> dict[str, object]:
    """What must be the same in the VM that goes on; where its RAM was left among it."""
    memory = definition.memory_file
    return {
        "vcpus": definition.vcpus,
        "memory_mib": definition.memory_mib,
        "accelerator": definition.accelerator.value,
        "disks": [disk.readonly for disk in definition.disks],
        "nics": len(definition.nics),
        "channels": len(definition.channels),
        "free_page_reporting": definition.free_page_reporting,
        "ram_elsewhere": memory is not None and memory.shared,
    }


def _require_restorable(definition: VmDefinition, state: Path) -> None:
    memory = definition.memory_file
    wanted = _shape(definition) | {"ram_elsewhere": memory is not None and not memory.shared}
    try:
        found = json.loads(state.read_text())
    except (OSError, ValueError) as error:
        raise restore_failed(str(error)) from error
    if found != wanted:
        raise restore_failed(f"saved: {found}, asked for: {wanted}")
    if memory is not None and not memory.path.exists():
        raise restore_failed(f"{memory.path}: No such file or directory")


def restore_failed(
    evidence: str = "qemu-system-x86_64: load of migration failed: Invalid argument",
) -> RestoreError:
    """What a start raises whose saved state is of no use, for ``fail_next_restore``."""
    return RestoreError("the saved state cannot be restored", subject="hyper-box", evidence=evidence)


def kvm_refused() -> UnavailableError:
    """What a start raises when QEMU may not use KVM."""
    line = "qemu-system-x86_64: Could not access KVM kernel module: Permission denied"
    return UnavailableError("QEMU ended", subject="hyper-box", evidence=line)


def qemu_died() -> UnavailableError:
    """What a start raises when QEMU ends at once, for ``fail_next_start``."""
    return UnavailableError("QEMU ended", subject="hyper-box", evidence="qemu-system-x86_64: bad luck")
