# SPDX-License-Identifier: Apache-2.0
"""KVM where it works, TCG where it does not, never silently.

`/dev/kvm` existing proves nothing: on a PVM host a stock guest hangs at 100 % CPU. So the probe is a boot: the guest's
agent says hello under KVM in time, or TCG it is. What was found is remembered for this boot of the host, kernel, agent
and QEMU, by size and time of change. Only a verdict is remembered: QEMU that refuses KVM, or a healthy one in which no
agent says hello in time. Anything else that goes wrong means TCG for now, and another probe later.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError
from hyperd.guest.base import GuestDialer
from hyperd.host.files import file_errors
from hyperd.host.workers import Workers
from hyperd.model.container import Sizing
from hyperd.model.vm import Accelerator, Channel, SandboxId, VmDefinition
from hyperd.sandbox.definition import CONTROL_PORT, STREAM_PORT, GuestSettings, SandboxPaths
from hyperd.vm.base import Hypervisor

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0
PROBE_SIZING = Sizing(1, 128)
PROBE_AGAIN_S = 300.0  # after one that ended without a verdict
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Choice:
    accelerator: Accelerator
    reason: str


def fingerprint(path: Path) -> str:
    """Changes when the file is replaced in place, without reading it."""
    try:
        found = path.stat()
    except OSError:
        return f"{path} absent"
    return f"{path} {found.st_size} {found.st_mtime_ns}"


class Findings:
    """What the last probe found, in a file, with all that it depends on."""

    def __init__(self, path: Path, key: tuple[str, ...], files: Workers) -> None:
        self._path = path
        self._key = key
        self._files = files

    async def recall(self) -> Choice | None:
        return await self._files.call(_recall, self._path, self._key)

    async def remember(self, choice: Choice) -> None:
        try:
            await self._files.call(_remember, self._path, self._key, choice)
        except OSError as error:  # the next hyperd probes again
            log.warning("not remembered", extra={"path": str(self._path), "error": str(error)})


class AcceleratorChooser:
    """Decides once; everyone who asks meanwhile waits for the same probe."""

    def __init__(
        self,
        wanted: str,
        hypervisor: Hypervisor,
        dialer: GuestDialer,
        guest: GuestSettings,
        scratch: Callable[[SandboxId], SandboxPaths],
        findings: Findings,
        files: Workers,
        device: Path = Path("/dev/kvm"),
    ) -> None:
        """``wanted``: auto, kvm or tcg."""
        self._wanted = wanted
        self._hypervisor = hypervisor
        self._dialer = dialer
        self._guest = guest
        self._scratch = scratch
        self._findings = findings
        self._files = files
        self._device = device
        self._lock = asyncio.Lock()
        self._probe_again_at = math.inf  # by the loop's clock
        self.choice: Choice | None = None

    async def choose(self) -> Accelerator:
        """Raises UnavailableError when `accel = "kvm"` is configured and KVM does not work."""
        async with self._lock:
            if self.choice is None or asyncio.get_running_loop().time() >= self._probe_again_at:
                self.choice = await self._decide()
                log.info(
                    "accelerator chosen",
                    extra={"accelerator": self.choice.accelerator.value, "reason": self.choice.reason},
                )
        return self.choice.accelerator

    async def _decide(self) -> Choice:
        if self._wanted == Accelerator.TCG:
            return Choice(Accelerator.TCG, "the configuration says so")
        choice = await self._probe_or_recall()
        if self._wanted == Accelerator.KVM and choice.accelerator is not Accelerator.KVM:
            raise UnavailableError(
                "KVM does not work here",
                subject='[vm] accel = "kvm"',
                evidence=choice.reason,
                hint='set accel = "auto" to run under emulation, several times slower',
            )
        return choice

    async def _probe_or_recall(self) -> Choice:
        if not await self._files.call(os.access, self._device, os.R_OK | os.W_OK):
            return Choice(Accelerator.TCG, f"{self._device} is not there or cannot be opened")
        recalled = await self._findings.recall()
        if recalled is not None:
            self._probe_again_at = math.inf
            return recalled
        choice, is_verdict = await self._probe()
        if is_verdict:
            self._probe_again_at = math.inf
            await self._findings.remember(choice)
        else:
            self._probe_again_at = asyncio.get_running_loop().time() + PROBE_AGAIN_S
        return choice

    async def _probe(self) -> tuple[Choice, bool]:
        """What to use, and whether that is a verdict on KVM."""
        sandbox_id = SandboxId(secrets.token_hex(32))
        paths = self._scratch(sandbox_id)
        with file_errors(paths.state_dir):
            await self._files.call(_make, paths)
        definition = VmDefinition(
            sandbox_id=sandbox_id,
            vcpus=PROBE_SIZING.vcpus,
            memory_mib=PROBE_SIZING.memory_mib,
            accelerator=Accelerator.KVM,
            kernel=self._guest.kernel,
            initramfs=self._guest.initramfs,
            cmdline=self._guest.cmdline_under(Accelerator.KVM),
            console_log=paths.console_log,
            channels=(Channel(CONTROL_PORT, paths.control_socket), Channel(STREAM_PORT, paths.stream_socket)),
        )
        try:
            await self._hypervisor.start(definition)
            guest = await self._dialer.connect(
                paths.control_socket, paths.stream_socket, timeout_s=PROBE_TIMEOUT_S, subject="the KVM probe"
            )
            await guest.close()
        except HyperError as error:
            detail = _telling_line(error)
            is_verdict = await self._is_verdict(error, sandbox_id)
            return Choice(
                Accelerator.TCG, f"a guest does not come up under {self._device}: {detail}"
            ), is_verdict
        finally:
            with contextlib.suppress(HyperError):
                await self._hypervisor.destroy(sandbox_id)
            await self._files.call(_remove, paths)
        return Choice(Accelerator.KVM, f"a guest came up under {self._device}"), True

    async def _is_verdict(self, error: HyperError, sandbox_id: SandboxId) -> bool:
        if not isinstance(error, TimeoutExpiredError):
            return isinstance(error, UnavailableError) and "kvm" in f"{error.brief} {error.evidence}".lower()
        try:
            vms = await self._hypervisor.list_running()
        except HyperError:
            return False
        return any(vm.sandbox_id == sandbox_id for vm in vms)


def _telling_line(error: HyperError) -> str:
    """QEMU's own complaint where it has one, without its time stamp; else what hyperd saw."""
    for line in error.evidence.splitlines():
        _, program, complaint = line.partition("qemu-system-")
        if program:
            return complaint.partition(": ")[2]
    return error.brief


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _recall(memory: Path, key: tuple[str, ...]) -> Choice | None:
    try:
        kept = json.loads(memory.read_text())
        if kept["key"] == [_boot_id(), *key]:
            return Choice(Accelerator(kept["accelerator"]), kept["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or unreadable: probe again
    return None


def _remember(memory: Path, key: tuple[str, ...], choice: Choice) -> None:
    fresh = memory.with_suffix(".new")
    fresh.write_text(
        json.dumps(
            {"key": [_boot_id(), *key], "accelerator": choice.accelerator.value, "reason": choice.reason}
        )
    )
    fresh.replace(memory)


def _make(paths: SandboxPaths) -> None:
    for directory in (paths.run_dir, paths.state_dir):
        directory.mkdir(0o711, parents=True, exist_ok=True)


def _remove(paths: SandboxPaths) -> None:
    for directory in (paths.run_dir, paths.state_dir):
        shutil.rmtree(directory, ignore_errors=True)
