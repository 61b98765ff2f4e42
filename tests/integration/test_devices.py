# SPDX-License-Identifier: Apache-2.0
"""What a container may do with devices: make any node, open those of Docker's list, and no disk of its guest."""

import pytest

from tests.harness import Hyper

BUSYBOX = "test.local/busybox"
MAKE_DISK = "major=$(awk '$2 == \"virtblk\" {print $1}' /proc/devices) && mknod /tmp/v b $major 0 && "


def test_a_disk_of_the_guest_can_be_named_but_not_opened(host: Hyper):
    finished = host.run("run", "--rm", BUSYBOX, "sh", "-c", MAKE_DISK + "echo made && head -c 1 /tmp/v")

    assert finished.stdout == b"made\n"
    assert b"/tmp/v: Operation not permitted" in finished.stderr
    assert finished.returncode == 1


@pytest.mark.parametrize("number", ["c 1 1", "c 10 200", "c 1 11"])
def test_other_devices_of_the_guest_are_refused(host: Hyper, number: str):
    finished = host.run("run", "--rm", BUSYBOX, "sh", "-c", f"mknod /tmp/d {number} && : < /tmp/d")

    assert b"/tmp/d: Operation not permitted" in finished.stderr


def test_a_process_that_joins_later_is_held_to_it_too(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    refused = host.run("exec", name, "sh", "-c", MAKE_DISK + "head -c 1 /tmp/v")
    host.ok("rm", "-f", name)

    assert b"/tmp/v: Operation not permitted" in refused.stderr


def test_a_privileged_container_has_the_guests_disks(host: Hyper):
    script = MAKE_DISK + "head -c 1024 /tmp/v | wc -c"

    assert host.ok("run", "--rm", "--privileged", BUSYBOX, "sh", "-c", script) == "1024"


def test_the_devices_of_every_container_work(host: Hyper):
    script = (
        "set -e; for d in zero random urandom full; do head -c 4 /dev/$d | wc -c; done; echo gone > /dev/null; "
        "wc -c < /dev/null; echo x > /dev/full || echo full; mknod /tmp/n c 1 3; echo gone > /tmp/n"
    )
    assert host.ok("run", "--rm", BUSYBOX, "sh", "-c", script).split() == ["4", "4", "4", "4", "0", "full"]
    typed = host.ok(
        "run", "--rm", "-t", BUSYBOX, "sh", "-c", "echo told > /dev/tty; echo said > /dev/console"
    )
    assert typed.split() == ["told", "said"]
