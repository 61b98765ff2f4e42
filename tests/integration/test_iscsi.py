# SPDX-License-Identifier: Apache-2.0
"""A disk of an iSCSI server's in a real guest, with a password: it outlives hyperd and ends with its VM."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until
from tests.iscsi import iscsi_server, options_of

BUSYBOX = "test.local/busybox"
PASSWORD = "not-to-be-seen-1"


@pytest.fixture
def own(layouts: Path) -> Iterator[Hyper]:
    """A daemon that the test may kill."""
    with hyper(accel="auto") as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:{BUSYBOX}:latest")
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
        yield host


def test_a_guest_writes_to_an_iscsi_servers_disk_and_nobody_sees_the_password(
    own: Hyper, name: str, tmp_path: Path
):
    disk, password = tmp_path / "served.img", tmp_path / "password"
    disk.touch()
    os.truncate(disk, 128 << 20)
    password.write_text(PASSWORD)
    with iscsi_server(disk, "bob", PASSWORD) as server:
        options = options_of(server) | {"user": "bob", "password-file": str(password), "format": "true"}
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        own.ok("volume", "create", name, "--driver", "iscsi", *words)
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
        os.kill(min(own.qemu_processes()), signal.SIGKILL)
        wait_until(lambda: not own.door_processes(), "it ended with its VM")
        own.ok("start", name)
        assert own.ok("exec", name, "md5sum", "/data/f") == sums
        assert door not in own.door_processes()
        own.ok("stop", "-t", "1", name)
        assert not own.door_processes()
        subprocess.run(["e2fsck", "-f", "-n", disk], check=True, capture_output=True)
        shown = own.ok("volume", "inspect", name) + own.ok("inspect", name) + own.log.read_text()
        assert PASSWORD not in shown
        password.write_text("another")
        refused = own.run("start", name)
        assert (refused.returncode, b"Authentication failure" in refused.stderr) == (7, True)
        own.ok("rm", name)
        own.ok("volume", "rm", name)
    assert own.leaks() == []
