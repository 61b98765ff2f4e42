# SPDX-License-Identifier: Apache-2.0
"""A gigabyte each way arrives whole, and no process on the way grows with it."""

import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests import images
from tests.harness import Hyper

GIGABYTE = 1 << 30
MAX_RSS_MIB = 200  # of the command and of the daemon each; both hold some tens idle
IMAGE = "test.local/busybox"


@pytest.fixture
def busybox(host: Hyper, tmp_path: Path) -> str:
    images.write_layout(images.busybox_image(), tmp_path / "busybox", f"{IMAGE}:latest")
    host.ok("pull", "-q", f"oci:{tmp_path}/busybox:{IMAGE}:latest")
    return IMAGE


def _peak_rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.timeout(900)
def test_a_gigabyte_of_output_arrives_whole(host: Hyper, busybox: str):
    command = f"dd if=/dev/zero bs=64k count={GIGABYTE >> 16} 2>/dev/null"
    argv = host.argv("run", "--rm", busybox, "sh", "-c", command)
    total, peak = 0, 0.0
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while piece := os.read(child.stdout.fileno(), 1 << 20):
            assert not piece.strip(b"\0")
            total += len(piece)
            peak = _peak_rss_mib(child.pid)
        assert child.wait(60) == 0
    assert total == GIGABYTE
    assert peak < MAX_RSS_MIB
    assert host.daemon is not None
    assert _peak_rss_mib(host.daemon.pid) < MAX_RSS_MIB


@pytest.mark.timeout(900)
def test_a_gigabyte_of_input_arrives_whole(host: Hyper, busybox: str):
    block = os.urandom(1 << 20)
    expected = hashlib.md5(block * (GIGABYTE >> 20)).hexdigest()
    argv = host.argv("run", "--rm", "-i", busybox, "md5sum")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        stdin = child.stdin
        assert stdin is not None

        def feed() -> None:
            for _ in range(GIGABYTE >> 20):
                stdin.write(block)
            stdin.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        assert child.stdout is not None
        answer = child.stdout.read().split()[0].decode()
        feeder.join(60)
        assert child.wait(60) == 0
    assert answer == expected
    assert host.daemon is not None
    assert _peak_rss_mib(host.daemon.pid) < MAX_RSS_MIB


def test_tar_pipes_through_exec(host: Hyper, busybox: str, tmp_path: Path):
    (tmp_path / "src").mkdir()
    for number in range(50):
        (tmp_path / f"src/file-{number}").write_bytes(os.urandom(number * 1000))
    host.ok("run", "-d", "--name", "box", busybox, "sleep", "1000")
    packed = subprocess.run(
        ["tar", "-c", "-C", tmp_path / "src", "."], capture_output=True, check=True
    ).stdout
    host.ok("exec", "-i", "-w", "/tmp", "box", "tar", "x", stdin=packed)
    back = host.run("exec", "-w", "/tmp", "box", "tar", "c", ".").stdout
    (tmp_path / "back").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "back"], input=back, check=True)
    for file in (tmp_path / "src").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
