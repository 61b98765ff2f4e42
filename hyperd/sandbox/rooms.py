# SPDX-License-Identifier: Apache-2.0
"""What every VM of the service is made with: the rooms, the settings, and a directory of its own."""

import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import TimeoutExpiredError, UnavailableError
from hyperd.guest.base import GuestDialer
from hyperd.host.files import file_errors
from hyperd.host.workers import Workers
from hyperd.image.base import ImageStore
from hyperd.model.vm import SandboxId
from hyperd.network.base import Network
from hyperd.sandbox.definition import GuestSettings, SandboxPaths
from hyperd.snapshot.base import SnapshotStore
from hyperd.storage.base import Shares, Storage, Volumes
from hyperd.vm import Hypervisor, console_tail

ENTROPY_BYTES = 64
CLONE_HELLO_TIMEOUT_S = 20.0  # a restored agent answers in milliseconds, on a busy host in a few seconds


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms that a sandbox is made from."""

    hypervisor: Hypervisor
    dialer: GuestDialer
    images: ImageStore
    storage: Storage
    network: Network
    snapshots: SnapshotStore
    volumes: Volumes
    shares: Shares


@dataclass(frozen=True, slots=True)
class RunSettings:
    guest: GuestSettings
    state_dir: Path  # of all sandboxes
    run_dir: Path
    boot_timeout_s: float
    reconnect_timeout_s: float
    parallel_starts: int = 0  # VMs that come up at a time; 0: by the CPUs

    def paths(self, sandbox_id: SandboxId) -> SandboxPaths:
        # A UNIX socket's path has room for 107 bytes: 12 digits of the id are plenty.
        return SandboxPaths(self.run_dir / sandbox_id[:12], self.state_dir / sandbox_id)


class Phases:
    """How long each part of a start took, by one clock, read at the seams."""

    def __init__(self) -> None:
        self._last_ms = now_ms()
        self._durations: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """What went on since the last mark was ``name``."""
        now = now_ms()
        self._durations[name] = self._durations.get(name, 0.0) + now - self._last_ms
        self._last_ms = now

    def fold(self, name: str, after: str) -> None:
        """What went on since the phase ``after`` was in vain: one phase of that name."""
        self.mark(name)
        names = list(self._durations)
        vain = names[names.index(after) + 1 :]
        self._durations[name] = sum(self._durations.pop(phase) for phase in vain)

    def in_ms(self) -> dict[str, int]:
        return {name: round(duration) for name, duration in self._durations.items()}


@contextlib.asynccontextmanager
async def console_as_evidence(subject: str, paths: SandboxPaths, files: Workers) -> AsyncIterator[None]:
    """A guest that does not come up shows the end of its console."""
    try:
        yield
    except (UnavailableError, TimeoutExpiredError) as error:
        tail = await files.call(console_tail, paths.console_log)
        raise type(error)(
            f"the guest did not come up: {error.brief}",
            subject=subject,
            evidence="\n".join(part for part in (error.evidence, tail) if part),
            hint=error.hint or "`hyper doctor` checks kernel, agent and accelerator",
        ) from error


async def make_directories(paths: SandboxPaths, files: Workers) -> None:
    """Of one VM, with nothing in them of an earlier one."""
    with file_errors(paths.state_dir):
        await files.call(_make_directories, paths)


async def remove_directories(paths: SandboxPaths, files: Workers) -> None:
    with file_errors(paths.state_dir):
        await files.call(_remove_directories, paths)


def now_ms() -> float:
    return time.monotonic() * 1000


def _make_directories(paths: SandboxPaths) -> None:
    paths.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    paths.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    for stale in (paths.control_socket, paths.stream_socket, paths.console_log):
        stale.unlink(missing_ok=True)


def _remove_directories(paths: SandboxPaths) -> None:
    for directory in (paths.run_dir, paths.state_dir):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
