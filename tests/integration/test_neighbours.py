# SPDX-License-Identifier: Apache-2.0
"""Two hyperds on one host, and two guests of one hyperd."""

from pathlib import Path

from tests.harness import Hyper, hyper

BUSYBOX = "test.local/busybox"


def test_a_second_hyperd_leaves_the_first_ones_guests_on_the_network(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "600")
    with hyper():
        host.ok("exec", name, "ping", "-c", "1", "-W", "5", host.gateway)
    host.ok("rm", "-f", name)


def test_two_guests_are_two_users_of_the_host(host: Hyper, name: str):
    names = [f"{name}-{number}" for number in (1, 2)]
    ids = [host.ok("run", "-d", "--name", each, BUSYBOX, "sleep", "600").strip() for each in names]
    pids = [next(pid for pid, words in host.qemu_processes().items() if each in words) for each in ids]
    uids = [Path(f"/proc/{pid}").stat().st_uid for pid in pids]
    disks = [host.state_dir / "storage/sandboxes" / each / "writable.img" for each in ids]
    assert len(set(uids)) == 2
    assert [disk.stat().st_uid for disk in disks] == uids
    host.ok("rm", "-f", *names)
