# SPDX-License-Identifier: Apache-2.0
"""Real guests that stand still, are saved, and go on: the same one, or several others."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
COUNT = "i=0; while true; do i=$((i+1)); echo $i; echo $i > /last; sleep 0.2; done"
MEMORY = "128m"


@pytest.fixture(scope="module")
def own(layouts: Path) -> Iterator[Hyper]:
    """A daemon that the tests may kill."""
    with hyper(accel="auto") as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        host.ok(
            "template", "build", "-m", MEMORY, timeout_s=BUILD_TIMEOUT_S
        )  # no machine is there but the test's
        yield host


@pytest.fixture
def host(own: Hyper) -> Iterator[Hyper]:
    yield own
    own.clear(snapshots=True)
    own.require_no_leaks()


def counter(host: Hyper, name: str = "counter") -> None:
    host.ok("run", "-d", "-m", MEMORY, "--name", name, BUSYBOX, "sh", "-c", COUNT)
    wait_until(lambda: last(host, name) >= 5, f"{name} counts")


def last(host: Hyper, name: str) -> int:
    lines = host.ok("logs", "--tail", "1", name).split()
    return int(lines[-1]) if lines else 0


def inspected(host: Hyper, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(host.ok("inspect", name))[0]
    return found


def test_a_paused_container_stands_still_and_goes_on(host: Hyper):
    counter(host)
    host.ok("pause", "counter")
    assert "(Paused)" in host.ok("ps")
    before = last(host, "counter")
    refused = host.run("exec", "counter", "true")
    assert b"is paused" in refused.stderr
    assert b"hyper unpause" in refused.stderr
    assert last(host, "counter") == before
    host.ok("unpause", "counter")
    wait_until(lambda: last(host, "counter") > before, "it counts on")
    numbers = [int(line) for line in host.ok("logs", "counter").split()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_killed_daemon_keeps_it_paused(host: Hyper):
    counter(host)
    host.ok("pause", "counter")
    host.kill_daemon()
    host.start()
    assert "(Paused)" in host.ok("ps")
    before = last(host, "counter")
    host.ok("unpause", "counter")
    wait_until(lambda: last(host, "counter") > before, "it counts on")
    host.ok("pause", "counter")
    host.ok("stop", "-t", "1", "counter")
    assert host.ok("inspect", "-f", "{{.State.Status}}", "counter") == "exited"


def test_clones_count_on_from_where_the_source_was_each_as_its_own(host: Hyper):
    counter(host)
    host.ok("snapshot", "create", "counter", "--name", "at", timeout_s=120)
    saved = last(host, "counter")
    clones = host.ok("run", "--from-snapshot", "at", "-n", "3", "--name", "twin", timeout_s=120).split()
    assert len(clones) == 3
    names = ["counter", "twin-0", "twin-1", "twin-2"]
    for name in names:
        before = last(host, name)
        wait_until(lambda name=name, before=before: last(host, name) > before, f"{name} counts on")  # type: ignore[misc]
    for name in names[1:]:
        numbers = [int(line) for line in host.ok("logs", name).split()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert 5 < numbers[0] <= saved + 1
        assert int(host.ok("exec", name, "cat", "/last")) >= numbers[0]
    for command in (
        ("hostname",),
        ("cat", "/etc/machine-id"),
        ("cat", "/sys/class/net/eth0/address"),
        ("sh", "-c", "ip -o -4 addr show eth0"),
        ("cat", "/proc/sys/kernel/random/boot_id"),
        ("sh", "-c", "head -c 32 /dev/urandom | md5sum"),
    ):
        answers = {host.ok("exec", name, *command) for name in names}
        assert len(answers) == len(names), (command, answers)
    host.ok("exec", "twin-0", "sh", "-c", "echo mine > /mine")
    assert host.run("exec", "twin-1", "cat", "/mine").returncode != 0
    host.ok("stop", "-t", "1", "twin-0")
    host.ok("start", "twin-0")
    assert host.ok("exec", "twin-0", "cat", "/mine") == "mine"
    gateway = host.gateway
    assert host.run("exec", "twin-1", "ping", "-c", "1", "-W", "5", gateway).returncode == 0


def test_a_forkpoint_returns_in_each_clone_with_its_index(host: Hyper):
    script = (
        'eval "$(/run/hyper/forkpoint)"; '
        'echo "clone $HYPER_FORK_INDEX of $HYPER_FORK_COUNT, seed $SEED"; exec sleep 1000'
    )
    host.ok("run", "-d", "-m", MEMORY, "--name", "forker", BUSYBOX, "sh", "-c", script)
    waiting = "for p in /proc/[0-9]*; do cat $p/cmdline; echo; done"
    wait_until(
        lambda: "\n/run/hyper/forkpoint" in host.ok("exec", "forker", "sh", "-c", waiting).replace("\0", " "),
        "it is at its forkpoint",
    )
    host.ok("fork", "-n", "2", "--name", "f", "-e", "SEED=7", "forker", timeout_s=120)
    for index in (0, 1):
        said = f"clone {index} of 2, seed 7"
        wait_until(lambda index=index, said=said: host.ok("logs", f"f-{index}") == said, "it returned")  # type: ignore[misc]
    assert host.ok("logs", "forker") == ""


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.5])
def test_a_daemon_killed_in_the_middle_of_a_snapshot_leaves_a_source_that_goes_on(
    host: Hyper, delay_s: float
):
    counter(host)
    with subprocess.Popen(
        host.argv("snapshot", "create", "counter", "--name", "never"), stderr=subprocess.DEVNULL
    ) as creating:
        with contextlib.suppress(subprocess.TimeoutExpired):
            creating.wait(delay_s)
        host.kill_daemon()
        creating.send_signal(signal.SIGTERM)
    host.start()
    before = last(host, "counter")
    wait_until(lambda: last(host, "counter") > before, "it counts on")
    assert host.ok("exec", "counter", "echo", "hello") == "hello"
    assert host.ok("ps", "-q").split()
    saved = host.ok("snapshot", "ls", "-q").split()
    if saved:  # it was quicker than the kill: then it is whole
        host.ok("run", "--from-snapshot", "never", "--name", "whole", timeout_s=120)


def test_a_disk_without_room_says_so_and_the_source_goes_on(layouts: Path):
    with hyper(accel="auto", tmpfs_mib=700) as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        counter(host)
        refused, made = host.run("snapshot", "create", "counter", timeout_s=120), 0
        while refused.returncode == 0 and made < 20:
            refused, made = host.run("snapshot", "create", "counter", timeout_s=120), made + 1
        assert refused.returncode == 5, refused.stderr
        assert b"no space" in refused.stderr
        before = last(host, "counter")
        wait_until(lambda: last(host, "counter") > before, "it counts on")
        assert len(host.ok("snapshot", "ls", "-q").split()) == made
        host.ok("rm", "-f", "counter")


def test_a_fork_leaves_the_source_and_no_snapshot(host: Hyper):
    counter(host)
    host.ok("fork", "-n", "2", "--name", "child", "counter", timeout_s=120)
    for name in ("counter", "child-0", "child-1"):
        before = last(host, name)
        wait_until(lambda name=name, before=before: last(host, name) > before, f"{name} counts on")  # type: ignore[misc]
    assert host.ok("snapshot", "ls", "-q") == ""
    assert not list((host.state_dir / "snapshots").glob("sandbox/*"))


def test_a_rollback_takes_back_what_was_done_since(host: Hyper):
    counter(host)
    host.ok("exec", "counter", "sh", "-c", "echo before > /file")
    address = host.ok("exec", "counter", "sh", "-c", "ip -o -4 addr show eth0")
    host.ok("snapshot", "create", "counter", "--name", "back", timeout_s=120)
    saved = last(host, "counter")
    host.ok("exec", "counter", "sh", "-c", "echo after > /file; sync")
    wait_until(lambda: last(host, "counter") > saved + 10, "it counts on")
    host.ok("rollback", "counter", "back", timeout_s=120)
    assert host.ok("exec", "counter", "cat", "/file") == "before"
    assert host.ok("exec", "counter", "sh", "-c", "ip -o -4 addr show eth0") == address
    wait_until(lambda: last(host, "counter") > saved, "it counts on from there")
    numbers = [int(line) for line in host.ok("logs", "counter").split()]
    again = next(at for at in range(1, len(numbers)) if numbers[at] <= numbers[at - 1])
    assert numbers[:again] == list(range(1, again + 1)), "a line is missing or came twice"
    assert numbers[again:] == list(range(numbers[again], numbers[again] + len(numbers) - again))
    assert numbers[again] <= saved + 1
    host.ok("exec", "counter", "sh", "-c", "echo again > /file; sync")
    host.ok("rollback", "counter", "back", timeout_s=120)
    host.ok("exec", "counter", "sh", "-c", "cat /file > /copy")
    host.ok("stop", "-t", "1", "counter", timeout_s=60)
    host.ok("start", "counter", timeout_s=120)  # from the disk that it went back to
    assert host.ok("exec", "counter", "cat", "/copy") == "before"


def test_a_hibernated_container_holds_no_memory_and_goes_on_where_it_was(host: Hyper):
    counter(host)
    host.ok("exec", "counter", "sh", "-c", "echo kept > /file")
    address = host.ok("exec", "counter", "sh", "-c", "ip -o -4 addr show eth0")
    host.ok("hibernate", "counter", timeout_s=120)
    assert not host.qemu_processes()
    slept = last(host, "counter")
    host.kill_daemon()
    host.start()
    assert b"is hibernated" in host.run("exec", "counter", "true").stderr
    host.ok("wake", "counter", timeout_s=120)
    wait_until(lambda: last(host, "counter") > slept, "it counts on")
    numbers = [int(line) for line in host.ok("logs", "counter").split()]
    assert numbers == list(range(1, len(numbers) + 1)), "a line is missing or came twice"
    assert host.ok("exec", "counter", "cat", "/file") == "kept"
    assert host.ok("exec", "counter", "sh", "-c", "ip -o -4 addr show eth0") == address
    assert not list((host.state_dir / "snapshots").glob("hibernation/*"))
    host.ok("hibernate", "counter", timeout_s=120)
    host.ok("rm", "counter")
    assert not list((host.state_dir / "snapshots").glob("hibernation/*"))
