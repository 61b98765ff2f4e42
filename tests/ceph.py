# SPDX-License-Identifier: Apache-2.0
"""A Ceph cluster of our own, on loopback: one monitor, and one object store that keeps all of it in memory.

At Ceph's own ports: at others a client tries both of its protocols, and goes on for minutes where the key is wrong.
"""

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import wait_until

POOL = "rbd"
IMAGE = "disk"
USER = "hyper"
ADDRESSES = "[v2:127.0.0.1:3300,v1:127.0.0.1:6789]"
STORE_BYTES = 1 << 30  # at most
COMMAND_TIMEOUT_S = 60.0
CONF = """
[global]
fsid = {fsid}
mon host = 127.0.0.1
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {root}/keyring
run dir = {root}
mon data = {root}/mon
osd data = {root}/osd
admin socket =
pid file =
log file =
mon cluster log file = /dev/null
# One copy of everything, in one place.
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {store_bytes}
osd class update on start = false
osd client watch timeout = 5
# The host's disk may be nearly full: nothing of this is on it.
mon data avail crit = 1
"""


@dataclass(frozen=True)
class Ceph:
    root: Path
    key: str  # of USER, for POOL
    store: "subprocess.Popen[bytes]"

    def ask(self, *argv: str) -> str:
        """One of Ceph's own programs, as its administrator."""
        words = [argv[0], "--conf", f"{self.root}/ceph.conf", "--name", "client.admin", *argv[1:]]
        asked = subprocess.run(words, check=True, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        return asked.stdout

    def make_image(self, name: str, size_mib: int) -> None:
        self.ask("rbd", "create", "--size", f"{size_mib}M", f"{POOL}/{name}")

    def watchers(self, name: str) -> int:
        return self.ask("rbd", "status", f"{POOL}/{name}").count("watcher=")

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """It answers nobody."""
        os.kill(self.store.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.store.pid, signal.SIGCONT)

    def options(self, key_file: Path) -> dict[str, str]:
        return {"server": "127.0.0.1", "pool": POOL, "image": IMAGE, "user": USER, "key-file": str(key_file)}


@contextlib.contextmanager
def ceph_cluster(root: Path) -> Iterator[Ceph]:
    fsid, store_id = str(uuid.uuid4()), str(uuid.uuid4())
    for name in ("mon", "osd"):
        (root / name).mkdir(parents=True)
    conf = CONF.format(root=root, fsid=fsid, store_bytes=STORE_BYTES)
    (root / "ceph.conf").write_text(conf)
    _make_keys(root)
    _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", ADDRESSES, f"{root}/monmap")
    common = ("--conf", f"{root}/ceph.conf")
    _run("ceph-mon", *common, "--mkfs", "-i", "a", "--monmap", f"{root}/monmap")
    with _running(root / "mon.log", "ceph-mon", *common, "-f", "-i", "a"):
        ask = ("ceph", *common, "--name", "client.admin", "--connect-timeout", str(int(COMMAND_TIMEOUT_S)))
        _run(*ask, "osd", "new", store_id)
        _run("ceph-osd", *common, "-i", "0", "--mkfs", "--osd-uuid", store_id)
        with _running(root / "osd.log", "ceph-osd", *common, "-f", "-i", "0") as store:
            _run(*ask, "osd", "pool", "create", POOL, "1")
            wait_until(lambda: "1 up" in _run(*ask, "osd", "stat"), "the object store is up")
            _run(*ask, "osd", "pool", "application", "enable", POOL, "rbd")
            may = ("mon", "profile rbd", "osd", f"profile rbd pool={POOL}")
            key = _run(*ask, "auth", "get-or-create-key", f"client.{USER}", *may).strip()
            yield Ceph(root, key, store)


def _make_keys(root: Path) -> None:
    flags = ["--create-keyring"]
    for name, caps in {
        "mon.": {"mon": "allow *"},
        "client.admin": {"mon": "allow *", "osd": "allow *"},
        "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    }.items():
        words = [word for daemon, may in caps.items() for word in ("--cap", daemon, may)]
        _run("ceph-authtool", *flags, f"{root}/keyring", "--gen-key", "-n", name, *words)
        flags = []


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr[-2000:]}"
    return done.stdout


@contextlib.contextmanager
def _running(log: Path, *argv: str) -> "Iterator[subprocess.Popen[bytes]]":
    with log.open("wb") as file, subprocess.Popen(argv, stdout=file, stderr=file) as process:
        try:
            yield process
        finally:
            process.kill()
