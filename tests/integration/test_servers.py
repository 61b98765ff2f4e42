# SPDX-License-Identifier: Apache-2.0
"""What people run behind a network: Debian's nginx, redis and PostgreSQL, asked by name from another sandbox and from
outside, by their own clients.
"""

import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator

import pytest
from pyroute2 import AsyncIPRoute

from tests.contract.network.conftest import Namespace
from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until
from tests.images import ROOT

SERVERS, POSTGRES = "test.local/servers", "test.local/postgres"
HOST_OUTSIDE, OUTSIDE, FLOATING = "198.51.100.1", "198.51.100.2", "198.51.100.7"
SLOW_S = 300.0  # an emulated guest on a busy host makes a cluster
PATH = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin; "
WEB = (
    PATH
    + """mkdir -p /tmp/www; echo hello > /tmp/www/index.html
cat > /tmp/nginx.conf <<EOF
daemon off; user root; pid /tmp/nginx.pid; error_log /tmp/error.log; events {}
http { access_log off; server { listen 80; listen [::]:80; root /tmp/www;
       location = /who { return 200 "\\$remote_addr"; } } }
EOF
iperf3 -s -D; exec nginx -c /tmp/nginx.conf"""
)
CACHE = PATH + "exec redis-server --bind 0.0.0.0 --protected-mode no --save '' --dir /tmp"
DATABASE = """export PATH=$(echo /usr/lib/postgresql/*/bin):/usr/bin:/bin
initdb -D /tmp/cluster -A trust -E UTF8 --no-locale >&2
printf 'host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n' >> /tmp/cluster/pg_hba.conf
exec postgres -D /tmp/cluster -c listen_addresses='*' -c jit=off -c unix_socket_directories=/tmp"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Hyper]:
    """A hyper with both images, a network with IPv6, and a floating address."""
    with hyper(settings={"network.floating": FLOATING}) as host:
        for name, image in (("servers", SERVERS), ("postgres", POSTGRES)):
            archive = ROOT / f"build/assets/{name}.tar"
            assert archive.exists(), f"{archive}: `make test-images` makes it"
            host.ok("import", str(archive), image, timeout_s=BUILD_TIMEOUT_S)
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
        host.ok("network", "create", "--ipv6", "lab")
        yield host
        host.run("rm", "-f", *host.ok("ps", "-aq").split())
        host.ok("network", "rm", "lab")
        leaks = host.leaks()
        assert not leaks, f"left behind: {leaks}"


@pytest.fixture(scope="module")
def web(lab: Hyper) -> str:
    """Its address in the lab."""
    lab.ok("run", "-d", "--name", "web", "--network", "lab", "-p", "8080:80", SERVERS, "/bin/sh", "-c", WEB)
    wait_until(lambda: get("127.0.0.1", 8080) == "hello\n", "nginx answers")
    return lab.ok("inspect", "-f", '{{(index .NetworkSettings.Networks "lab").IPAddress}}', "web")


@pytest.fixture(scope="module")
def client(lab: Hyper, web: str) -> Iterator[str]:
    lab.ok("run", "-d", "--name", "client", "--network", "lab", SERVERS, "/bin/sh", "-c", "exec sleep 100000")
    yield "client"
    lab.ok("rm", "-f", "client")


def get(address: str, port: int = 80, path: str = "/") -> str:
    """What the host is told; "" while nobody answers."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def ask(lab: Hyper, script: str) -> str:
    return lab.ok("exec", "client", "/bin/sh", "-c", PATH + script, timeout_s=SLOW_S)


def test_nginx_is_asked_by_name_over_both_families(lab: Hyper, web: str, client: str):
    assert ask(lab, "curl -s -m 30 http://web/") == "hello"
    own = ask(lab, "ip -6 -o addr show dev eth0 scope global").split()[3].partition("/")[0]
    assert ask(lab, "curl -s -m 30 -6 http://web/who") == own


def test_dig_finds_names_and_addresses(lab: Hyper, web: str, client: str):
    assert ask(lab, "dig +short web") == web
    assert ask(lab, "dig +short +tcp web.lab") == web
    assert ask(lab, f"dig +short -x {web}") == "web.lab."
    assert ask(lab, "dig +short AAAA web").startswith("fd")
    assert "NXDOMAIN" in ask(lab, "dig nobody.hyper.internal")


def test_iperf3_fills_the_wire_and_stats_count_it(lab: Hyper, web: str, client: str):
    for flags in ("", "-R", "-u -b 20M -l 1200"):
        told = json.loads(ask(lab, f"iperf3 -c web -t 1 -J {flags}"))
        sums = told["end"].get("sum_received") or told["end"]["sum"]
        assert sums["bytes"] > 1 << 20, told["end"]
    row = json.loads(lab.ok("stats", "--no-stream", "--format", "json", "client"))
    assert all(size.endswith(("MB", "GB")) for size in row["NetIO"].split(" / ")), row


def test_redis_is_asked_by_name(lab: Hyper, client: str):
    lab.ok("run", "-d", "--name", "cache", "--network", "lab", SERVERS, "/bin/sh", "-c", CACHE)
    try:
        wait_until(lambda: ask(lab, "redis-cli -h cache ping || true") == "PONG", "redis answers")
        assert ask(lab, "redis-cli -h cache set word told") == "OK"
        assert ask(lab, "redis-cli -h cache get word") == "told"
        assert "requests per second" in ask(lab, "redis-benchmark -h cache -t get,set -n 200 -q")
    finally:
        lab.ok("rm", "-f", "cache")


def test_psql_speaks_with_a_database_by_name(lab: Hyper, client: str):
    lab.ok(
        *("run", "-d", "--name", "db", "--network", "lab", "-u", "100:100", "--tmpfs", "/tmp:mode=1777"),
        *(POSTGRES, "/bin/sh", "-c", DATABASE),
    )
    try:
        psql = "$(echo /usr/lib/postgresql/*/bin/psql) -h db -U postgres -qAt"
        wait_until(
            lambda: ask(lab, f"{psql} -c 'SELECT 1' || true") == "1", "the database answers", timeout_s=SLOW_S
        )
        ask(lab, f"{psql} -c 'CREATE TABLE t AS SELECT generate_series(1, 10000) AS n'")
        assert ask(lab, f"{psql} -c 'SELECT sum(n) FROM t'") == "50005000"
        assert len(ask(lab, f"{psql} -c 'SELECT n FROM t'").split()) == 10000
    finally:
        lab.ok("rm", "-f", "db")


def test_a_published_port_answers_at_the_hosts_ipv6_addresses(lab: Hyper, web: str, client: str):
    gateway6 = lab.ok("network", "inspect", "-f", "{{(index .IPAM.Config 1).Gateway}}", "lab")
    assert get(gateway6, 8080) == "hello\n"
    assert get(gateway6, 8080, "/who") == gateway6
    assert "[::]:8080->80/tcp" in lab.ok("ps", "--format", "{{.Ports}}", "-f", "name=web")
    lab.ok("port", "add", "web", f"[{gateway6}]:8081:80")
    assert get(gateway6, 8081) == "hello\n"
    assert f"[{gateway6}]:8081" in lab.ok("port", "web", "80")
    lab.ok("port", "rm", "web", "8081:80")
    assert get(gateway6, 8081) == ""
    refused = lab.run("run", "--rm", "-p", "[::1]:8082:80", SERVERS, "true")
    assert refused.returncode == 125
    assert b"has no IPv6" in refused.stderr


@contextlib.asynccontextmanager
async def outside():
    with contextlib.closing(Namespace()) as namespace:
        async with namespace.wired("veth-out", f"{OUTSIDE}/24", gateway=HOST_OUTSIDE) as index:
            async with AsyncIPRoute() as netlink:
                await netlink.addr("add", index=index, address=HOST_OUTSIDE, prefixlen=24)
            yield namespace


def connected_to(namespace: Namespace, address: str, request: bytes) -> bytes:
    client = namespace.socket()
    with client:
        client.settimeout(20)
        client.connect((address, 80))
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(4096), b""))


async def test_a_floating_address_leads_to_a_real_guest_and_is_who_it_is_outside(
    lab: Hyper, web: str, client: str
):
    lab.ok("fip", "allocate", "--pick", FLOATING)
    try:
        lab.ok("fip", "attach", FLOATING, "web")
        async with outside() as world:
            whole = connected_to(world, FLOATING, b"GET /who HTTP/1.0\r\n\r\n")
            assert whole.endswith(b"\r\n\r\n" + OUTSIDE.encode()), "the sender is kept"
            assert get(FLOATING) == "hello\n", "the host reaches it there"
            assert ask(lab, f"curl -s -m 30 http://{FLOATING}/") == "hello", "and so does another guest"
            with world.socket() as listening:
                listening.settimeout(SLOW_S)
                listening.bind(("", 9000))
                listening.listen(1)
                script = PATH + f"curl -s -m 60 http://{OUTSIDE}:9000/"
                argv = lab.argv("exec", "web", "/bin/sh", "-c", script)
                with subprocess.Popen(argv, stdout=subprocess.PIPE) as asking:
                    accepted, peer = listening.accept()
                    with accepted:
                        assert peer[0] == FLOATING, "what it begins comes from there"
                        accepted.sendall(b"HTTP/1.0 200 OK\r\n\r\nbye")
                        accepted.shutdown(socket.SHUT_WR)
                        assert asking.communicate(timeout=60)[0] == b"bye"
            lab.ok("fip", "detach", "web")
            assert get(FLOATING) == ""
    finally:
        lab.run("fip", "detach", "web")
        lab.ok("fip", "release", FLOATING)
