# SPDX-License-Identifier: Apache-2.0
"""A server's disk behind a door in a real guest, with a secret: it outlives hyperd and ends with its VM."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ceph import IMAGE, POOL, ceph_cluster
from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until
from tests.iscsi import iscsi_server, options_of

BUSYBOX = "test.local/busybox"
PASSWORD = "not-to-be-seen-1"
SIZE_MIB = 128


@pytest.fixture
def own(layouts: Path) -> Iterator[Hyper]:
    """A daemon that the test may kill."""
    with hyper(accel="auto") as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:{BUSYBOX}:latest")
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
        yield host


@dataclass(frozen=True)
class Served:
    """A disk of a server's, and who is let in."""

    driver: str
    options: dict[str, str]
    secret_file: Path
    secret: str
    wrong: str
    refusal: bytes
    copy: Callable[[], Path]  # of what the server has


@pytest.fixture
def iscsi(tmp_path: Path) -> Iterator[Served]:
    disk, password = tmp_path / "served.img", tmp_path / "password"
    disk.touch()
    os.truncate(disk, SIZE_MIB << 20)
    password.write_text(PASSWORD)
    with iscsi_server(disk, "bob", PASSWORD) as server:
        options = options_of(server) | {"user": "bob", "password-file": str(password)}
        refusal = b"Authentication failure"
        yield Served("iscsi", options, password, PASSWORD, "another", refusal, lambda: disk)


@pytest.fixture
def rbd(tmp_path: Path) -> Iterator[Served]:
    key_file, exported = tmp_path / "key", tmp_path / "copy.img"
    with ceph_cluster(tmp_path / "ceph") as ceph:
        ceph.make_image(IMAGE, SIZE_MIB)
        key_file.write_text(ceph.key)
        wrong = ceph.key[:-10] + ("B" if ceph.key[-10] == "A" else "A") + ceph.key[-9:]

        def copy() -> Path:
            ceph.ask("rbd", "export", f"{POOL}/{IMAGE}", str(exported))
            return exported

        refusal = b"error connecting: Permission denied"
        yield Served("rbd", ceph.options(key_file), key_file, ceph.key, wrong, refusal, copy)


@pytest.fixture(params=["iscsi", "rbd"])
def served(request: pytest.FixtureRequest) -> Served:
    found: Served = request.getfixturevalue(request.param)
    return found


def test_a_guest_writes_to_a_servers_disk_and_nobody_sees_the_secret(own: Hyper, name: str, served: Served):
    options = served.options | {"format": "true"}
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    own.ok("volume", "create", name, "--driver", served.driver, *words)
    own.ok("run", "-d", "--name", name, "-v", f"{name}:/data", BUSYBOX, "sleep", "600")
    assert own.ok("inspect", "-f", "{{.Start.Path}}", name) == "template"
    sums = own.ok(
        "exec",
        name,
        "sh",
        "-c",
        "dd if=/dev/urandom of=/data/f bs=64k count=8 conv=fsync 2>/dev/null; md5sum /data/f",
    )
    (door,) = own.door_processes()
    own.kill_daemon()
    own.start()
    assert own.ok("exec", name, "md5sum", "/data/f") == sums
    os.kill(door, signal.SIGKILL)
    wait_until(lambda: "in trouble" in own.ok("ps"), "ps says it")
    told = f"nobody speaks to the server of volume {name} any more: /data has I/O errors"
    assert told in own.ok("inspect", "-f", "{{.State.Error}}", name)
    assert own.ok("exec", name, "echo", "alive") == "alive"
    own.ok("stop", "-t", "1", name)
    own.ok("start", name)
    assert own.ok("exec", name, "md5sum", "/data/f") == sums
    (door,) = own.door_processes()
    os.kill(min(own.qemu_processes()), signal.SIGKILL)
    wait_until(lambda: not own.door_processes(), "it ended with its VM")
    own.ok("start", name)
    assert own.ok("exec", name, "md5sum", "/data/f") == sums
    assert door not in own.door_processes()
    own.ok("stop", "-t", "1", name)
    assert not own.door_processes()
    subprocess.run(["e2fsck", "-f", "-n", served.copy()], check=True, capture_output=True)
    shown = own.ok("volume", "inspect", name) + own.ok("inspect", name) + own.log.read_text()
    assert served.secret not in shown
    served.secret_file.write_text(served.wrong)
    refused = own.run("start", name)
    assert (refused.returncode, served.refusal in refused.stderr) == (7, True)
    own.ok("rm", name)
    own.ok("volume", "rm", name)
    assert own.leaks() == []
