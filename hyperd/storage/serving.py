# SPDX-License-Identifier: Apache-2.0
"""Programs that serve something to one sandbox's QEMU each, at a socket, and outlive hyperd as that QEMU does.

    ROOT/ID/TAG.sock     where its QEMU connects
    ROOT/ID/TAG.lock     held by the program so long as it runs; has its pid

What it complains of is in memory, so much and no more (``host/complaints``): a guest may have it complain without end.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from hyperd.errors import TimeoutExpiredError, UnavailableError
from hyperd.host import files, process
from hyperd.host.complaints import Complaints
from hyperd.host.held import HeldProcess
from hyperd.host.workers import Workers
from hyperd.model.vm import SandboxId

log = logging.getLogger(__name__)

END_TIMEOUT_S = 10.0
POLL_S = 0.005
ID_DIGITS = 12  # of a directory's name: a socket's path has room for 107 bytes
_STDERR = 2


@dataclass(frozen=True, slots=True)
class Serving:
    process: HeldProcess
    said: Complaints | None  # None: it was gone before it could be asked for

    def close(self) -> None:
        self.process.close()
        if self.said is not None:
            self.said.close()

    @property
    def evidence(self) -> str:
        return "" if self.said is None else self.said.tail()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is about to serve: for its command, and what it inherits."""

    directory: Path
    socket: Path
    lock: Path
    lock_fd: int  # for reading: it cannot name somebody else to be killed
    listener_fd: int


@dataclass(frozen=True, slots=True)
class Command:
    argv: Sequence[str]
    fds: Sequence[int]  # become 3, 4, ... there


class Servers:
    """``owner_of`` tells the (uid, gid) of a sandbox's QEMU; None leaves sockets to the daemon's own user.

    The program writes its pid into the lock before anything else.
    """

    def __init__(
        self,
        root: Path,
        workers: Workers,
        program: str,
        owner_of: Callable[[SandboxId], tuple[int, int]] | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """``patience_s``: of who is asked to end before it is killed; 0: nobody is asked."""
        self._root = root
        self._workers = workers
        self._program = program  # as errors name it
        self._owner_of = owner_of
        self._patience_s = patience_s
        self._held: dict[Path, Serving] = {}  # by their locks
        self._known: set[str] | None = None  # names of directories that may be there; None: not looked yet
        self._ending: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """Those that run, run on."""
        for held in self._held.values():
            held.close()

    def directory(self, sandbox_id: SandboxId) -> Path:
        return self._root / sandbox_id[:ID_DIGITS]

    async def expect(self, sandbox_id: SandboxId) -> None:
        """Before the first ``start``: from now on there may be something to end."""
        (await self._present()).add(self.directory(sandbox_id).name)

    def start(self, sandbox_id: SandboxId, tag: str, command_of: Callable[[Place], Command]) -> Path:
        """Returns its socket, which listens already: QEMU connects whenever it is there. Blocks.

        Raises UnavailableError.
        """
        directory = self.directory(sandbox_id)
        with files.file_errors(directory), self._place(directory, tag, sandbox_id) as place:
            command = command_of(place)
            said = Complaints.new(tag)
            try:
                pid = process.start_detached(command.argv, output=said.fd, pass_fds=command.fds)
                # A child that nobody else reaps.
                self._held[place.lock] = Serving(HeldProcess(pid, os.pidfd_open(pid)), said)
            except BaseException:
                said.close()
                raise
            return place.socket

    def find(self, sandbox_id: SandboxId, tag: str) -> Path | None:
        """The socket of one that runs. Blocks."""
        path = self.directory(sandbox_id) / f"{tag}.sock"
        return path if path.exists() and _is_locked(path.with_suffix(".lock")) else None

    @contextlib.contextmanager
    def _place(self, directory: Path, tag: str, sandbox_id: SandboxId) -> Iterator[Place]:
        files.make_directory(self._root, 0o711)
        files.make_directory(directory, 0o711)
        with contextlib.ExitStack() as stack:
            lock = directory / f"{tag}.lock"
            path = directory / f"{tag}.sock"
            lock.touch(0o600)
            lock_fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, lock_fd)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            path.unlink(missing_ok=True)  # of one that has ended
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            if self._owner_of is not None:
                os.chown(path, *self._owner_of(sandbox_id))
            listener.listen(2)
            yield Place(directory, path, lock, lock_fd, listener.fileno())

    async def find_ended(self, sandbox_id: SandboxId) -> tuple[str, str] | None:
        """Tag and complaint of one that complained and ended; else it ended because its QEMU did."""
        for lock in await self._workers.call(self._locks, sandbox_id):
            if not await self._workers.call(_is_locked, lock):
                held = self._held.get(lock)
                if held is not None and (evidence := held.evidence):
                    return lock.stem, evidence
        return None

    async def wait_ended(self, sandbox_id: SandboxId, known: Collection[str] = ()) -> tuple[str, str]:
        """Tag and complaint of the first that has ended, but those. Where nothing is left this never returns."""
        serving: dict[HeldProcess, tuple[Path, Serving]] = {}
        for lock in await self._workers.call(self._locks, sandbox_id):
            if lock.stem in known:
                continue
            held = await self._hold(lock)
            if held is None:
                return lock.stem, ""
            serving[held.process] = lock, held
        if not serving:
            await asyncio.Event().wait()
        with files.file_errors(self.directory(sandbox_id)):
            lock, held = serving[await HeldProcess.wait_first(list(serving))]
        return lock.stem, held.evidence

    async def end(self, sandbox_id: SandboxId) -> None:
        """All of the sandbox's. Idempotent. Raises TimeoutExpiredError."""
        directory = self.directory(sandbox_id)
        if directory.name not in await self._present():
            return  # as most sandboxes: none of their ends waits for a thread
        turn = self._ending.setdefault(directory, asyncio.Lock())
        async with turn:  # a kill and a look of the fleet's may both want it
            for lock in await self._workers.call(self._locks, sandbox_id):
                if (held := await self._hold(lock)) is not None:
                    try:
                        async with asyncio.timeout(END_TIMEOUT_S):
                            await self._end(held.process, lock)
                    except TimeoutError as error:
                        brief = f"still there {END_TIMEOUT_S:g} s after it was killed"
                        subject = f"{self._program}, pid {held.process.pid}"
                        raise TimeoutExpiredError(brief, subject=subject) from error
                    del self._held[lock]
                    held.close()
            with files.file_errors(directory):
                await self._workers.call(files.remove_tree, directory)
            (await self._present()).discard(directory.name)

    async def keep_only(self, running: Collection[SandboxId]) -> None:
        kept = {sandbox_id[:ID_DIGITS] for sandbox_id in running}
        for name in await self._present() - kept:
            log.warning("ending what serves nobody", extra={"id": name, "program": self._program})
            await self.end(SandboxId(name))

    def tidy(self) -> None:
        """For now and then: there is room for the last words."""
        for held in self._held.values():
            if held.said is not None:
                held.said.renew()

    async def _present(self) -> set[str]:
        if self._known is None:
            found = set(await self._workers.call(self._names))
            self._known = found if self._known is None else self._known  # somebody may have been as fast
        return self._known

    async def _end(self, held: HeldProcess, lock: Path) -> None:
        """A child of its, which may do the serving, ends a moment later: both have the lock."""
        if self._patience_s:
            held.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await held.wait_gone()
        held.kill()
        await held.wait_gone()
        while True:
            if not await self._workers.call(_is_locked, lock):
                return
            await asyncio.sleep(POLL_S)

    async def _hold(self, lock: Path) -> Serving | None:
        """Who serves it. None when that has ended, and was not started by this hyperd."""
        deadline = asyncio.get_running_loop().time() + END_TIMEOUT_S
        while lock not in self._held and await self._workers.call(_is_locked, lock):
            # Started by a hyperd that is gone. Its pid is the first thing that it writes; so long as it has the lock
            # that is its pid.
            found = await self._workers.call(_read_pid, lock)
            if (process := HeldProcess.of(found)) is not None:
                is_it = await self._workers.call(_is_locked, lock)
                if is_it and lock not in self._held:  # somebody else may have been as fast
                    self._held[lock] = Serving(process, _said_by(process))
                else:
                    process.close()
            elif asyncio.get_running_loop().time() > deadline:
                raise UnavailableError("is locked by nobody", subject=str(lock))
            else:
                await asyncio.sleep(POLL_S)
        return self._held.get(lock)

    def _names(self) -> list[str]:
        return [path.name for path in self._root.iterdir()] if self._root.is_dir() else []

    def _locks(self, sandbox_id: SandboxId) -> list[Path]:
        return sorted(self.directory(sandbox_id).glob("*.lock"))


def _is_locked(lock: Path) -> bool:
    """By who serves it, or is about to."""
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read_pid(lock: Path) -> int:
    """0 when there is none yet."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(lock.read_text()[:32])
    return 0


def _said_by(process: HeldProcess) -> Complaints | None:
    with contextlib.suppress(OSError):  # it ended a moment ago
        return Complaints(process.borrow(_STDERR))
    return None
