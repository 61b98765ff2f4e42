# SPDX-License-Identifier: Apache-2.0
"""Real guests on several networks, joined and left while they run."""

import contextlib
from collections.abc import Iterator

from tests.harness import Hyper

BUSYBOX = "test.local/busybox"
MAC = "02:48:00:00:00:07"


@contextlib.contextmanager
def networks(host: Hyper, *names: str) -> Iterator[None]:
    for name in names:
        host.ok("network", "create", name)
    try:
        yield
    finally:
        for container in host.ok("ps", "-aq").split():
            host.run("rm", "-f", container)
        host.ok("network", "prune", "-f")


def reaches(host: Hyper, container: str, target: str) -> bool:
    return host.run("exec", container, "ping", "-c", "1", "-W", "5", target).returncode == 0


def addresses(host: Hyper, container: str) -> str:
    return host.ok("exec", container, "ip", "-o", "-4", "addr")


def test_a_guest_starts_on_several_networks_with_names_on_each(host: Hyper, name: str):
    front, back = f"{name}-front", f"{name}-back"
    with networks(host, front, back):
        for network in (front, back):
            host.ok("run", "-d", "--network", network, "--name", f"on-{network}", BUSYBOX, "sleep", "600")
        host.ok(
            "run", "-d", "--network", front, "--mac-address", MAC, "--network", f"{back}:alias=db,gw-priority=1",
            "--name", name, BUSYBOX, "sleep", "600",
        )  # fmt: skip
        for network in (front, back):
            assert reaches(host, name, f"on-{network}"), network
        assert reaches(host, f"on-{back}", "db")
        assert MAC in host.ok("exec", name, "ip", "link", "show", "eth0")
        assert "eth1" in host.ok("exec", name, "ip", "route", "show", "default")
        hosts = host.ok("exec", name, "cat", "/etc/hosts")
        for network in (front, back):
            shown = f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}'
            assert host.ok("inspect", "-f", shown, name) in hosts


def test_a_guest_joins_and_leaves_while_it_runs_and_through_a_kill_of_hyperd(host: Hyper, name: str):
    front, back = f"{name}-front", f"{name}-back"
    with networks(host, front, back):
        host.ok("run", "-d", "--network", back, "--name", "db", BUSYBOX, "sleep", "600")
        host.ok("run", "-d", "--network", front, "--name", name, BUSYBOX, "sleep", "600")
        assert not reaches(host, name, "db")
        host.ok("network", "connect", "--alias", "web", back, name)
        assert reaches(host, name, "db")
        assert reaches(host, "db", "web")
        again = host.run("network", "connect", back, name)
        assert (again.returncode, b"already" in again.stderr) == (4, True)
        host.kill_daemon()
        host.start()
        assert reaches(host, name, "db")
        host.ok("network", "disconnect", back, name)
        assert addresses(host, name).count("scope global eth") == 1
        assert not reaches(host, name, "db")
        host.ok("network", "disconnect", front, name)
        assert "scope global" not in addresses(host, name)
        host.ok("network", "connect", back, name)
        assert reaches(host, name, "db")


def test_guests_have_ipv6_where_their_network_has(host: Hyper, name: str):
    with networks(host):
        host.ok("network", "create", "--ipv6", "--subnet", "fd12:3456:789a::/64", name)
        host.ok(
            "run",
            "-d",
            "--network",
            name,
            "--ip6",
            "fd12:3456:789a::77",
            "--name",
            "db",
            BUSYBOX,
            "sleep",
            "600",
        )
        host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "600")
        assert "inet6" not in host.ok("exec", name, "ip", "addr", "show", "eth0")
        host.ok("network", "connect", name, name)
        assert reaches(host, name, "fd12:3456:789a::77")
        assert "fd12:3456:789a::77" in host.ok("exec", name, "nslookup", "-type=aaaa", "db")
        assert "default via fd12:3456:789a::1" in host.ok("exec", "db", "ip", "-6", "route")
        shown = f'{{{{(index .NetworkSettings.Networks "{name}").GlobalIPv6Address}}}}'
        assert host.ok("inspect", "-f", shown, "db") == "fd12:3456:789a::77"
        host.ok("network", "disconnect", name, name)
        assert not reaches(host, name, "fd12:3456:789a::77")
