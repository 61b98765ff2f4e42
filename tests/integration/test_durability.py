# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL on a volume while QEMU, hyperd or both are killed: what it has said is committed is there afterwards.

HYPER_ROUNDS: how often each is killed [1]. And a program that writes to a shared volume, whose virtiofsd is killed.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until
from tests.images import ROOT

IMAGE, BUSYBOX = "test.local/postgres", "test.local/busybox"
ROUNDS = int(os.environ.get("HYPER_ROUNDS", "1"))
BOX, VOLUME = "db", "pgdata"
SLOW_S = 300.0  # an emulated guest on a busy host makes a cluster
ENOUGH = 20  # transactions, before anything is killed

# What every command in it begins with.
PRELUDE = "export PATH=$(echo /usr/lib/postgresql/*/bin):/usr/bin:/bin PGHOST=/tmp PGDATA=/data/cluster; "
MAKE = "test -e /data/cluster/PG_VERSION || initdb -A trust -E UTF8 --no-locale >&2; "
SERVE = "exec postgres -c listen_addresses= -c jit=off -c unix_socket_directories=/tmp"
COMMITS = "yes 'INSERT INTO done DEFAULT VALUES RETURNING n;' | psql -qAt postgres"
ANSWERS = "psql -c 'SELECT 1' postgres"
LOAD = "pgbench -n -c 2 -T 3600 postgres"
BALANCES = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"


class Database:
    """A container that serves it, and a client whose every commit is written down here."""

    def __init__(self, host: Hyper, directory: Path) -> None:
        self.host = host
        self.told = directory / "told"

    def make(self) -> None:
        self.host.ok("volume", "create", VOLUME, "--size", "1g")
        mount = ("-v", f"{VOLUME}:/data")
        self.host.ok("run", "--rm", *mount, IMAGE, "/bin/sh", "-c", "chown 100:100 /data; chmod 700 /data")
        self.host.ok(
            "create", "--name", BOX, "-u", "100:100", *mount, "--tmpfs", "/tmp:mode=1777", IMAGE,
            "/bin/sh", "-c", PRELUDE + MAKE + SERVE,
        )  # fmt: skip
        self.start()
        self.shell(
            "pgbench -i -q -s 1 postgres && psql -q postgres -c 'CREATE TABLE done (n bigserial PRIMARY KEY)'"
        )

    def start(self) -> None:
        self.host.ok("start", BOX)
        wait_until(
            lambda: (
                self.host.run(
                    "exec", BOX, "/bin/sh", "-c", f"{PRELUDE} psql -c 'SELECT 1' postgres"
                ).returncode
                == 0
            ),
            "the database answers",
            timeout_s=SLOW_S,
        )

    def shell(self, script: str) -> str:
        return self.host.ok("exec", BOX, "/bin/sh", "-c", PRELUDE + script, timeout_s=SLOW_S)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Until the block ends it commits, and tells; there are ENOUGH when the block begins."""
        self.told.write_bytes(b"")
        with self.told.open("ab") as told:
            argv = self.host.argv(
                "exec", BOX, "/bin/sh", "-c", PRELUDE + f"{LOAD} >/dev/null 2>&1 & {COMMITS}"
            )
            with subprocess.Popen(argv, stdout=told, stderr=subprocess.DEVNULL) as client:
                try:
                    wait_until(lambda: len(self.commits()) >= ENOUGH, "it commits", timeout_s=SLOW_S)
                    yield
                finally:
                    client.kill()

    def commits(self) -> set[int]:
        """Whole lines alone: the last one may be cut off."""
        return {int(line) for line in self.told.read_bytes().rpartition(b"\n")[0].split()}

    def require_all(self) -> None:
        kept = {int(line) for line in self.shell("psql -qAt postgres -c 'SELECT n FROM done'").split()}
        told = self.commits()
        assert len(told) >= ENOUGH
        assert told <= kept, f"committed and lost: {sorted(told - kept)[:20]}"
        assert self.shell(f"psql -qAt postgres -c '{BALANCES}'") == "t"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with hyper() as host:
        host.ok("import", str(ROOT / "build/assets/postgres.tar"), IMAGE, timeout_s=BUILD_TIMEOUT_S)
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
        made = Database(host, tmp_path_factory.mktemp("durability"))
        made.make()
        yield made
        host.ok("rm", "-f", BOX)
        host.ok("volume", "rm", VOLUME)
        host.require_no_leaks()


def kill_qemu(host: Hyper) -> None:
    os.kill(int(host.ok("inspect", "-f", "{{.State.Pid}}", BOX)), signal.SIGKILL)


def require_sound(host: Hyper, directory: Path) -> None:
    """As a guest's kernel would: the journal first, then all of it."""
    disk = Path(host.ok("volume", "inspect", "-f", "{{.Mountpoint}}", VOLUME))
    copy = directory / "copy.img"
    subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    for flags, good in ((("-p",), (0, 1)), (("-f", "-n"), (0,))):
        finished = subprocess.run(["e2fsck", *flags, copy], capture_output=True, check=False)
        assert finished.returncode in good, finished.stdout + finished.stderr
    copy.unlink()


@pytest.mark.parametrize("killed", ["qemu", "hyperd", "both"])
def test_what_is_committed_is_there_whoever_is_killed(database: Database, killed: str, tmp_path: Path):
    host = database.host
    for _ in range(ROUNDS):
        with database.busy():
            if killed != "qemu":
                host.kill_daemon()
            if killed == "qemu":
                kill_qemu(host)
            if killed == "both":
                for pid in host.qemu_processes():
                    os.kill(pid, signal.SIGKILL)
        if killed != "qemu":
            host.start()
        if killed == "hyperd":
            assert host.ok("inspect", "-f", "{{.State.Status}}", BOX) == "running"
        else:
            wait_until(lambda: host.ok("inspect", "-f", "{{.State.Status}}", BOX) == "failed", "it is lost")
            require_sound(host, tmp_path)
            database.start()
        database.require_all()


@contextlib.contextmanager
def writing(argv: list[str], file: BinaryIO) -> Iterator[None]:
    with subprocess.Popen(argv, stdout=file, stderr=subprocess.DEVNULL) as writer:
        try:
            yield
        finally:
            writer.kill()


def server_of(host: Hyper, sandbox_id: str) -> int:
    """The virtiofsd of a container that has one."""
    words = sandbox_id[:12].encode()
    return min(pid for pid in host.share_processes() if words in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_what_is_synced_to_a_shared_volume_is_there_when_its_virtiofsd_is_killed(
    host: Hyper, name: str, tmp_path: Path
):
    """What virtiofsd has answered the host's kernel has: its end takes nothing that a guest was told is written."""
    host.ok("volume", "create", "--shared", name)
    pool = Path(host.ok("volume", "inspect", "-f", "{{.Mountpoint}}", name))
    told = tmp_path / "told"
    write = "echo $n-$n > /pool/new && sync /pool/new && mv /pool/new /pool/$n && echo $n"
    writes = f"n=0; while :; do n=$((n+1)); {write}; done"
    try:
        for box in (name, f"{name}-2"):
            host.ok("run", "-d", "--name", box, "-v", f"{name}:/pool", BUSYBOX, "sleep", "600")
        for _ in range(ROUNDS):
            with told.open("wb") as file, writing(host.argv("exec", name, "sh", "-c", writes), file):
                wait_until(lambda: told.read_bytes().count(b"\n") >= ENOUGH, "it writes", timeout_s=SLOW_S)
                os.kill(server_of(host, host.ok("inspect", "-f", "{{.Id}}", name)), signal.SIGKILL)
                wait_until(lambda: "in trouble" in host.ok("ps"), "it is told")
            numbers = [line.decode() for line in told.read_bytes().rpartition(b"\n")[0].split()]
            lost = [number for number in numbers if (pool / number).read_text() != f"{number}-{number}\n"]
            assert lost == []
            assert "is not served any more" in host.ok("inspect", "-f", "{{.State.Error}}", name)
            # Who has it by another virtiofsd goes on.
            assert (
                host.ok("exec", f"{name}-2", "cat", f"/pool/{numbers[-1]}") == f"{numbers[-1]}-{numbers[-1]}"
            )
            host.ok("stop", "-t", "1", name)
            host.ok("start", name)
            assert host.ok("exec", name, "cat", f"/pool/{numbers[0]}") == f"{numbers[0]}-{numbers[0]}"
            assert host.ok("inspect", "-f", "{{.State.Error}}", name) == ""
    finally:
        host.run("rm", "-f", name, f"{name}-2")
        host.run("volume", "rm", name)
