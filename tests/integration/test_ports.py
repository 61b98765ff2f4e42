# SPDX-License-Identifier: Apache-2.0
"""Ports of real guests, published on the host: taken, held, given back, through restarts and kills of hyperd."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.harness import Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
SERVE = "while true; do echo hello | nc -l -p 80; done"


def ask(port: int, address: str = "127.0.0.1") -> bytes:
    """What the server says; b"" while there is none."""
    try:
        with socket.create_connection((address, port), timeout=5) as client:
            return client.recv(100)
    except OSError:
        return b""


def has_rule(host: Hyper, port: int) -> bool:
    rules = subprocess.run(
        ["nft", "list", "table", "inet", f"hyper_{host.bridge}"], capture_output=True, text=True, check=True
    ).stdout
    return f". {port} :" in rules


def test_a_published_port_answers_and_is_free_when_the_container_has_stopped(host: Hyper, name: str):
    host.ok(
        "run", "-d", "--name", name, "-p", "8080:80", "-p", "127.0.0.1::53/udp", BUSYBOX, "sh", "-c", SERVE
    )
    wait_until(lambda: ask(8080) == b"hello\n", "it answers at 127.0.0.1")
    wait_until(lambda: ask(8080, host.gateway) == b"hello\n", "and at another of the host's addresses")
    assert "0.0.0.0:8080->80/tcp" in host.ok("ps", "--format", "{{.Ports}}")
    assert host.ok("port", name, "80") == "0.0.0.0:8080"
    settings = host.ok("inspect", "-f", "{{json .NetworkSettings.Ports}}", name)
    assert '"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]' in settings
    host.ok("stop", "-t", "0", name)
    assert not has_rule(host, 8080)
    with socket.socket() as free:
        free.bind(("", 8080))
    assert host.ok("port", name) == ""
    host.ok("start", name)
    wait_until(lambda: ask(8080) == b"hello\n", "it answers again")
    host.ok("rm", "-f", name)


def test_a_sibling_reaches_it_at_the_hosts_address(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, "-p", "8080:80", BUSYBOX, "sh", "-c", SERVE)
    wait_until(lambda: ask(8080) == b"hello\n", "it answers")
    asked = host.ok("run", "--rm", BUSYBOX, "sh", "-c", f"nc -w 10 {host.gateway} 8080 </dev/null")
    assert asked == "hello"
    host.ok("rm", "-f", name)


def test_a_port_that_is_taken_is_refused_at_once_with_its_owner(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, "-p", "8080:80", BUSYBOX, "sleep", "600")
    refused = host.run("run", "--rm", "-p", "8080:80", BUSYBOX, "true")
    assert refused.returncode == 125
    assert f"in use by container {name}".encode() in refused.stderr
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen(1)
        number = taken.getsockname()[1]
        refused = host.run("run", "--rm", "-p", f"{number}:80", BUSYBOX, "true")
    assert b"(pid " in refused.stderr, refused.stderr
    host.ok("rm", "-f", name)


def test_ports_are_added_and_taken_back_while_it_runs(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sh", "-c", SERVE)
    assert host.ok("port", "add", name, "8080:80") == "80/tcp -> 0.0.0.0:8080"
    wait_until(lambda: ask(8080) == b"hello\n", "it answers")
    assert name in host.ok("port", "ls")
    host.ok("port", "rm", name, "80")
    assert ask(8080) == b""
    assert host.run("port", "rm", name, "80").returncode == 3
    host.ok("rm", "-f", name)


@pytest.fixture
def own(layouts) -> Iterator[Hyper]:
    """A daemon that the test may kill."""
    with hyper(accel="auto") as made:
        made.ok("pull", "-q", f"oci:{layouts}/busybox:{BUSYBOX}:latest")
        yield made


def test_a_connection_outlives_the_daemon_and_what_was_killed_halfway_leaves_no_rule(own: Hyper, name: str):
    own.ok(
        "run",
        "-d",
        "--name",
        name,
        "-p",
        "8080:80",
        BUSYBOX,
        "sh",
        "-c",
        "while true; do nc -l -p 80 -e cat; done",
    )

    def echoes(client: socket.socket) -> bool:
        try:
            client.sendall(b"there?")
            return client.recv(10) == b"there?"
        except OSError:
            return False

    def connects() -> bool:
        with contextlib.suppress(OSError):
            made = socket.create_connection(("127.0.0.1", 8080), timeout=20)
            found.append(made)
            return echoes(made)
        return False

    found: list[socket.socket] = []
    wait_until(connects, "it answers")
    with contextlib.ExitStack() as stack:
        for made in found:
            stack.enter_context(made)
        client = found[-1]
        own.kill_daemon()
        assert echoes(client), "nobody is needed for what runs"
        own.start()
        assert echoes(client)
    assert own.ok("port", name) == "80/tcp -> 0.0.0.0:8080"
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("", 8080))
    starting = subprocess.Popen(own.argv("run", "-d", "-p", "8081:80", BUSYBOX, "sleep", "600"))
    wait_until(lambda: has_rule(own, 8081), "its port is published")
    own.kill_daemon()
    starting.wait(60)
    for pid in own.qemu_processes():
        subprocess.run(["kill", "-9", str(pid)], check=False)
    own.start()
    wait_until(lambda: not has_rule(own, 8080) and not has_rule(own, 8081), "both ports are free again")
    own.ok("rm", "-f", *own.ok("ps", "-aq").split())
    assert own.leaks() == []
