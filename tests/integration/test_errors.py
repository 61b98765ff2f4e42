# SPDX-License-Identifier: Apache-2.0
"""Bad input gets a clear error, the right status, and leaves nothing behind (the `host` fixture checks)."""

import pytest

from tests.harness import Hyper

BUSYBOX = "test.local/busybox"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("run", "--rm", BUSYBOX, "no-such-program"), 127, "no-such-program"),
        (("run", "--rm", "-d", BUSYBOX, "no-such-program"), 127, "no-such-program"),
        (("run", "--rm", "-d", "--init", BUSYBOX, "/etc"), 126, "/etc"),
        (("run", "--rm", BUSYBOX, ""), 127, 'exec: "": executable file not found'),
        (("run", "--rm", "-w", "/bin/sh", BUSYBOX, "true"), 125, "working directory /bin/sh"),
        (("run", "--rm", "--tmpfs", "/t:foo=1", BUSYBOX, "true"), 125, "foo=1"),
        (("run", "--rm", BUSYBOX, "/srv/not-executable"), 126, "not-executable"),
        (("run", "--rm", BUSYBOX, "/etc"), 126, "/etc"),
        (("run", "--rm", "-u", "nobody-knows", BUSYBOX, "true"), 125, "nobody-knows"),
        (("run", "--rm", "-m", "8m", BUSYBOX, "true"), 125, "8 MiB"),
        (("run", "--rm", "-m", "9999g", BUSYBOX, "true"), 125, "MiB"),
        (("run", "--rm", "--cpus", "1000", BUSYBOX, "true"), 125, "CPU"),
        (("run", "--rm", "--cap-add", "FLYING", BUSYBOX, "true"), 125, "FLYING"),
        (("run", "--rm", "--network", "nowhere", BUSYBOX, "true"), 125, "nowhere"),
        (("run", "--rm", "--pull", "never", "test.local/absent", "true"), 125, "absent"),
        (("run", "--rm", "UPPER:case", "true"), 125, "UPPER"),
        (("run", "--rm", "--name", "no good", BUSYBOX, "true"), 125, "no good"),
        (("inspect", "absent"), 1, "absent"),
        (("stop", "absent"), 1, "absent"),
        (("logs", "absent"), 1, "absent"),
        (("exec", "absent", "true"), 125, "absent"),
    ],
)
def test_what_cannot_be_done_is_said(host: Hyper, arguments: tuple[str, ...], status: int, says: str):
    finished = host.run(*arguments)
    message = finished.stderr.decode()
    assert says in message
    assert "Traceback" not in message
    assert "a bug" not in message
    expected = (status,) if status != 1 else (1, 3)
    assert finished.returncode in expected, message


def test_a_name_is_given_once(host: Hyper, name: str):
    host.ok("create", "--name", name, BUSYBOX, "true")
    finished = host.run("create", "--name", name, BUSYBOX, "true")
    assert finished.returncode == 4
    assert name in finished.stderr.decode()


def test_a_running_container_is_not_removed_without_force(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    finished = host.run("rm", name)
    assert finished.returncode == 4
    assert "running" in finished.stderr.decode()
    host.ok("rm", "-f", name)


def test_a_stopped_container_cannot_be_signalled(host: Hyper, name: str):
    host.ok("run", "--name", name, BUSYBOX, "true")
    finished = host.run("kill", name)
    assert finished.returncode == 4
    assert "not running" in finished.stderr.decode()


def test_stop_and_wait_mean_the_same_twice(host: Hyper, name: str):
    assert host.run("run", "--name", name, BUSYBOX, "sh", "-c", "exit 7").returncode == 7
    host.ok("stop", name)
    assert host.ok("wait", name) == "7"
    assert host.ok("wait", name) == "7"


def test_an_unreachable_registry_is_named(host: Hyper):
    finished = host.run("pull", "127.0.0.1:9/nothing:latest")
    assert finished.returncode == 7
    assert "127.0.0.1:9" in finished.stderr.decode()


def test_an_image_in_use_is_not_removed(host: Hyper, name: str):
    host.ok("create", "--name", name, BUSYBOX, "true")
    finished = host.run("rmi", BUSYBOX)
    assert finished.returncode == 4
    assert BUSYBOX in host.ok("images", "--format", "{{.Repository}}")
