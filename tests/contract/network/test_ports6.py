# SPDX-License-Identifier: Apache-2.0
"""Ports published at IPv6 addresses, with real packets: namespaces play guests and the world outside."""

import contextlib
import errno
import socket
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hyperd.errors import ExistsError, InvalidError, UnsupportedError
from hyperd.host import process
from hyperd.model.network import Endpoint, NetworkSpec, PortRequest, Protocol, PublishedPort
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetworks
from hyperd.network.port_records import FURTHER_MIGRATIONS, MIGRATION
from tests.contract.network.conftest import SETTINGS
from tests.contract.network.test_ipv6 import (
    HOST_OUTSIDE,
    ONE,
    OUTSIDE,
    TWO,
    guest,
    networks,
    somebody_outside,
    tcp,
)
from tests.contract.network.test_ports import tcp_peer

TCP, UDP = Protocol.TCP, Protocol.UDP
THREE = SandboxId("3" * 64)
LOOPBACK = "::1"
HOST4 = "198.51.100.1"
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
__all__ = ["networks"]  # a fixture


@pytest.fixture
def plain_bridges():
    """Bridged packets do not go through ip6tables, as on a host that has no Docker or Kubernetes."""
    if not BRIDGED.exists():
        yield
        return
    before = BRIDGED.read_text()
    BRIDGED.write_text("0")
    try:
        yield
    finally:
        BRIDGED.write_text(before)


@contextlib.asynccontextmanager
async def published(networks: BridgeNetworks, *requests: PortRequest) -> AsyncIterator[Any]:
    """A guest with these ports on a network with IPv6."""
    await networks.create_network(NetworkSpec("six", ipv6=True))
    async with guest(networks, ONE) as (one, lease):
        ports = await networks.publish(ONE, requests, "box", "six")
        yield one, lease, ports


async def seen(client, server, address, port=8080):
    """Whom the guest sees at its port 80. Raises OSError."""
    return await tcp_peer(client, server, 80, (address, port))


async def test_a_port_is_published_in_both_families(networks, plain_bridges):
    async with published(networks, PortRequest(80, host_port=8080)) as (one, lease, ports):
        assert ports == (PublishedPort(80, TCP, "0.0.0.0", 8080), PublishedPort(80, TCP, "::", 8080))
        async with somebody_outside() as outside, guest(networks, TWO) as (two, _):
            at = [
                (tcp(outside), HOST_OUTSIDE, OUTSIDE),  # the source is kept
                (tcp(), HOST_OUTSIDE, HOST_OUTSIDE),
                (tcp(), LOOPBACK, lease.gateway6),
                (tcp(), lease.gateway6, lease.gateway6),
                (tcp(two), lease.gateway6, lease.gateway6),  # a sibling, by either of the host's addresses
                (tcp(two), HOST_OUTSIDE, lease.gateway6),
                (tcp(one), lease.gateway6, lease.gateway6),  # itself
            ]
            for client, address, peer in at:
                assert await seen(client, tcp(one), address) == peer, address


async def test_a_port_at_ipv6_loopback_is_reached_there_alone(networks, plain_bridges):
    request = PortRequest(80, host_ip=LOOPBACK, host_port=8080)
    async with published(networks, request) as (one, lease, ports), somebody_outside() as outside:
        assert ports == (PublishedPort(80, TCP, LOOPBACK, 8080),)
        assert await seen(tcp(), tcp(one), LOOPBACK) == lease.gateway6
        for client, address in ((tcp(), HOST_OUTSIDE), (tcp(outside), HOST_OUTSIDE)):
            with pytest.raises((OSError, TimeoutError)):
                await seen(client, tcp(one), address)


async def test_where_bridged_packets_are_filtered_ipv6_loopback_refuses_at_once(networks):
    """There `localhost` has to fall back to 127.0.0.1, which is led to the guest."""
    if not BRIDGED.exists():
        pytest.fail("this kernel has no such setting")
    BRIDGED.write_text("1")
    async with published(networks, PortRequest(80, host_port=8080)) as (one, lease, _):
        with pytest.raises(ConnectionRefusedError):
            await seen(tcp(), tcp(one), LOOPBACK)
        assert await seen(tcp(), tcp(one), lease.gateway6) == lease.gateway6
        with pytest.raises(UnsupportedError, match="bridge-nf-call-ip6tables"):
            await networks.publish(ONE, [PortRequest(81, host_ip=LOOPBACK)], "box", "six")


async def test_one_that_is_free_is_free_in_both_families(networks):
    async with published(networks, PortRequest(80), PortRequest(53, UDP)) as (_, _, ports):
        for port in (80, 53):
            numbers = {made.host_port for made in ports if made.container_port == port}
            assert len(numbers) == 1, ports
        assert len(ports) == 4


async def test_ports_are_held_in_both_families_and_refused_in_either(networks):
    async with published(networks, PortRequest(80, host_port=8080)):
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            with socket.socket(family) as other:
                if family == socket.AF_INET6:
                    other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                with pytest.raises(OSError) as caught:
                    other.bind((address, 8080))
                assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(ExistsError, match=r"port \[::\]:8080/tcp: is in use by container box"):
            await networks.publish(ONE, [PortRequest(81, host_ip="::", host_port=8080)], "box", "six")
        with socket.socket(socket.AF_INET6) as taken:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(("::", 0))
            taken.listen(1)
            number = taken.getsockname()[1]
            with pytest.raises(ExistsError, match="in use by"):
                await networks.publish(ONE, [PortRequest(81, host_port=number)], "box", "six")
        assert len(networks.published(ONE)) == 2, "nothing stayed of what was refused"
        with socket.socket() as free:
            free.bind(("", number))


@pytest.mark.parametrize("address", ["::", LOOPBACK, HOST_OUTSIDE])
async def test_without_ipv6_on_its_network_it_is_refused(networks, address):
    for network in ("bridge", "four"):
        if network == "four":
            await networks.create_network(NetworkSpec("four"))
        request = PortRequest(80, host_ip=address, host_port=8080)
        with pytest.raises(UnsupportedError, match="no IPv6 on its network"):
            await networks.attach(ONE, [PortRequest(81, host_port=8081), request], "x", Endpoint(network))
        assert await networks.list_attached() == set()
    assert b"8081" not in (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout


@pytest.mark.parametrize("address", ["2001:db8::99", "ff02::1", "fe80::1", "::ffff:192.0.2.1", "fe80::1%lo"])
async def test_what_is_no_address_of_the_host_is_refused(networks, address):
    await networks.create_network(NetworkSpec("six", ipv6=True))
    with pytest.raises(InvalidError):
        await networks.attach(ONE, [PortRequest(80, host_ip=address, host_port=8080)], "x", Endpoint("six"))
    assert await networks.list_attached() == set()


async def test_a_connection_over_ipv6_ends_when_its_port_is_taken_back(networks):
    async with published(networks, PortRequest(80, host_port=8080)) as (one, lease, ports):
        client, server = tcp(), tcp(one)
        with client, server:
            server.bind(("::", 80))
            server.listen(1)
            client.setblocking(True)
            client.settimeout(20)
            client.connect((lease.gateway6, 8080))
            await networks.unpublish(ONE, ports)
            client.sendall(b"still there?")
            with pytest.raises(ConnectionResetError):
                client.recv(1)


async def test_the_next_hyperd_has_them_again_and_a_flush_too(networks, database):
    async with published(networks, PortRequest(80, host_port=8080)) as (one, lease, ports):
        networks.close()
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        following = BridgeNetworks(SETTINGS, database)
        try:
            await following.prepare()
            assert following.published(ONE) == ports
            assert await seen(tcp(), tcp(one), lease.gateway6) == lease.gateway6
            await following.release(ONE)
            assert following.published(ONE) == ()
            await following.remove_network("six")
        finally:
            following.close()
            networks._networks.pop("six")
            networks._views.pop("six")


async def test_ports_are_led_along_in_the_families_of_the_other_network(networks):
    for name, ipv6 in (("four", False), ("other", True)):
        await networks.create_network(NetworkSpec(name, ipv6=ipv6))
    at_ipv4 = PortRequest(81, host_ip="0.0.0.0", host_port=8081)
    async with published(networks, PortRequest(80, host_port=8080), at_ipv4) as (_, _, ports):
        anywhere, anywhere6, asked_for = ports
        for slot, network, expected in (
            (1, "other", (anywhere, anywhere6, asked_for)),
            (2, "four", (anywhere, asked_for)),
            (1, "other", (anywhere, anywhere6, asked_for)),
        ):
            await networks.attach(ONE, (), "box", Endpoint(network), slot)
            await networks.lead_ports(ONE, network, "box")
            assert networks.published(ONE) == expected, network


async def test_where_the_port_is_taken_in_ipv6_it_stays_where_it_was(networks):
    await networks.create_network(NetworkSpec("four"))
    await networks.create_network(NetworkSpec("six", ipv6=True))
    await networks.attach(ONE, [PortRequest(80, host_port=8080)], "box", Endpoint("four"))
    await networks.attach(ONE, (), "box", Endpoint("six"), 1)
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::", 8080))
        taken.listen(1)
        await networks.lead_ports(ONE, "six", "box")
    assert networks.published(ONE) == (PublishedPort(80, TCP, "0.0.0.0", 8080),)


def test_what_an_older_hyperd_recorded_is_read():
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(MIGRATION)
        row = ("bridge", ONE, "box", 0x0AD50002, "tcp", 0xC6336401, 8080, 80)
        connection.execute("INSERT INTO network_port VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        for statement in FURTHER_MIGRATIONS:
            connection.execute(statement)
        kept = connection.execute("SELECT * FROM published_port").fetchall()
    assert kept == [("bridge", ONE, "box", "10.213.0.2", "tcp", HOST4, 8080, 80, 0)]
