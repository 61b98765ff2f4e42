# SPDX-License-Identifier: Apache-2.0
"""Disks in a real guest, and what is on them after their power has failed: a server's, and a volume's file.

The server (tests/losing.py) keeps what is written in memory until it is told to flush, the file (tests/losing_file.py)
until somebody syncs it: what a guest's fsync, or its file system's journal, does not bring through QEMU to the disk is
lost with it. So these show that each flush of a guest's becomes one of the host's before the guest hears of it; what
the host's own file system and its disk make of that is theirs.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Hyper, wait_until
from tests.losing import LosingDisk, losing_disk
from tests.losing_file import losing_file

BUSYBOX = "test.local/busybox"
SIZE = 64 << 20


@pytest.fixture
def volume(host: Hyper, name: str) -> Iterator[str]:
    yield name
    host.run("rm", "-f", name)
    host.run("volume", "rm", name)
    assert not host.ok("volume", "ls", "-q")


def created(host: Hyper, volume: str, disk: LosingDisk) -> None:
    host.ok(
        "volume", "create", volume, "--driver", "nbd", "-o", f"server=127.0.0.1:{disk.port}",
        "-o", "export=disk", "-o", "format=true",
    )  # fmt: skip


def require_sound(disk: Path) -> None:
    finished = subprocess.run(["e2fsck", "-p", disk], capture_output=True, check=False)
    assert finished.returncode in (0, 1), finished.stdout + finished.stderr
    finished = subprocess.run(["e2fsck", "-f", "-n", disk], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_what_was_synced_is_there_after_a_power_cut(host: Hyper, volume: str, tmp_path: Path):
    path = tmp_path / "served.img"
    with losing_disk(path, SIZE) as disk:
        created(host, volume, disk)
        host.ok("run", "-d", "--name", volume, "-v", f"{volume}:/data", BUSYBOX, "sleep", "600")
        assert host.ok("inspect", "-f", "{{.Start.Path}}", volume) in (
            "spare",
            "template",
        )  # plugged in, not booted
        script = "for n in 1 2 3 4 5; do dd if=/dev/urandom of=/data/$n bs=64k count=4 conv=fsync; done 2>/dev/null"
        sums = host.ok("exec", volume, "sh", "-c", f"{script}; cd /data; md5sum 1 2 3 4 5")
        # On its way and never synced: the guest has it in its cache, the server in its memory at the most.
        host.ok("exec", volume, "sh", "-c", "echo lost > /data/unsynced")
        pid = int(host.ok("inspect", "-f", "{{.State.Pid}}", volume))
        disk.lose_power()
        assert disk.flushes > 0
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: host.ok("inspect", "-f", "{{.State.Status}}", volume) == "failed", "it is lost")
    refused = host.run("start", volume)
    assert refused.returncode == 7
    assert b"the server cannot be reached" in refused.stderr
    copy = tmp_path / "copy.img"
    shutil.copy(path, copy)
    require_sound(copy)
    with losing_disk(path, SIZE) as disk:
        host.ok("rm", volume)
        host.ok("volume", "rm", volume)
        host.ok(
            "volume",
            "create",
            volume,
            "-d",
            "nbd",
            "-o",
            f"server=127.0.0.1:{disk.port}",
            "-o",
            "export=disk",
        )
        host.ok("run", "-d", "--name", volume, "-v", f"{volume}:/data", BUSYBOX, "sleep", "600")
        assert host.ok("exec", volume, "sh", "-c", "cd /data; md5sum 1 2 3 4 5") == sums
        for command in (("volume", "resize", volume, "1g"), ("snapshot", "create", "--volume", volume)):
            assert host.run(*command).returncode == 9, command
        host.ok("stop", "-t", "1", volume)
        host.ok("rm", volume)
    require_sound(path)


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_what_was_synced_to_a_volume_of_ones_own_is_there_after_a_power_cut(
    host: Hyper, volume: str, tmp_path: Path, filesystem: str
):
    host.ok("volume", "create", volume, "--fs", filesystem, "--size", "320m")
    path = Path(host.ok("volume", "inspect", "-f", "{{.Mountpoint}}", volume))
    with losing_file(path) as file:
        host.ok("run", "-d", "--name", volume, "-v", f"{volume}:/data", BUSYBOX, "sleep", "600")
        synced = "for n in 1 2 3 4 5; do dd if=/dev/urandom of=/data/$n bs=64k count=4 conv=fsync; done 2>/dev/null"
        sums = host.ok("exec", volume, "sh", "-c", f"{synced}; cd /data; md5sum 1 2 3 4 5")
        assert file.syncs > 0
        # To QEMU, and so to the file, but synced by nobody.
        host.ok(
            "exec",
            volume,
            "dd",
            "if=/dev/zero",
            "of=/data/5",
            "bs=64k",
            "count=4",
            "conv=notrunc",
            "oflag=direct",
        )
        pid = int(host.ok("inspect", "-f", "{{.State.Pid}}", volume))
        file.lose_power()
        assert file.lost_pages > 0
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: host.ok("inspect", "-f", "{{.State.Status}}", volume) == "failed", "it is lost")
    host.ok("start", volume)  # whoever mounts it plays its journal
    kept = host.ok("exec", volume, "sh", "-c", "cd /data; md5sum 1 2 3 4").splitlines()
    assert kept == sums.splitlines()[:4]
    host.ok("stop", "-t", "1", volume)
    check = ("xfs_repair", "-n") if filesystem == "xfs" else ("e2fsck", "-f", "-n")
    finished = subprocess.run([*check, path], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
