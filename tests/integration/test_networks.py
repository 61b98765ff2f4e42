# SPDX-License-Identifier: Apache-2.0
"""Real guests on networks that users make."""

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
    finally:
        host.run("rm", "-f", name)
        host.ok("network", "prune", "-f")
    assert host.ok("network", "ls", "--format", "{{.Name}}") == "bridge"


def test_networks_that_there_are_not_are_refused(host: Hyper):
    for network, status, why in (("nowhere", b"no such network", 125), ("host", b"a kernel of its own", 125)):
        refused = host.run("run", "--rm", "--network", network, BUSYBOX, "true")
        assert (refused.returncode, status in refused.stderr) == (why, True), refused.stderr
