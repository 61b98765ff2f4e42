# SPDX-License-Identifier: Apache-2.0
"""A whole hyper of the test's own: a state directory, a daemon as its own process, the command, and a leak check.

Shared by the integration and conformance suites and by the benchmarks.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import behind

ROOT = Path(__file__).resolve().parent.parent
PREPARED_CACHE = Path(
    "/var/lib/hyper/libvirt/cache"
)  # set-up filled it: no daemon of a test needs to probe QEMU again
DEADLINE_S = 60.0
BUILD_TIMEOUT_S = 200.0
_numbers = itertools.count()  # daemons that run side by side share neither bridge nor subnet


def require_private_network() -> None:
    """Bridges and taps belong into a network namespace of the run's own: `setup/private` makes one."""
    if str(Path("/proc/self/ns/net").readlink()) != os.environ.get("HYPER_PRIVATE_NET"):
        raise AssertionError(
            "this would touch the host's network: run it through `make`, or setup/private COMMAND"
        )


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        pause.wait(0.02)


class Hyper:
    """One hyper on this host. Paths are short (UNIX sockets) and passable for QEMU's user (not below pytest's 0700)."""

    def __init__(
        self, *, accel: str = "tcg", settings: dict[str, str] | None = None, tmpfs_mib: int = 0
    ) -> None:
        """``tmpfs_mib``: keep everything on a file system of just that size."""
        self.home = Path(tempfile.mkdtemp(prefix="hyper-t-", dir="/var/tmp"))
        self._tmpfs = bool(tmpfs_mib)
        if tmpfs_mib:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={tmpfs_mib}m", "none", self.home], check=True
            )
        self.home.chmod(0o711)
        self.state_dir = self.home / "state"
        self.run_dir = self.home / "run"
        self.log = self.home / "hyperd.log"
        self._told_before = 0  # where the log of this daemon begins, behind that of earlier ones
        self.bin = Path(sys.executable).parent
        number = next(_numbers)
        self.bridge, self.gateway = f"hyper{number}", f"10.213.{number}.1"
        self.settings = {
            "network.bridge": self.bridge,
            "network.subnet": f"10.213.{number}.0/24",
            "daemon.state_dir": str(self.state_dir),
            "daemon.run_dir": str(self.run_dir),
            "daemon.log_level": "debug",
            "vm.accel": accel,
            "template.spares": "0",  # most tests are about what is the same without
            **(settings or {}),
        }
        self.daemon: subprocess.Popen[bytes] | None = None
        if PREPARED_CACHE.is_dir():
            shutil.copytree(PREPARED_CACHE, self.state_dir / "libvirt/cache")
            self.state_dir.chmod(0o711)

    @property
    def address(self) -> str:
        return f"unix://{self.run_dir}/hyperd.sock"

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        flags = [f"--set={key}={value}" for key, value in self.settings.items()]
        self._forget_the_log()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [self.bin / "hyperd", *flags], stdout=log, stderr=log, start_new_session=True, cwd=self.home
            )
        wait_until(self._answers_or_ended, "the daemon answers")
        if self.daemon.poll() is not None:
            raise AssertionError(
                f"hyperd ended with {self.daemon.returncode}:\n{self.log.read_text()[-3000:]}"
            )

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait(DEADLINE_S)
            self.daemon = None
            self._forget_the_log()

    def kill_daemon(self) -> None:
        """As the OOM killer would."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait(DEADLINE_S)
        self.daemon = None
        self._forget_the_log()

    def wait_for_template(self) -> None:
        """Until the default size has its template and no other is being built: what starts now starts from it."""
        templates = self.state_dir / "snapshots/template"
        wait_until(
            lambda: any(templates.glob("*/manifest.json")) and not behind.under_way(self._told()),
            "the template of the default size",
            timeout_s=BUILD_TIMEOUT_S,
        )

    def wait_for_spare(self, count: int = 1) -> None:
        """Until so many are ready: what is run next takes one, if it can do with it."""
        wait_until(
            lambda: len(behind.spares(self._told())) >= count and not behind.under_way(self._told()),
            "a spare is ready",
            timeout_s=BUILD_TIMEOUT_S,
        )

    def run(
        self, *arguments: str, stdin: bytes | None = None, timeout_s: float = DEADLINE_S
    ) -> "subprocess.CompletedProcess[bytes]":
        """`hyper ARGUMENTS`."""
        return subprocess.run(
            self.argv(*arguments),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def argv(self, *arguments: str) -> list[str]:
        return [str(self.bin / "hyper"), "--host", self.address, *arguments]

    def ok(self, *arguments: str, stdin: bytes | None = None, timeout_s: float = DEADLINE_S) -> str:
        """As `run`; fails unless the command ends with 0. Returns standard output without the last newline."""
        finished = self.run(*arguments, stdin=stdin, timeout_s=timeout_s)
        assert finished.returncode == 0, (
            f"hyper {' '.join(arguments)} ended with {finished.returncode}\n{finished.stderr.decode(errors='replace')}"
            f"\n--- hyperd:\n{self.log_tail()}"
        )
        return finished.stdout.decode().rstrip("\n")

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def clear(self, *, snapshots: bool = False) -> None:
        """Remove all containers, and with ``snapshots`` those, too."""
        if containers := self.ok("ps", "-aq").split():
            self.ok("rm", "-f", *containers)
        if snapshots and (saved := self.ok("snapshot", "ls", "-q").split()):
            self.ok("snapshot", "rm", *saved)

    def require_no_leaks(self) -> None:
        leaks = self.leaks()
        assert not leaks, f"left behind: {leaks}"

    def leaks(self) -> list[str]:
        """What is left of sandboxes although no container exists: processes, taps, leases, disks, sockets, mounts.

        Looked at once; but what the daemon does behind its users' backs, templates that are built, spares that come or
        go, is waited for. A spare that is ready may be there.
        """
        while True:
            wait_until(
                lambda: not behind.under_way(self._told()),
                "templates and spares are made",
                timeout_s=BUILD_TIMEOUT_S,
            )
            told = self._told()
            left, ready = self._left(), behind.spares(told)
            later = self._told()
            if behind.begun(later) == behind.begun(told) and behind.spares(later) == ready:
                return [line for line in left if not any(spare_id[:12] in line for spare_id in ready)]

    def _told(self) -> bytes:
        """The log of this daemon."""
        if not self.log.exists():
            return b""
        with self.log.open("rb") as log:
            log.seek(self._told_before)
            return log.read()

    def _forget_the_log(self) -> None:
        """A daemon that is gone builds nothing, and has no spares."""
        self._told_before = self.log.stat().st_size if self.log.exists() else 0

    def _left(self) -> list[str]:
        processes = {**self.qemu_processes(), **self.share_processes(), **self.door_processes()}
        left = [f"process {pid}: {command}" for pid, command in processes.items()]
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        left += [
            line
            for line in links.splitlines()
            if (" hyt" in line or " hyb" in line) and not self._is_foreign(line)
        ]
        for place in ("storage/sandboxes", "sandboxes"):
            left += [str(path) for path in (self.state_dir / place).glob("*")]
        left += [str(path) for place in ("vm", "shares") for path in (self.run_dir / place).glob("*")]
        with contextlib.closing(sqlite3.connect(self.state_dir / "records.sqlite")) as records:
            left += [f"lease {row}" for row in records.execute("SELECT * FROM network_lease")]
            left += [f"port {row}" for row in records.execute("SELECT * FROM published_port")]
            left += [f"record {row}" for row in records.execute("SELECT name FROM sandbox")]
        for saved in (".draft-*", "hibernation/*"):
            left += [str(path) for path in (self.state_dir / "snapshots").glob(saved)]
        mounts = Path("/proc/mounts").read_text().splitlines()
        left += [line for line in mounts if f" {self.home}/" in line]
        return left

    def _is_foreign(self, link: str) -> bool:
        """A tap on the bridge of another test's hyper, which may have spares."""
        master = re.search(r" master (hyper\d+) ", link)
        return master is not None and master[1] != self.bridge

    def qemu_processes(self) -> dict[int, str]:
        """QEMU processes whose command line names our state directory."""
        return self._processes("qemu-system")

    def share_processes(self) -> dict[int, str]:
        """Those that serve directories of the host: two for each share."""
        return self._processes("virtiofsd")

    def door_processes(self) -> dict[int, str]:
        """Those between QEMUs and servers that have disks."""
        return self._processes("qemu-nbd")

    def _processes(self, program: str) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if program in command and str(self.home) in command and "hyperd --set" not in command:
                        found[int(entry.name)] = command[:120]
        return found

    def destroy(self) -> None:
        """End the daemon and every VM of ours, by pid; remove all files."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(20)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait(20)
        for pid in (*self.qemu_processes(), *self.share_processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._tmpfs:
            subprocess.run(["umount", "-l", self.home], check=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def _answers_or_ended(self) -> bool:
        if self.daemon is not None and self.daemon.poll() is not None:
            return True
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.run_dir / "hyperd.sock"))
            except OSError:
                return False
        return True


@contextlib.contextmanager
def hyper(
    *, accel: str = "tcg", settings: dict[str, str] | None = None, tmpfs_mib: int = 0
) -> Iterator[Hyper]:
    """A running one; everything of it is gone afterwards."""
    require_private_network()
    host = Hyper(accel=accel, settings=settings, tmpfs_mib=tmpfs_mib)
    try:
        host.start()
        yield host
    finally:
        host.destroy()
