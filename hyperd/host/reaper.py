# SPDX-License-Identifier: Apache-2.0
"""hyperd as the init of its own orphans.

libvirt forks QEMU twice, so QEMU's parent is PID 1 or the nearest subreaper, and libvirt takes a zombie for alive:
where PID 1 reaps late, each destroy and each capability probe waits for it (up to 40 s). So this process becomes the
subreaper and reaps what is reparented to it, at once, by SIGCHLD.

Never ``waitpid(-1)``, and not by name either: libvirt waits for children of its own, some of them called
qemu-system-x86 too (the launcher of a probe). A child that this process forked itself is in this process's session or
leads one of its own; a session is inherited otherwise. So a zombie child in a foreign session that it does not lead
was forked by somebody who is dead, and nobody else waits for it.

The middle process of QEMU's own daemonizing leads its session, as do children of ``host.process``. It is told from
those by age: a zombie of QEMU that is still there at the second tick in a row has no one who waits.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hyperd.errors import UnavailableError

_PR_SET_CHILD_SUBREAPER = 36
_QEMU_COMM = "qemu-system"
TICK_S = 5.0


@dataclass(frozen=True, slots=True)
class Zombie:
    pid: int
    comm: str
    session: int


def parse_zombie(stat: str, parent: int) -> Zombie | None:
    """From /proc/PID/stat, see proc(5): a name may hold blanks and parentheses.

    None unless it is a zombie child of ``parent``.
    """
    head, _, rest = stat.rpartition(")")
    pid, _, comm = head.partition(" (")
    fields = rest.split()
    if len(fields) < 4 or fields[0] != "Z":
        return None
    try:
        zombie, its_parent = Zombie(int(pid), comm, int(fields[3])), int(fields[1])
    except ValueError:
        return None
    return zombie if its_parent == parent else None


def is_orphan(zombie: Zombie, own_session: int) -> bool:
    """Certainly not forked by this process: nobody but the subreaper waits for it."""
    return zombie.session not in (own_session, zombie.pid)


class Reaper:
    """Async context manager; one in a process, in the main thread."""

    def __init__(self, *, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._suspects: frozenset[int] = frozenset()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        _set_subreaper(enabled=True)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self._tick()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_signal_handler(signal.SIGCHLD)
        if self._timer is not None:
            self._timer.cancel()
        self.reap()
        _set_subreaper(enabled=False)

    def reap(self) -> None:
        """Reap every orphan that is dead now."""
        own_session = os.getsid(0)
        for zombie in _zombies():
            if is_orphan(zombie, own_session):
                _reap(zombie.pid)

    def _tick(self) -> None:
        """Signals are merged and may come while nobody listens: look again now and then."""
        self.reap()
        left = frozenset(zombie.pid for zombie in _zombies() if zombie.comm.startswith(_QEMU_COMM))
        for pid in left & self._suspects:
            _reap(pid)
        self._suspects = left - self._suspects
        self._timer = self._loop.call_later(self._tick_s, self._tick)


def _set_subreaper(*, enabled: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0) != 0:
        raise UnavailableError(
            f"cannot become a subreaper: {os.strerror(ctypes.get_errno())}", subject="prctl"
        )


def _zombies() -> Iterator[Zombie]:
    for pid in _child_pids():
        with contextlib.suppress(OSError):
            zombie = parse_zombie(Path(f"/proc/{pid}/stat").read_text(errors="replace"), os.getpid())
            if zombie is not None:
                yield zombie


def _child_pids() -> set[int]:
    """Cheap where the kernel lists children (CONFIG_PROC_CHILDREN); else every process is looked at."""
    pids: set[int] = set()
    try:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                pids.update(int(pid) for pid in (task / "children").read_text().split())
            if not (task / "children").exists() and task.exists():
                raise NotADirectoryError
    except OSError:
        return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return pids


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # the kernel's list was a moment old
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
