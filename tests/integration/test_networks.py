# SPDX-License-Identifier: Apache-2.0
"""Real guests on networks that users make."""

import re
import subprocess

from tests.harness import Hyper

BUSYBOX = "test.local/busybox"
PING = "ping -c 1 -W 5 {} >/dev/null && echo reached || echo not"


def test_a_guest_reaches_its_own_network_and_no_other(host: Hyper, name: str):
    host.ok("network", "create", "--label", "team=web", name)
    try:
        host.ok("run", "-d", "--network", name, "--name", name, BUSYBOX, "sleep", "600")
        address = host.ok(
            "inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{name}").IPAddress}}}}', name
        )
        assert address in host.ok("network", "inspect", name)
        ping = PING.format(address)
        assert host.ok("run", "--rm", "--network", name, BUSYBOX, "sh", "-c", ping) == "reached"
        assert host.ok("run", "--rm", BUSYBOX, "sh", "-c", PING.format(address).replace("5", "2")) == "not"
        refused = host.run("network", "rm", name)
        assert refused.returncode == 4
        assert f"in use by {name}".encode() in refused.stderr
        refused = host.run("run", "--rm", "--network", f"{name}:ip={address}", BUSYBOX, "true")
        assert f"in use by container {name}".encode() in refused.stderr
    finally:
        host.run("rm", "-f", name)
        host.ok("network", "prune", "-f")
    assert host.ok("network", "ls", "--format", "{{.Name}}") == "bridge"


def test_networks_that_there_are_not_are_refused(host: Hyper):
    for network, status, why in (("nowhere", b"no such network", 125), ("host", b"a kernel of its own", 125)):
        refused = host.run("run", "--rm", "--network", network, BUSYBOX, "true")
        assert (refused.returncode, status in refused.stderr) == (why, True), refused.stderr


def test_containers_of_a_network_call_each_other_by_name_through_a_restart_of_hyperd(host: Hyper, name: str):
    host.ok("network", "create", name)
    try:
        host.ok(
            "run", "-d", "--network", name, "--network-alias", "db", "--name", name, BUSYBOX, "sleep", "600"
        )
        address = host.ok(
            "inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{name}").IPAddress}}}}', name
        )
        asks = " && ".join(f"nslookup {each}" for each in (name, "db", address))
        for _ in range(2):
            told = host.ok(
                "run", "--rm", "--network", name, BUSYBOX, "sh", "-c", f"{asks} && ping -c 1 -W 5 db"
            )
            assert told.count(address) >= 3
            assert f"{name}.{name}" in told, "and what an address is called"
            assert "1 packets received" in told
            host.kill_daemon()
            host.start()
        unknown = host.run("run", "--rm", "--network", name, BUSYBOX, "nslookup", "nobody")
        assert unknown.returncode == 1
    finally:
        host.run("rm", "-f", name)
        host.ok("network", "rm", name)


def links(*choice: str) -> set[str]:
    """Names of network interfaces."""
    shown = subprocess.run(["ip", "-br", "link", "show", *choice], capture_output=True, check=True)
    return {line.split()[0].partition("@")[0] for line in shown.stdout.decode().splitlines()}


def test_a_reset_leaves_nothing_of_the_network_on_the_host(host: Hyper, name: str):
    ours = links("master", host.bridge) if host.bridge in links() else set()
    others = links() - ours
    host.ok("network", "create", name)
    host.ok("run", "-d", "--network", name, "--name", name, "--egress", "none", BUSYBOX, "sleep", "600")
    refused = host.run("system", "reset", stdin=b"y\n")
    assert (refused.returncode, f"containers run: {name}".encode() in refused.stderr) == (4, True)
    said = host.ok("system", "reset", "-f")
    assert f"Deleted Containers:\n{name}" in said
    assert f"Deleted Networks:\n{name}" in said
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, check=True).stdout.decode()
    # Of other tests' hyperds, which have ended and not been reset, tables are there.
    others_tables = rf"hyper_hyper(?!{host.bridge.removeprefix('hyper')}(_|$))\d+(_\w+)?"
    left = [name for name in re.findall(r"hyper_\w+", tables) if not re.fullmatch(others_tables, name)]
    assert left == []
    assert links() & (ours | {host.bridge}) == set()
    assert not [each for each in links() - others if each.startswith(("hyb", "hyt"))]
    assert host.ok("run", "--rm", BUSYBOX, "echo", "and again") == "and again"
