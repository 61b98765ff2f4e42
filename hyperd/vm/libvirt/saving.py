# SPDX-License-Identifier: Apache-2.0
"""A VM's way into a file and out of it, as calls on a bridge's thread, each of them short. They let libvirtError pass.

What takes its time goes on inside QEMU; whoever began it asks again, so that no thread is held while it writes. While
it reads a state it does not answer, nor when a disk hangs: then the thread of whoever asks is held.

    restore   Restore.runs, until True
    save      begin_save -> progress_of_save, until it says so -> resume, until True
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt

from hyperd.errors import ExhaustedError, RestoreError, UnavailableError
from hyperd.host.workers import Wanted
from hyperd.model.vm import SandboxId, VmDefinition
from hyperd.vm.libvirt import monitor
from hyperd.vm.libvirt.domain import create, is_paused, look_up
from hyperd.vm.libvirt.errors import MonitorError, kind_of
from hyperd.vm.libvirt.memory import fill_ram
from hyperd.vm.libvirt.monitor import Phase
from hyperd.vm.libvirt.process import QemuProcess
from hyperd.vm.libvirt.xml import RAM_BACKEND, domain_name

Log = Callable[[], str]

_RAM_FILE_WORDS = (
    "backing store"  # QEMU's, when the file that has the RAM is missing, closed to it or of another size
)
_NO_SPACE_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


class Restore:
    """A start from a saved state, as a question to be asked until the answer is True: does the VM run?"""

    def __init__(
        self, definition: VmDefinition, state: Path, described: str, pid_dir: Path, log: Log
    ) -> None:
        """``log()`` is what QEMU itself said, the evidence when it fails."""
        self._sandbox_id = definition.sandbox_id
        self._state = state
        memory = definition.memory_file
        self._ram_elsewhere = memory is not None and not memory.shared
        self._copied = memory.path if memory is not None and definition.shared_memory else None
        self._memory_mib = definition.memory_mib
        self._pid_dir = pid_dir
        self._described = described
        self._log = log
        self._created = False

    def runs(self, connection: libvirt.virConnect) -> bool:
        """Raises RestoreError; libvirtError and ExistsError from the creation."""
        if not self._created:
            if not self._create(connection):
                return False
            self._created = True
            with self._restore_errors():
                self._begin(look_up(connection, self._sandbox_id))
        with self._restore_errors():
            return self._finish(look_up(connection, self._sandbox_id))

    def _create(self, connection: libvirt.virConnect) -> bool:
        try:
            return create(connection, self._sandbox_id, self._described, paused=True)
        except libvirt.libvirtError as error:
            message = error.get_error_message() or ""
            if _RAM_FILE_WORDS in message and kind_of(0, message) is UnavailableError:
                raise self._error(message) from error
            raise

    def _begin(self, domain: libvirt.virDomain) -> None:
        if self._copied is not None:
            self._fill(self._copied)
        monitor.set_capabilities(domain, ram_elsewhere=self._ram_elsewhere)
        monitor.silence_announcements(domain)
        monitor.migrate_incoming(domain, self._state)

    def _fill(self, source: Path) -> None:
        process = QemuProcess.find(self._pid_dir, domain_name(self._sandbox_id))
        if process is None:
            raise self._error("QEMU ended as soon as it ran")
        try:
            fill_ram(process.pid, self._memory_mib << 20, source)
        except OSError as error:
            raise self._error(f"its memory cannot be filled: {error}") from error
        finally:
            process.close()

    def _finish(self, domain: libvirt.virDomain) -> bool:
        # While QEMU reads it answers nothing: the first answer comes, as a rule, when it is done.
        if monitor.is_incoming(domain):
            migration = monitor.query_migration(domain)
            if migration.phase is Phase.FAILED:
                raise MonitorError(migration.words)
            return False
        domain.resume()
        return True

    @contextlib.contextmanager
    def _restore_errors(self) -> Iterator[None]:
        try:
            yield
        except MonitorError as error:
            raise self._error(str(error)) from error
        except libvirt.libvirtError as error:
            raise self._error("QEMU ended while it read the state") from error

    def _error(self, words: str) -> RestoreError:
        evidence = "\n".join(part for part in (words, self._log()) if part)
        subject = domain_name(self._sandbox_id)
        return RestoreError("the saved state cannot be restored", subject=subject, evidence=evidence)


@dataclass(frozen=True, slots=True)
class SaveProgress:
    done: bool
    written_bytes: int


def pause(connection: libvirt.virConnect, wanted: Wanted, sandbox_id: SandboxId) -> None:
    """Idempotent."""
    wanted.require()
    look_up(connection, sandbox_id).suspend()


def resume(connection: libvirt.virConnect, sandbox_id: SandboxId) -> bool:
    """Whether the VM runs now; False: a save is being broken off, ask again. Idempotent."""
    domain = look_up(connection, sandbox_id)
    if not is_paused(domain):
        return True
    if monitor.query_migration(domain).phase is Phase.ACTIVE:
        # Nobody waits for it any more: its hyperd was killed, or its caller has gone.
        monitor.cancel_migration(domain)
        return False
    domain.resume()
    return True


def begin_save(
    connection: libvirt.virConnect, wanted: Wanted, sandbox_id: SandboxId, state: Path, *, bytes_per_s: int
) -> None:
    """Pause the VM and let QEMU write."""
    wanted.require()
    domain = look_up(connection, sandbox_id)
    domain.suspend()
    wanted.require()
    monitor.set_capabilities(domain, ram_elsewhere=monitor.has_shared_ram(domain, RAM_BACKEND))
    monitor.migrate(domain, state, bytes_per_s=bytes_per_s)


def progress_of_save(connection: libvirt.virConnect, sandbox_id: SandboxId) -> SaveProgress:
    """Raises ExhaustedError, UnavailableError when it has failed."""
    migration = monitor.query_migration(look_up(connection, sandbox_id))
    if migration.phase in {Phase.FAILED, Phase.NONE}:
        full = any(words in migration.words for words in _NO_SPACE_WORDS)
        kind = ExhaustedError if full else UnavailableError
        raise kind("cannot be saved", subject=domain_name(sandbox_id), evidence=migration.words)
    return SaveProgress(migration.phase is Phase.COMPLETED, migration.written_bytes)


def cancel_save(connection: libvirt.virConnect, sandbox_id: SandboxId) -> None:
    monitor.cancel_migration(look_up(connection, sandbox_id))
