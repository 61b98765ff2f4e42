# SPDX-License-Identifier: Apache-2.0
"""Anything may be killed at any moment: `hyper ps` tells the truth, nothing is lost, nothing is left."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


@pytest.fixture
def own(layouts: Path) -> Iterator[Hyper]:
    """A daemon that the test may kill."""
    with hyper() as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        host.wait_for_template()  # no machine is there but the test's
        yield host
        host.clear()
        host.require_no_leaks()


def test_a_killed_daemon_loses_nothing(own: Hyper):
    own.ok("run", "-d", "--name", "survivor", BUSYBOX, "sh", "-c", COUNT)
    own.ok("run", "-d", "--name", "finisher", BUSYBOX, "sh", "-c", "sleep 3; echo over; exit 5")
    wait_until(lambda: "10" in own.ok("logs", "survivor").split(), "output before the kill")
    before = own.qemu_processes()
    own.kill_daemon()
    assert own.qemu_processes().keys() == before.keys()
    own.start()
    assert "survivor" in own.ok("ps")
    assert own.ok("exec", "survivor", "echo", "hello") == "hello"
    assert own.ok("wait", "finisher") == "5"
    assert own.ok("logs", "finisher") == "over"
    last = int(own.ok("logs", "--tail", "1", "survivor"))
    wait_until(lambda: int(own.ok("logs", "--tail", "1", "survivor")) > last, "output after the restart")
    own.ok("stop", "-t", "1", "survivor")
    numbers = [int(line) for line in own.ok("logs", "survivor").split()]
    assert numbers == list(range(1, len(numbers) + 1)), "a line is missing or came twice"


WRITE_MUCH = (
    "[ -f /done ] && exec cat /done; "
    "dd if=/dev/zero of=/big bs=1M count=48 2>/dev/null; echo kept > /done; echo end; exit 3"
)


@pytest.mark.parametrize("how", ["kill_daemon", "stop"])
def test_a_daemon_that_ends_while_a_container_ends_loses_neither_output_nor_files(own: Hyper, how: str):
    own.ok("run", "-d", "--name", "ending", BUSYBOX, "sh", "-c", WRITE_MUCH)
    wait_until(lambda: own.ok("inspect", "-f", "{{.State.Status}}", "ending") != "running", "it ends")
    getattr(own, how)()
    own.start()
    assert own.ok("wait", "ending") == "3"
    assert own.ok("logs", "ending") == "end"
    assert own.ok("start", "-a", "ending") == "kept"


def test_a_guest_that_is_stalled_when_a_daemon_starts_is_kept_and_reached_later(own: Hyper):
    own.ok("run", "-d", "--name", "slow", BUSYBOX, "sleep", "1000")
    qemu = next(iter(own.qemu_processes()))
    own.kill_daemon()
    os.kill(qemu, signal.SIGSTOP)
    try:
        own.start()  # libvirt waits 30 s for the monitor of the stalled QEMU
        wait_until(lambda: "(in trouble)" in own.ok("ps"), "it says so")
        assert "no agent answered" in own.ok("inspect", "-f", "{{.State.Error}}", "slow")
    finally:
        os.kill(qemu, signal.SIGCONT)
    wait_until(lambda: "(in trouble)" not in own.ok("ps"), "it is reached")
    assert own.ok("exec", "slow", "echo", "still here") == "still here"
    assert qemu in own.qemu_processes()


def test_a_killed_qemu_is_reported_as_lost(own: Hyper):
    own.ok("run", "-d", "--name", "victim", BUSYBOX, "sleep", "1000")
    os.kill(next(iter(own.qemu_processes())), signal.SIGKILL)
    assert own.ok("wait", "victim") == "125"
    assert "QEMU" in own.ok("inspect", "-f", "{{.State.Error}}", "victim")
    assert "victim" not in own.ok("ps")
    own.ok("start", "victim")
    assert own.ok("exec", "victim", "echo", "again") == "again"


def test_a_qemu_that_died_while_no_daemon_ran_is_reported_too(own: Hyper):
    own.ok("run", "-d", "--name", "victim", BUSYBOX, "sleep", "1000")
    own.kill_daemon()
    os.kill(next(iter(own.qemu_processes())), signal.SIGKILL)
    own.start()
    assert own.ok("wait", "victim") == "125"


def test_a_guest_that_panics_shows_its_console(own: Hyper):
    own.ok("run", "-d", "--privileged", "--name", "victim", BUSYBOX, "sleep", "1000")
    own.run("exec", "victim", "sh", "-c", "echo c > /proc/sysrq-trigger", timeout_s=60)
    assert own.ok("wait", "victim") == "125"
    evidence = own.ok("inspect", "-f", "{{.State.Error}}", "victim")
    assert "panic" in evidence
    assert "sysrq" in evidence.lower()


def test_a_second_daemon_on_the_same_state_is_refused(own: Hyper):

    flags = [f"--set={key}={value}" for key, value in own.settings.items()]
    second = subprocess.run(
        [own.bin / "hyperd", *flags], capture_output=True, text=True, timeout=30, check=False
    )
    assert second.returncode == 1
    assert own.daemon is not None
    assert str(own.daemon.pid) in second.stderr


def test_stopping_the_daemon_leaves_containers_running(own: Hyper):
    own.ok("run", "-d", "--name", "survivor", BUSYBOX, "sleep", "1000")
    own.stop()
    assert own.qemu_processes()
    own.start()
    assert own.ok("exec", "survivor", "echo", "hello") == "hello"
