# SPDX-License-Identifier: Apache-2.0
"""hyperd killed in each phase of what makes, replaces, saves or brings back a VM: whole or not at all, nothing left.

What is waited for is what others can see of a phase: records, files, processes. Besides, moments by a seeded lot.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
MEMORY = "128m"
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done"
SOURCE, POINT = "source", "point"
N = 2
LOTS = (1, 2)  # seeds


@pytest.fixture(scope="module")
def own(layouts: Path) -> Iterator[Hyper]:
    with hyper(accel="auto") as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        host.ok("template", "build", "-m", MEMORY, timeout_s=BUILD_TIMEOUT_S)
        yield host


@pytest.fixture
def host(own: Hyper) -> Iterator[Hyper]:
    """With a source that counts, whose file says `then` at the snapshot and `now` since."""
    own.ok("run", "-d", "-m", MEMORY, "--name", SOURCE, BUSYBOX, "sh", "-c", COUNT)
    own.ok("exec", SOURCE, "sh", "-c", "echo then > /file")
    own.ok("snapshot", "create", SOURCE, "--name", POINT, timeout_s=120)
    own.ok("exec", SOURCE, "sh", "-c", "echo now > /file; sync")
    yield own
    left = own.ok("ps", "-aq").split()
    if left:
        own.ok("rm", "-f", *left, timeout_s=120)
    saved = own.ok("snapshot", "ls", "-q").split()
    if saved:
        own.ok("snapshot", "rm", *saved)
    own.require_no_leaks()


Moment = Callable[[Hyper], Callable[[], bool]]  # looks first at what is there before the call


def drafted(host: Hyper) -> Callable[[], bool]:
    """It is being saved."""
    return lambda: any((host.state_dir / "snapshots").glob(".draft-*"))


def recorded(host: Hyper) -> Callable[[], bool]:
    """The clones are in the records, and none of them may be seen yet."""

    def look() -> bool:
        with contextlib.closing(sqlite3.connect(host.state_dir / "records.sqlite")) as records:
            (count,) = records.execute("SELECT count(*) FROM sandbox WHERE pending = 1").fetchone()
        return bool(count)

    return look


def born(count: int) -> Moment:
    """So many QEMUs are there that were not before."""

    def begin(host: Hyper) -> Callable[[], bool]:
        before = host.qemu_processes().keys()
        return lambda: len(host.qemu_processes().keys() - before) >= count

    return begin


def died(host: Hyper) -> Callable[[], bool]:
    """The VM that was there has gone."""
    before = host.qemu_processes().keys()
    return lambda: bool(before - host.qemu_processes().keys())


def slept(host: Hyper) -> Callable[[], bool]:
    """Its memory is on the disk, whole."""
    return lambda: any((host.state_dir / "snapshots").glob("hibernation/*"))


def lot(seed: int, longest_s: float) -> Moment:
    def begin(_: Hyper) -> Callable[[], bool]:
        at = time.monotonic() + random.Random(seed).random() * longest_s
        return lambda: time.monotonic() >= at

    return begin


def moments(*named: Moment, longest_s: float) -> list[Moment]:
    return [*named, *(lot(seed, longest_s) for seed in LOTS)]


def killed_at(host: Hyper, moment: Moment, *call: str) -> None:
    """The call is begun, and hyperd is killed at that moment of it, or when it is over; then the next one starts."""
    is_now = moment(host)
    with subprocess.Popen(host.argv(*call), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as calling:
        wait_until(
            lambda: is_now() or calling.poll() is not None, f"{call[0]} at a moment of its", timeout_s=120
        )
        host.kill_daemon()
        calling.send_signal(signal.SIGTERM)
    host.start()


def counts_on(host: Hyper, name: str) -> None:
    before = last(host, name)
    wait_until(lambda: last(host, name) > before, f"{name} counts on")


def last(host: Hyper, name: str) -> int:
    lines = host.ok("logs", "--tail", "1", name).split()
    return int(lines[-1]) if lines else 0


def state(host: Hyper) -> str:
    return host.ok("inspect", "-f", "{{.State.Status}}", SOURCE)


@pytest.mark.parametrize("moment", moments(recorded, born(1), born(N), longest_s=2.0))
def test_a_restore_comes_whole_or_not_at_all(host: Hyper, moment: Moment):
    killed_at(host, moment, "run", "--from-snapshot", POINT, "-n", str(N), "--name", "clone")
    require_all_or_none(host)


@pytest.mark.parametrize("moment", moments(drafted, recorded, born(1), longest_s=3.0))
def test_a_fork_comes_whole_or_not_at_all(host: Hyper, moment: Moment):
    killed_at(host, moment, "fork", "-n", str(N), "--name", "clone", SOURCE)
    require_all_or_none(host)
    assert not list((host.state_dir / "snapshots").glob("sandbox/*/")) or host.ok("snapshot", "ls", "-q")


def require_all_or_none(host: Hyper) -> None:
    counts_on(host, SOURCE)

    def settled() -> bool:
        return len(clones(host)) in (0, N) and len(host.qemu_processes()) == 1 + len(clones(host))

    wait_until(settled, "all clones or none")
    for name in clones(host):
        counts_on(host, name)
        assert host.ok("exec", name, "cat", "/file") in ("then", "now")


def clones(host: Hyper) -> list[str]:
    return [
        name for name in host.ok("ps", "-a", "--format", "{{.Names}}").split() if name.startswith("clone")
    ]


@pytest.mark.parametrize("moment", moments(died, born(1), longest_s=2.0))
def test_a_rollback_goes_back_or_has_not_begun(host: Hyper, moment: Moment):
    killed_at(host, moment, "rollback", SOURCE, POINT)
    wait_until(lambda: state(host) == "running", "it runs")
    assert host.ok("exec", SOURCE, "cat", "/file") in ("then", "now")
    counts_on(host, SOURCE)
    host.ok("rollback", SOURCE, POINT, timeout_s=120)
    assert host.ok("exec", SOURCE, "cat", "/file") == "then"


@pytest.mark.parametrize("moment", moments(drafted, slept, died, longest_s=2.0))
def test_a_container_that_was_to_hibernate_sleeps_or_runs(host: Hyper, moment: Moment):
    killed_at(host, moment, "hibernate", SOURCE)
    wake(host)
    assert host.ok("exec", SOURCE, "cat", "/file") == "now"
    counts_on(host, SOURCE)
    numbers = [int(line) for line in host.ok("logs", SOURCE).split()]
    assert numbers == list(range(1, len(numbers) + 1)), "a line is missing or came twice"


@pytest.mark.parametrize("moment", moments(born(1), longest_s=1.5))
def test_a_container_that_was_to_wake_runs_or_sleeps_on(host: Hyper, moment: Moment):
    host.ok("hibernate", SOURCE, timeout_s=120)
    killed_at(host, moment, "wake", SOURCE)
    wake(host)
    assert host.ok("exec", SOURCE, "cat", "/file") == "now"
    counts_on(host, SOURCE)
    assert not list((host.state_dir / "snapshots").glob("hibernation/*"))


def wake(host: Hyper) -> None:
    """If it sleeps, which it must be able to say."""
    wait_until(lambda: state(host) in ("running", "hibernated"), "it runs or sleeps")
    if state(host) == "hibernated":
        assert not host.qemu_processes()
        host.ok("wake", SOURCE, timeout_s=120)


def kill_first_born(host: Hyper, *call: str) -> "subprocess.CompletedProcess[bytes]":
    """The call, and the first QEMU that it makes killed as the kernel would that has no memory left."""
    before = host.qemu_processes().keys()
    with subprocess.Popen(host.argv(*call), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as calling:
        wait_until(lambda: bool(host.qemu_processes().keys() - before), "a new QEMU")
        for pid in host.qemu_processes().keys() - before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stdout, stderr = calling.communicate(timeout=120)
    return subprocess.CompletedProcess(call, calling.returncode, stdout, stderr)


@pytest.mark.parametrize("call", [("run", "--from-snapshot", POINT), ("fork", SOURCE)])
def test_of_clones_whose_qemu_is_killed_none_comes(host: Hyper, call: tuple[str, ...]):
    failed = kill_first_born(host, call[0], "-n", str(N), "--name", "clone", *call[1:])
    assert failed.returncode == (125 if call[0] == "run" else 7), failed.stderr
    assert b"exited" in failed.stderr or b"ended" in failed.stderr, failed.stderr
    assert clones(host) == []
    wait_until(lambda: len(host.qemu_processes()) == 1, "only the source's VM is there")
    counts_on(host, SOURCE)
    host.ok(call[0], "-n", str(N), "--name", "clone", *call[1:], timeout_s=120)


def test_one_whose_qemu_is_killed_while_it_wakes_sleeps_on(host: Hyper):
    host.ok("hibernate", SOURCE, timeout_s=120)
    assert kill_first_born(host, "wake", SOURCE).returncode == 7
    assert state(host) == "hibernated"
    host.ok("wake", SOURCE, timeout_s=120)
    counts_on(host, SOURCE)


def test_more_clones_than_the_host_has_memory_for_are_refused_with_the_sum(host: Hyper):
    refused = host.run("fork", "-n", "900", SOURCE, timeout_s=120)
    assert refused.returncode == 5, refused.stderr
    assert b"MiB" in refused.stderr
    assert len(host.qemu_processes()) == 1
    counts_on(host, SOURCE)


def test_another_agent_and_another_daemon_leave_running_clones_as_they_are(
    own: Hyper, host: Hyper, tmp_path: Path
):
    """An agent is upgraded by what starts next; what runs keeps its own."""
    host.ok("run", "--from-snapshot", POINT, "--name", "clone", timeout_s=120)
    host.stop()
    upgraded = host.home / "initramfs.cpio"
    shutil.copyfile(Path(__file__).parents[2] / "build/assets/initramfs.cpio", upgraded)
    with upgraded.open("ab") as file:
        file.write(bytes(512))  # of padding: another digest, and what the kernel reads is the same
    host.settings["vm.initramfs"] = str(upgraded)
    try:
        host.start()
        for name in (SOURCE, "clone"):
            counts_on(host, name)
            assert host.ok("exec", name, "cat", "/file") in ("then", "now")
        host.ok("pause", "clone")
        host.ok("unpause", "clone")
        counts_on(host, "clone")
        refused = host.run("run", "--from-snapshot", POINT, timeout_s=120)
        assert refused.returncode == 125, refused.stderr
        assert b"initramfs_sha256: saved with" in refused.stderr
    finally:
        host.stop()
        del host.settings["vm.initramfs"]
        host.start()
    counts_on(host, "clone")
