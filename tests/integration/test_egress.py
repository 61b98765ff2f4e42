# SPDX-License-Identifier: Apache-2.0
"""A real guest with an egress policy: what its names allow it reaches, nothing else, and what it tried is told."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.harness import Hyper, wait_until
from tests.integration.test_network import OUTSIDE, owner_of
from tests.integration.test_network import outside as outside  # noqa: PLC0414 - a fixture

BUSYBOX = "test.local/busybox"
RESOLVER = "192.0.2.1"  # the host's address towards the world outside
GOOD = "93.184.216.34"
HOST6, OUTSIDE6, GOOD6, INSIDE6 = "2001:db8:1::1", "2001:db8:1::2", "2606:2800:220:1::34", "fd99::1"
ASK = "timeout 10 wget -O - http://{}:8000/ 2>&1 | tail -1"


@pytest.fixture
def names(outside: str, tmp_path: Path) -> Iterator[None]:
    """`good.example` and `other.example` lead to the one server outside, at another address of its."""
    subprocess.run(["ip", "route", "add", f"{GOOD}/32", "via", OUTSIDE], check=True)
    pid = owner_of("out1")
    subprocess.run(["nsenter", "-t", pid, "-n", "ip", "addr", "add", f"{GOOD}/32", "dev", "out1"], check=True)
    redirect = f"ip daddr {GOOD} tcp dport 8000 dnat to {OUTSIDE}:8000"
    rules = f"table ip n {{ chain c {{ type nat hook prerouting priority -100; {redirect}; }}; }}"
    subprocess.run(["nsenter", "-t", pid, "-n", "nft", "-f", "-"], input=rules.encode(), check=True)
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {RESOLVER}\n")
    subprocess.run(["mount", "--bind", str(conf), "/etc/resolv.conf"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((RESOLVER, 53))
        answering = threading.Thread(target=_answer, args=(server,))
        answering.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", (RESOLVER, 53))
            answering.join(10)
            subprocess.run(["umount", "/etc/resolv.conf"], check=True)


def _answer(server: socket.socket) -> None:
    """Until an empty datagram comes."""
    while True:
        wire, peer = server.recvfrom(4096)
        if not wire:
            return
        query = dns.message.from_wire(wire)
        made, name = dns.message.make_response(query), query.question[0].name
        if name.to_text() == "six.example.":
            if query.question[0].rdtype == dns.rdatatype.AAAA:
                made.answer.append(dns.rrset.from_text(name, 60, "IN", "AAAA", GOOD6, INSIDE6))
        elif name.to_text() not in ("good.example.", "other.example."):
            made.set_rcode(dns.rcode.NXDOMAIN)
        elif query.question[0].rdtype == dns.rdatatype.A:
            made.answer.append(dns.rrset.from_text(name, 60, "IN", "A", GOOD))
        server.sendto(made.to_wire(), peer)


def test_what_is_allowed_by_name_is_reached_and_the_rest_is_told_after_the_end(
    host: Hyper, names: None, name: str, tmp_path: Path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text("allow:\n  - domain: good.example\n    ports: 8000\n")
    asks = "; ".join(ASK.format(where) for where in (GOOD, "good.example", "other.example", OUTSIDE))
    said = host.ok("run", "--rm", "--name", name, "--egress", str(policy), BUSYBOX, "sh", "-c", asks)
    by_address, by_name, by_other, elsewhere = said.splitlines()
    assert "501" in by_name
    for refused in (by_address, by_other, elsewhere):
        assert "501" not in refused, said
    lines = host.ok("egress", "report", "--format", "json", name).splitlines()
    tried = {(row["Destination"], row["Port"]): int(row["Count"]) for row in map(json.loads, lines)}
    assert tried[GOOD, "8000"] >= 1
    assert tried[OUTSIDE, "8000"] >= 1
    assert tried["other.example", ""] >= 1


def test_a_policy_outlives_hyperd_and_changes_while_its_guest_runs(host: Hyper, names: None, name: str):
    host.ok("run", "-d", "--name", name, "--egress", "none", BUSYBOX, "sleep", "600")

    def reached() -> bool:
        return "501" in host.ok("exec", name, "sh", "-c", ASK.format(OUTSIDE))

    assert not reached()
    host.kill_daemon()
    host.start()
    assert not reached()
    host.ok("egress", "set", name, "allow-all")
    assert reached()
    host.ok("egress", "set", name, "none")
    assert not reached()
    assert host.ok("egress", "inspect", "-f", "{{.Egress}}", name) == "none"


def test_a_guest_hears_what_its_groups_let_in(host: Hyper, name: str, tmp_path: Path):
    def group(port: int) -> str:
        file = tmp_path / "group.yaml"
        rule = f"{{direction: ingress, protocol: tcp, port_range_min: {port}}}"
        file.write_text(f"rules: [{rule}]")
        return str(file)

    host.ok("sg", "create", "-f", group(9000), name)
    try:
        serve = "while true; do echo heard | nc -l -p 9000; done"
        flags = ("--security-group", name, "--network-rate-in", "10m", "--network-rate-out", "10m")
        host.ok("run", "-d", "--name", name, *flags, BUSYBOX, "sh", "-c", serve)
        address = host.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
        ask = ("run", "--rm", BUSYBOX, "sh", "-c", f"nc -w 5 {address} 9000 || echo refused")
        assert host.ok(*ask) == "heard"
        refused = host.run("sg", "rm", name)
        assert (refused.returncode, f"in use by {name}".encode() in refused.stderr) == (4, True)
        host.ok("sg", "update", "-f", group(9001), name)
        assert host.ok(*ask) == "refused"
    finally:
        host.run("rm", "-f", name)
        host.ok("sg", "rm", name)


SERVER6 = """
import http.server, socket
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6
Server(("::", 8000), http.server.BaseHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def outside6(names: None) -> Iterator[None]:
    """The host outside has IPv6 as well; `six.example` leads to it, and to an address that no name should lead to."""
    inside = ["nsenter", "-t", owner_of("out1"), "-n"]
    for address in (f"{OUTSIDE6}/64", f"{GOOD6}/128", f"{INSIDE6}/128"):
        subprocess.run([*inside, "ip", "addr", "add", address, "dev", "out1", "nodad"], check=True)
    subprocess.run(["ip", "addr", "add", f"{HOST6}/64", "dev", "out0", "nodad"], check=True)
    for address in (GOOD6, INSIDE6):
        subprocess.run(["ip", "route", "add", f"{address}/128", "via", OUTSIDE6], check=True)
    # The fixture `outside` has a server at its IPv4 address, so this one is at those of IPv6 alone.
    alone = ["sysctl", "-qw", "net.ipv6.bindv6only=1"]
    subprocess.run([*inside, *alone], check=True)
    server = subprocess.Popen([*inside, sys.executable, "-c", SERVER6], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens6(OUTSIDE6), "it listens")
        yield
    finally:
        server.terminate()
        server.wait(10)


def _listens6(address: str) -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        return probe.connect_ex((address, 8000)) == 0


def test_ipv6_is_held_to_a_policy_as_ipv4_is(host: Hyper, outside6: None, name: str, tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("allow:\n  - {domain: six.example, ports: 8000}\n  - {cidr: '2001:db8:7::/48'}\n")
    host.ok("network", "create", "--ipv6", name)
    try:
        where = (f"[{GOOD6}]", "six.example", f"[{OUTSIDE6}]", f"[{INSIDE6}]")
        asks = "; ".join(ASK.format(each) for each in where)
        flags = ("--network", name, "--egress", str(policy))
        said = host.ok("run", "--rm", "--name", name, *flags, BUSYBOX, "sh", "-c", asks)
        by_address, by_name, elsewhere, inside = said.splitlines()
        assert "501" in by_name, said
        for refused in (by_address, elsewhere, inside):
            assert "501" not in refused, said
        lines = host.ok("egress", "report", "--format", "json", name).splitlines()
        tried = {(row["Destination"], row["Protocol"]): row["Name"] for row in map(json.loads, lines)}
        assert tried[INSIDE6, "dns"] == "six.example"
        assert {(GOOD6, "tcp"), (OUTSIDE6, "tcp"), (INSIDE6, "tcp")} <= tried.keys()
    finally:
        host.run("rm", "-f", name)
        host.ok("network", "rm", name)


def test_a_guest_that_gets_a_policy_finds_its_neighbours_in_ipv6(host: Hyper, outside6: None, name: str):
    other = f"{name}-other"
    host.ok("network", "create", "--ipv6", name)
    try:
        for each in (name, other):
            host.ok("run", "-d", "--name", each, "--network", name, BUSYBOX, "sleep", "600")
        template = f'{{{{(index .NetworkSettings.Networks "{name}").GlobalIPv6Address}}}}'
        mine, theirs = (host.ok("inspect", "-f", template, each) for each in (name, other))

        def pings(who: str, address: str) -> bool:
            said = host.ok(
                "exec", who, "sh", "-c", f"ping -c 1 -W 5 {address} >/dev/null && echo yes || echo no"
            )
            return said == "yes"

        def reached() -> bool:
            return "501" in host.ok("exec", name, "sh", "-c", ASK.format(f"[{OUTSIDE6}]"))

        assert reached()
        assert pings(name, theirs)
        host.ok("egress", "set", name, "allow-all")
        assert reached()
        assert pings(name, theirs)
        host.kill_daemon()
        host.start()
        wait_until(lambda: pings(other, mine), "its neighbour finds it again")
        host.ok("egress", "set", name, "none")
        assert not reached()
        assert not pings(name, theirs)
        assert pings(other, mine), "whom it answers"
    finally:
        host.run("rm", "-f", name, other)
        host.ok("network", "rm", name)
