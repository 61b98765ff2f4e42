# SPDX-License-Identifier: Apache-2.0
"""Containers from spares are containers like any other, and spares leave nothing."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
APP = "test.local/app"  # of three layers
COUNT = "i=0; while true; do i=$((i+1)); echo $i; echo $i > /last; sleep 0.2; done"


@pytest.fixture(scope="module")
def own(layouts: Path) -> Iterator[Hyper]:
    """A daemon that the tests may kill."""
    with hyper(settings={"template.spares": "1"}) as host:
        for name in ("busybox", "app"):
            host.ok("pull", "-q", f"oci:{layouts}/{name}:test.local/{name}:latest")
        yield host


@pytest.fixture
def host(own: Hyper) -> Iterator[Hyper]:
    """With a spare that is ready."""
    own.wait_for_spare()
    yield own
    own.clear(snapshots=True)
    volumes = own.ok("volume", "ls", "-q").split()
    if volumes:
        own.ok("volume", "rm", *volumes)
    own.require_no_leaks()


def path_of(host: Hyper, name: str) -> str:
    start = json.loads(host.ok("inspect", name))[0]["Start"]
    return f"{start['Path']} {start['Note']}".strip()


def disk_of(host: Hyper, name: str) -> Path:
    return host.state_dir / "storage/sandboxes" / host.ok("inspect", "-f", "{{.Id}}", name) / "writable.img"


def last(host: Hyper, name: str) -> int:
    lines = host.ok("logs", "--tail", "1", name).split()
    return int(lines[-1]) if lines else 0


def goes_on(host: Hyper, name: str, number: int) -> None:
    wait_until(lambda: last(host, name) > number, f"{name} goes on")


def counting(host: Hyper, name: str) -> None:
    host.ok("run", "-d", "--name", name, BUSYBOX, "sh", "-c", COUNT)
    assert path_of(host, name) == "spare"
    wait_until(lambda: last(host, name) >= 3, f"{name} counts")


def test_it_has_its_image_its_address_and_its_volumes(host: Hyper):
    shown = ("cat hello; ls -A /data; ip -o -4 addr show eth0",)
    told = host.ok("run", "--name", "box", "-v", "kept:/data", "-p", "18080:80", APP, *shown).split()
    assert path_of(host, "box") == "spare"
    assert told == host.ok("start", "-a", "box").split()  # from the template, with the same disk and lease
    assert path_of(host, "box") == "template"


def test_what_it_wrote_is_there_when_it_starts_again_and_nothing_else(host: Hyper):
    host.ok("run", "--name", "box", BUSYBOX, "sh", "-c", "cat /kept; echo line >> /kept; ls -A / > /all")
    assert path_of(host, "box") == "spare"
    assert host.ok("diff", "box").split() == ["A", "/all", "A", "/kept"]
    disk = disk_of(host, "box")
    subprocess.run(["e2fsck", "-fn", str(disk)], check=True, capture_output=True)
    listed = subprocess.run(
        ["debugfs", "-R", "ls -p /", str(disk)], capture_output=True, text=True, check=True
    )
    names = {line.split("/")[5] for line in listed.stdout.splitlines() if line.count("/") > 5}
    assert names == {".", "..", "lost+found", "container"}
    assert host.ok("start", "-a", "box") == "line"


def test_nothing_of_the_rehearsal_is_in_it(host: Hyper):
    script = "ls /sys/fs/cgroup; ls /run/hyper; ls /proc | grep -c '^[0-9]'; grep -c . /proc/mounts; ls -A /"
    host.ok("run", "--name", "spared", BUSYBOX, "sh", "-c", script)
    assert path_of(host, "spared") == "spare"
    host.ok("run", "--name", "plain", "--storage-opt", "size=1g", BUSYBOX, "sh", "-c", script)
    assert path_of(host, "plain") == "template"
    assert host.ok("logs", "spared") == host.ok("logs", "plain")


def test_it_is_saved_cloned_forked_and_put_to_sleep(host: Hyper):
    counting(host, "box")
    host.ok("snapshot", "create", "box", "--name", "saved")
    host.ok("run", "--from-snapshot", "saved", "--name", "clone", timeout_s=BUILD_TIMEOUT_S)
    host.ok("fork", "box", "-n", "1", "--name", "forked", timeout_s=BUILD_TIMEOUT_S)
    for name in ("clone", "forked"):
        goes_on(host, name, last(host, name))
    host.ok("rm", "-f", "clone", "forked")
    host.ok("hibernate", "box")
    asleep = last(host, "box")
    host.ok("wake", "box", timeout_s=BUILD_TIMEOUT_S)
    goes_on(host, "box", asleep)
    assert host.ok("exec", "box", "sh", "-c", "cat /last > /copy; echo ok") == "ok"


def test_it_outlives_the_daemon_and_the_spare_that_waits_does_not(host: Hyper):
    counting(host, "box")
    host.wait_for_spare()
    (box,) = [
        pid for pid in host.qemu_processes() if str(pid) == host.ok("inspect", "-f", "{{.State.Pid}}", "box")
    ]
    before = set(host.qemu_processes())
    assert len(before) == 2
    host.kill_daemon()
    assert set(host.qemu_processes()) == before
    host.start()
    wait_until(lambda: not (before - {box}) & set(host.qemu_processes()), "the spare is gone")
    number = last(host, "box")
    goes_on(host, "box", number)
    assert host.ok("exec", "box", "cat", "/proc/sys/kernel/random/boot_id")


def test_a_daemon_killed_while_a_spare_is_made_leaves_nothing(host: Hyper):
    spares = set(host.qemu_processes())
    host.ok("run", "--rm", BUSYBOX, "true")
    wait_until(lambda: bool(set(host.qemu_processes()) - spares), "the next one is being made")
    host.kill_daemon()
    host.settings["template.spares"] = "0"
    host.start()
    try:
        host.require_no_leaks()
    finally:
        host.stop()
        host.settings["template.spares"] = "1"
        host.start()


def test_a_spare_whose_qemu_is_killed_is_replaced(host: Hyper):
    (pid,) = host.qemu_processes()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in host.qemu_processes() and bool(host.qemu_processes()), "another is made")
    host.wait_for_spare()
    host.ok("run", "--name", "box", BUSYBOX, "true")
    assert path_of(host, "box") == "spare"


def test_the_daemon_takes_its_spares_with_it(host: Hyper):
    host.stop()
    try:
        assert not host.qemu_processes()
        host.require_no_leaks()
    finally:
        host.start()


def test_the_info_counts_them_and_none_may_be_wanted(host: Hyper):
    info = json.loads(host.ok("info", "--format", "json"))
    assert (info["Spares"], info["SparesReady"]) == (1, 1)
    host.ok("template", "rm", *host.ok("template", "ls", "-q").split())
    wait_until(lambda: not host.qemu_processes(), "the spare goes with its template")
    host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
    host.wait_for_spare()


def test_memory_that_is_not_shared_does_not_matter(layouts: Path):
    with hyper(settings={"template.spares": "1", "template.share_memory": "false"}) as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        host.wait_for_spare()
        assert host.ok("run", "--name", "box", BUSYBOX, "echo", "ok") == "ok"
        assert path_of(host, "box") == "spare"
        host.ok("rm", "box")
        host.require_no_leaks()
