# SPDX-License-Identifier: Apache-2.0
"""A real guest on the bridge: out by NAT, to its neighbours, not to the host's own services."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Hyper, wait_until

BUSYBOX = "test.local/busybox"
OUTSIDE = "192.0.2.2"
SERVER = """
import http.server, sys
http.server.HTTPServer((sys.argv[1], 8000), http.server.BaseHTTPRequestHandler).serve_forever()
"""


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


@pytest.fixture
def outside() -> Iterator[str]:
    """A host of the world outside, with a server on port 8000: a namespace behind a pair of wires."""
    child = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    wait_until(lambda: _namespace(child.pid) != _namespace("self"), "the namespace is there")
    inside = f"nsenter -t {child.pid} -n"
    server = None
    try:
        _run(f"ip link add out0 type veth peer name out1 netns {child.pid}")
        _run("ip addr add 192.0.2.1/24 dev out0")
        _run("ip link set out0 up")
        _run(f"{inside} ip addr add {OUTSIDE}/24 dev out1")
        _run(f"{inside} ip link set out1 up")
        server = subprocess.Popen(
            [*inside.split(), sys.executable, "-c", SERVER, OUTSIDE], stderr=subprocess.DEVNULL
        )
        wait_until(lambda: _listens(OUTSIDE), "it listens")
        yield OUTSIDE
    finally:
        for process in (server, child):
            if process is not None:
                process.terminate()
                process.wait(10)
        subprocess.run(["ip", "link", "del", "out0"], stderr=subprocess.DEVNULL, check=False)


def owner_of(interface: str) -> str:
    """A process in whose network it is."""
    for status in Path("/proc").glob("[0-9]*/comm"):
        pid = status.parent.name
        if status.read_text() == "sleep\n" and interface in (status.parent / "net/dev").read_text():
            return pid
    raise AssertionError(f"nobody has {interface}")


def _listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, 8000)) == 0


def _namespace(pid: object) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def test_a_guest_reaches_the_outside_through_nat(host: Hyper, outside: str):
    # The server knows no GET and says so. Its answer finds back only because the guest came with the host's address.
    output = host.run("run", "--rm", BUSYBOX, "timeout", "20", "wget", "-O", "-", f"http://{outside}:8000/")
    assert b"501" in output.stderr, (output.returncode, output.stdout, output.stderr)


def test_a_guest_does_not_reach_the_hosts_services(host: Hyper):
    server = subprocess.Popen([sys.executable, "-c", SERVER, "0.0.0.0"], stderr=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: _listens("127.0.0.1"),
            "it listens",
        )
        script = "ping -c 1 -W 5 10.213.0.1 >/dev/null && echo pinged; timeout 3 wget -O - http://10.213.0.1:8000/ 2>&1"
        output = host.run("run", "--rm", BUSYBOX, "sh", "-c", script).stdout
    finally:
        server.terminate()
        server.wait(10)
    assert b"pinged" in output
    assert b"501" not in output


def test_neighbours_reach_each_other(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    address = host.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
    assert "1 packets received" in host.ok("run", "--rm", BUSYBOX, "ping", "-c", "1", "-W", "5", address)
