# SPDX-License-Identifier: Apache-2.0
"""Directories and files of the host for guests: one virtiofsd for each, which outlives hyperd as QEMU does.

    ROOT/ID/TAG.sock     where its QEMU connects, once: virtiofsd ends with that connection
    ROOT/ID/TAG.lock     held by virtiofsd so long as it runs; has its pid

What it complains of is in memory, so much and no more (``host/complaints``): a guest may have it complain without end.

The host's ids are the guest's. virtiofsd runs as root, as it must to give a file its owner, with seven capabilities,
under seccomp, in namespaces of its own where there is nothing but what it serves (``enclosure``).
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from hyperd.errors import TimeoutExpiredError, UnavailableError
from hyperd.host import files, process
from hyperd.host.complaints import Complaints
from hyperd.host.held import HeldProcess
from hyperd.host.workers import Wanted, Workers
from hyperd.model.share import BrokenShare, IdRange, Share, ShareRequest
from hyperd.model.vm import SandboxId, SharePort
from hyperd.storage import enclosure
from hyperd.storage.places import Places

log = logging.getLogger(__name__)

END_TIMEOUT_S = 10.0
POLL_S = 0.005
ID_DIGITS = 12  # of a directory's name: a socket's path has room for 107 bytes
_STDERR = 2
_HINT = "`hyper doctor` says whether virtiofsd is there"
# It makes no device nodes: a guest needs none on the host, and who serves a read-only share changes nothing at all.
_DROPPED = "-mknod"
_DROPPED_READONLY = "-mknod:-chown:-fowner:-fsetid:-setfcap"


@dataclass(frozen=True, slots=True)
class _Serving:
    """A virtiofsd."""

    process: HeldProcess
    said: Complaints | None  # None: it was gone before it could be asked for

    def close(self) -> None:
        self.process.close()
        if self.said is not None:
            self.said.close()

    @property
    def evidence(self) -> str:
        return "" if self.said is None else self.said.tail()


class LocalShares:
    """``owner_of`` tells the (uid, gid) of a sandbox's QEMU; None leaves sockets to the daemon's own user."""

    def __init__(
        self,
        root: Path,
        program: Path,
        places: Places,
        *,
        owner_of: Callable[[SandboxId], tuple[int, int]] | None = None,
    ) -> None:
        self._root = root
        self._program = program
        self._places = places
        self._owner_of = owner_of
        self._workers = Workers("shares", 2)
        self._held: dict[Path, _Serving] = {}  # by their locks
        self._known: set[str] | None = None  # names of directories that may be there; None: not looked yet
        self._ending: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """Those that run, run on."""
        self._workers.close()
        for held in self._held.values():
            held.close()

    async def require_possible(self, requests: Sequence[ShareRequest]) -> None:
        await self._workers.call(self._require_program)
        for request in requests:
            await self._workers.call(self._places.require_possible, request)

    async def find(self, requests: Sequence[ShareRequest]) -> tuple[Share, ...]:
        if not requests:
            return ()
        await self._workers.call(self._require_program)
        return tuple([await self._workers.call(self._places.find, request) for request in requests])

    async def serve(self, sandbox_id: SandboxId, shares: Sequence[Share]) -> tuple[SharePort, ...]:
        await self.end(sandbox_id)
        (await self._present()).add(self._directory(sandbox_id).name)
        try:
            return await self._workers.call_while_wanted(self._start_all, sandbox_id, shares)
        except BaseException:
            await asyncio.shield(self.end(sandbox_id))
            raise

    async def require_served(self, sandbox_id: SandboxId) -> None:
        for lock in await self._workers.call(self._locks, sandbox_id):
            if not await self._workers.call(_is_locked, lock):
                held = self._held.get(lock)
                if held is not None and (evidence := held.evidence):  # else it ended because its QEMU did
                    brief, subject = "cannot be served", f"share {lock.stem}"
                    raise UnavailableError(brief, subject=subject, evidence=evidence, hint=_HINT)

    async def wait_broken(self, sandbox_id: SandboxId) -> BrokenShare:
        serving: dict[HeldProcess, tuple[Path, _Serving]] = {}
        for lock in await self._workers.call(self._locks, sandbox_id):
            held = await self._hold(lock)
            if held is None:
                return BrokenShare(lock.stem, "")
            serving[held.process] = lock, held
        if not serving:
            await asyncio.Event().wait()  # where nothing is served nothing breaks
        with files.file_errors(self._directory(sandbox_id)):
            lock, held = serving[await HeldProcess.wait_first(list(serving))]
        return BrokenShare(lock.stem, held.evidence)

    async def end(self, sandbox_id: SandboxId) -> None:
        directory = self._directory(sandbox_id)
        if directory.name not in await self._present():
            return  # as most sandboxes: none of their ends waits for a thread
        turn = self._ending.setdefault(directory, asyncio.Lock())
        async with turn:  # a kill and a look of the fleet's may both want it
            for lock in await self._workers.call(self._locks, sandbox_id):
                if (held := await self._hold(lock)) is not None:
                    try:
                        async with asyncio.timeout(END_TIMEOUT_S):
                            await self._kill(held.process, lock)
                    except TimeoutError as error:
                        brief = f"still there {END_TIMEOUT_S:g} s after it was killed"
                        subject = f"virtiofsd, pid {held.process.pid}"
                        raise TimeoutExpiredError(brief, subject=subject) from error
                    del self._held[lock]
                    held.close()
            with files.file_errors(directory):
                await self._workers.call(files.remove_tree, directory)
            (await self._present()).discard(directory.name)

    async def keep_only(self, running: Collection[SandboxId]) -> None:
        kept = {sandbox_id[:ID_DIGITS] for sandbox_id in running}
        for name in await self._present() - kept:
            log.warning("ending what serves nobody", extra={"id": name})
            await self.end(SandboxId(name))

    async def tidy(self) -> None:
        for held in self._held.values():
            if held.said is not None:
                held.said.renew()

    async def _present(self) -> set[str]:
        if self._known is None:
            found = set(await self._workers.call(self._names))
            self._known = found if self._known is None else self._known  # somebody may have been as fast
        return self._known

    async def _kill(self, held: HeldProcess, lock: Path) -> None:
        """Its child, which does the serving, ends a moment later: each has an end of a pipe, and both the lock."""
        held.kill()
        await held.wait_gone()
        while True:
            if not await self._workers.call(_is_locked, lock):
                return
            await asyncio.sleep(POLL_S)

    async def _hold(self, lock: Path) -> _Serving | None:
        """Who serves it. None when that has ended, and was not started by this hyperd."""
        deadline = asyncio.get_running_loop().time() + END_TIMEOUT_S
        while lock not in self._held and await self._workers.call(_is_locked, lock):
            # Started by a hyperd that is gone. Its pid is the first thing that it writes; so long as it has the lock
            # that is its pid.
            found = await self._workers.call(_read_pid, lock)
            if (process := HeldProcess.of(found)) is not None:
                is_it = await self._workers.call(_is_locked, lock)
                if is_it and lock not in self._held:  # somebody else may have been as fast
                    self._held[lock] = _Serving(process, _said_by(process))
                else:
                    process.close()
            elif asyncio.get_running_loop().time() > deadline:
                raise UnavailableError("is locked by nobody", subject=str(lock))
            else:
                await asyncio.sleep(POLL_S)
        return self._held.get(lock)

    def _start_all(
        self, wanted: Wanted, sandbox_id: SandboxId, shares: Sequence[Share]
    ) -> tuple[SharePort, ...]:
        directory = self._directory(sandbox_id)
        ports = []
        with files.file_errors(directory):
            files.make_directory(self._root, 0o711)
            files.make_directory(directory, 0o711)
            for share in shares:
                wanted.require()
                ports.append(self._start(sandbox_id, share, directory))
        return tuple(ports)

    def _start(self, sandbox_id: SandboxId, share: Share, directory: Path) -> SharePort:
        tag = share.request.tag
        place = directory / f"{tag}.place"
        files.make_directory(place, 0o700)
        with contextlib.ExitStack() as stack:
            # For reading: virtiofsd inherits it.
            path = directory / f"{tag}.lock"
            path.touch(0o600)
            lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Listens before virtiofsd runs, and QEMU connects whenever it is there: nobody has to wait for a file.
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            port = SharePort(tag, directory / f"{tag}.sock")
            listener.bind(os.fspath(port.socket))
            port.socket.chmod(0o600)
            if self._owner_of is not None:
                os.chown(port.socket, *self._owner_of(sandbox_id))
            listener.listen(1)
            plan = enclosure.Plan(
                source=os.fspath(share.path),
                place=os.fspath(place),
                entry=share.entry,
                readonly=share.request.readonly,
                argv=self._argv(share.request),
            )
            argv = [sys.executable, "-I", "-S", enclosure.__file__, "3", json.dumps(plan)]
            said = Complaints.new(tag)
            stack.callback(said.close)
            pid = process.start_detached(argv, output=said.fd, pass_fds=(lock, listener.fileno()))
            # A child that nobody else reaps.
            self._held[path] = _Serving(HeldProcess(pid, os.pidfd_open(pid)), Complaints(os.dup(said.fd)))
        return port

    def _argv(self, request: ShareRequest) -> list[str]:
        dropped = _DROPPED_READONLY if request.readonly else _DROPPED
        return [
            # Its own links resolved: what it is started with lies beside it.
            *(os.path.realpath(self._program), "--fd", "4", "--sandbox", "namespace", "--log-level", "error"),
            *("--cache", "auto", "--xattr", f"--modcaps={dropped}"),
            *(["--readonly"] if request.readonly else []),
            *(word for ids in request.uids for word in ("--translate-uid", _translation(ids))),
            *(word for ids in request.gids for word in ("--translate-gid", _translation(ids))),
        ]

    def _require_program(self) -> None:
        if not os.access(self._program, os.X_OK):
            raise UnavailableError(
                "is not there: directories of the host cannot be shared",
                subject=f"virtiofsd, {self._program}",
                hint="Debian 13 has it as a package, on Debian 12 `make setup` brings it; or set [storage] virtiofsd",
            )

    def _names(self) -> list[str]:
        return [path.name for path in self._root.iterdir()] if self._root.is_dir() else []

    def _locks(self, sandbox_id: SandboxId) -> list[Path]:
        return sorted(self._directory(sandbox_id).glob("*.lock"))

    def _directory(self, sandbox_id: SandboxId) -> Path:
        return self._root / sandbox_id[:ID_DIGITS]


def _translation(ids: IdRange) -> str:
    return f"map:{ids.guest}:{ids.host}:{ids.count}"


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
