# SPDX-License-Identifier: Apache-2.0
"""Published ports, with real packets: a namespace on the bridge plays the guest, another one the world outside."""

import asyncio
import contextlib
import errno
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.errors import ExistsError, InvalidError, UnsupportedError
from hyperd.host import process
from hyperd.model.network import PortRequest, Protocol, PublishedPort
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetwork, BridgeSettings
from hyperd.network.tap import PREFIX
from tests.contract.network.conftest import SETTINGS, Namespace, clean

HOST_OUTSIDE, OUTSIDE = "198.51.100.1", "198.51.100.2"
LOOPBACK, GATEWAY = "127.0.0.1", str(SETTINGS.gateway)
ONE, TWO = SandboxId("1" * 64), SandboxId("2" * 64)
SOON_S = 20.0
TCP, UDP = Protocol.TCP, Protocol.UDP


class World:
    """Two guests that are sandboxes of ``network``, and somebody outside."""

    def __init__(self, network, stack):
        self.network = network
        self._stack = stack
        self.one, self.two, self.outside = (
            stack.enter_context(contextlib.closing(Namespace())) for _ in range(3)
        )
        self.leases = {}

    async def plug(self, sandbox_id, namespace, ports=()):
        lease = self.leases[sandbox_id] = await self.network.attach(sandbox_id, ports, f"box{sandbox_id[0]}")
        async with AsyncIPRoute() as netlink:
            (bridge,) = await netlink.link_lookup(ifname=SETTINGS.bridge)
        await self._stack.enter_async_context(
            namespace.wired(
                f"{PREFIX}-guest{sandbox_id[0]}",
                f"{lease.address}/{lease.prefix_length}",
                gateway=lease.gateway,
                mac=lease.mac,
                master=bridge,
            )
        )
        return lease


@pytest.fixture
async def world(bridge_network):
    async with contextlib.AsyncExitStack() as stack:
        made = World(bridge_network, stack)
        out = await stack.enter_async_context(made.outside.wired("veth-out", f"{OUTSIDE}/24"))
        async with AsyncIPRoute() as netlink:
            await netlink.addr("add", index=out, address=HOST_OUTSIDE, prefixlen=24)
        yield made


def host_socket(kind=socket.SOCK_STREAM):
    made = socket.socket(socket.AF_INET, kind)
    made.setblocking(False)
    return made


async def tcp_peer(client, server, port, address, soon_s=SOON_S):
    """Who the server in the guest sees, when ``client`` connects to ``address``. Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    with client, server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen(1)
        async with asyncio.timeout(soon_s):
            await loop.sock_connect(client, address)
            accepted, peer = await loop.sock_accept(server)
            with accepted:
                await loop.sock_sendall(accepted, b"hello")
                assert await loop.sock_recv(client, 10) == b"hello"
        return peer[0]


async def udp_peer(client, server, port, address):
    loop = asyncio.get_running_loop()
    with client, server:
        server.bind(("", port))
        async with asyncio.timeout(SOON_S):
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, b"ask")
            asked, peer = await loop.sock_recvfrom(server, 10)
            await loop.sock_sendto(server, asked + b"ed", peer)
            assert await loop.sock_recv(client, 10) == b"asked"
        return peer[0]


@pytest.mark.parametrize(
    ("protocol", "kind", "peer_of"),
    [(TCP, socket.SOCK_STREAM, tcp_peer), (UDP, socket.SOCK_DGRAM, udp_peer)],
    ids=["tcp", "udp"],
)
async def test_a_published_port_is_reached_from_everywhere(world, protocol, kind, peer_of):
    lease = await world.plug(ONE, world.one, [PortRequest(80, protocol, host_port=8080)])
    await world.plug(TWO, world.two)
    at = [
        (world.outside.socket(kind), HOST_OUTSIDE, OUTSIDE),  # the source is kept
        (host_socket(kind), HOST_OUTSIDE, HOST_OUTSIDE),
        (host_socket(kind), LOOPBACK, GATEWAY),
        (host_socket(kind), "127.3.2.1", GATEWAY),
        (host_socket(kind), GATEWAY, GATEWAY),
        (world.two.socket(kind), GATEWAY, GATEWAY),  # a sibling, by either of the host's addresses
        (world.two.socket(kind), HOST_OUTSIDE, GATEWAY),
        (host_socket(kind), lease.address, GATEWAY),
    ]
    for client, host_ip, seen in at:
        port = 80 if host_ip == lease.address else 8080
        peer = await peer_of(client, world.one.socket(kind), 80, (host_ip, port))
        assert peer == seen, host_ip


async def test_a_port_at_one_address_is_reached_there_alone(world):
    await world.plug(ONE, world.one, [PortRequest(80, host_ip=LOOPBACK, host_port=8080)])
    assert await tcp_peer(host_socket(), world.one.socket(), 80, (LOOPBACK, 8080)) == GATEWAY
    for client, address in ((host_socket(), HOST_OUTSIDE), (world.outside.socket(), HOST_OUTSIDE)):
        with pytest.raises((OSError, TimeoutError)):
            await tcp_peer(client, world.one.socket(), 80, (address, 8080))


async def test_what_is_left_of_another_start_is_not_taken_for_what_is_asked(world):
    await world.plug(ONE, world.one, [PortRequest(80, host_port=8080)])
    await process.run_checked(["nft", "flush", "map", "inet", SETTINGS.table, "published_any"], timeout_s=20)
    await world.network.attach(ONE, [PortRequest(80, host_port=8080)], "box1")
    assert await tcp_peer(host_socket(), world.one.socket(), 80, (LOOPBACK, 8080)) == GATEWAY
    await world.network.attach(ONE, [PortRequest(81, host_port=8081)], "box1")
    assert [port.host_port for port in world.network.published(ONE)] == [8081]


async def test_loopback_is_led_to_guests_only_while_something_is_published(world):
    switch = Path(f"/proc/sys/net/ipv4/conf/{SETTINGS.bridge}/route_localnet")
    await world.plug(ONE, world.one, [PortRequest(80), PortRequest(81)])
    first, second = world.network.published(ONE)
    await world.network.unpublish(ONE, [first])
    assert switch.read_text().strip() == "1"
    await world.network.unpublish(ONE, [second])
    assert switch.read_text().strip() == "0"


async def test_a_port_at_loopback_is_not_reached_from_outside(world):
    """By somebody on the host's own wire, who sends to 127.0.0.1: once it is translated, it is no martian any more."""
    await world.plug(ONE, world.one, [PortRequest(80, UDP, LOOPBACK, 8080)])
    host_mac = Path("/sys/class/net/veth-out/address").read_text().strip()
    with world.one.socket(socket.SOCK_DGRAM) as service:
        service.bind(("", 80))
        world.outside.call(raw_udp(OUTSIDE, LOOPBACK, 8080, host_mac, "0a:00:00:00:00:01"))
        async with asyncio.timeout(SOON_S):
            while not await dropped("the host's loopback is the host's"):
                await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            service.recv(100)


async def test_a_guest_does_not_reach_the_hosts_loopback_all_the_same(world):
    """Here it makes the packet itself. What comes from the bridge for 127.0.0.0/8 ends first of all."""
    lease = await world.plug(ONE, world.one, [PortRequest(80, host_port=8080)])
    send = raw_udp(lease.address, "127.0.0.9", 5353, "0a:48:0a:d5:00:01", lease.mac)
    with host_socket(socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.9", 5353))
        async with asyncio.timeout(SOON_S):
            # Again and again: whoever makes the tables anew begins to count anew.
            while not await dropped("the host's loopback is the host's"):
                world.one.call(send)
        with pytest.raises(BlockingIOError):
            service.recv(100)


def raw_udp(source, destination, port, to_mac, from_mac):
    """To be called where it is sent from, over eth0."""
    addresses = IPv4Address(source).packed, IPv4Address(destination).packed
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 1, 0, 64, 17, 0, *addresses)
    total = sum(struct.unpack("!10H", header))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet = header[:10] + struct.pack("!H", checksum) + header[12:]
    packet += struct.pack("!HHHH", 5000, port, 12, 0) + b"word"
    macs = bytes.fromhex((to_mac + from_mac).replace(":", ""))

    def send():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(macs + b"\x08\0" + packet)

    return send


async def dropped(comment):
    """How many packets that rule has met."""
    listed = await process.run(["nft", "list", "table", "inet", SETTINGS.table], timeout_s=20)
    (line,) = (line for line in listed.stdout.decode().splitlines() if comment in line)
    return int(line.partition("counter packets ")[2].split()[0])


async def test_ports_go_with_the_tap_and_come_again(world):
    ports = [PortRequest(80, host_port=8080)]
    await world.network.attach(ONE, ports, "box1")
    before = (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout
    assert world.network.published(ONE) == (PublishedPort(80, TCP, "0.0.0.0", 8080),)
    await world.network.detach(ONE)
    assert world.network.published(ONE) == ()
    assert b"8080" not in (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout
    with socket.socket() as free:
        free.bind(("", 8080))
    await world.network.attach(ONE, ports, "box1")
    assert (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout == before


async def test_a_port_that_a_program_of_the_host_has_is_refused_with_its_name(world):
    with host_socket() as taken:
        taken.bind(("", 0))
        taken.listen(1)
        number = taken.getsockname()[1]
        with pytest.raises(ExistsError, match=rf"in use by .*\(pid {os.getpid()}\)"):
            await world.network.attach(ONE, [PortRequest(80, host_port=number)], "box1")
    assert await world.network.list_attached() == set()


async def test_a_held_port_is_not_the_hosts_to_take(world):
    await world.network.attach(
        ONE, [PortRequest(80, host_port=8080), PortRequest(53, UDP, host_port=5353)], "box1"
    )
    for kind, port in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, 5353)):
        for address in ("0.0.0.0", LOOPBACK):
            with socket.socket(socket.AF_INET, kind) as other:
                with pytest.raises(OSError) as caught:
                    other.bind((address, port))
                assert caught.value.errno == errno.EADDRINUSE


async def test_a_connection_that_has_ended_does_not_keep_a_port(world):
    """The side that closes first stays in TIME_WAIT."""
    with socket.socket() as server, socket.socket() as client:
        server.bind((LOOPBACK, 0))
        server.listen(1)
        number = server.getsockname()[1]
        client.connect((LOOPBACK, number))
        accepted, _ = server.accept()
        accepted.close()
        client.recv(1)
    await world.network.attach(ONE, [PortRequest(80, host_port=number)], "box1")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (PortRequest(80, host_ip="192.0.2.99", host_port=8080), InvalidError),
        (PortRequest(80, host_ip="224.0.0.1", host_port=8080), InvalidError),
        (PortRequest(80, host_ip="nonsense", host_port=8080), InvalidError),
        (PortRequest(80, host_ip="::1", host_port=8080), UnsupportedError),
    ],
)
async def test_an_address_that_is_none_of_the_hosts_is_refused_and_leaves_nothing(world, request_, error):
    with pytest.raises(error):
        await world.network.attach(ONE, [PortRequest(81, host_port=8081), request_], "box1")
    assert await world.network.list_attached() == set()
    assert b"8081" not in (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout


async def test_ports_are_added_and_taken_back_while_it_runs(world):
    await world.plug(ONE, world.one)
    (made,) = await world.network.publish(ONE, [PortRequest(80, host_port=8080)], "box1")
    assert await tcp_peer(host_socket(), world.one.socket(), 80, (LOOPBACK, 8080)) == GATEWAY
    await world.network.unpublish(ONE, [made])
    with pytest.raises(ConnectionRefusedError):
        await tcp_peer(host_socket(), world.one.socket(), 80, (LOOPBACK, 8080))


async def test_a_connection_over_a_port_that_is_taken_back_ends(world):
    await world.plug(ONE, world.one, [PortRequest(80, host_port=8080)])
    loop = asyncio.get_running_loop()
    with world.outside.socket() as client, world.one.socket() as server:
        server.bind(("", 80))
        server.listen(1)
        async with asyncio.timeout(SOON_S):
            await loop.sock_connect(client, (HOST_OUTSIDE, 8080))
            accepted, _ = await loop.sock_accept(server)
            with accepted:
                await world.network.unpublish(ONE, world.network.published(ONE))
                await loop.sock_sendall(client, b"still there?")
                with pytest.raises(ConnectionResetError):
                    await loop.sock_recv(client, 10)


async def test_who_sends_udp_without_a_pause_reaches_the_new_owner_of_a_port(world):
    """The kernel would remember the way of a flow that never pauses for ever."""
    port = PortRequest(53, UDP, host_port=5353)
    await world.plug(ONE, world.one)
    await world.plug(TWO, world.two)
    loop = asyncio.get_running_loop()
    with (
        world.outside.socket(socket.SOCK_DGRAM) as client,
        world.one.socket(socket.SOCK_DGRAM) as first,
        world.two.socket(socket.SOCK_DGRAM) as second,
    ):
        first.bind(("", 53))
        second.bind(("", 53))
        client.connect((HOST_OUTSIDE, 5353))
        with contextlib.suppress(ConnectionRefusedError):
            await loop.sock_sendall(client, b"nobody")
            await loop.sock_recv(client, 10)
        for sandbox_id, server in ((ONE, first), (TWO, second)):
            await world.network.publish(sandbox_id, [port], "box")
            async with asyncio.timeout(SOON_S):
                await loop.sock_sendall(client, b"somebody")
                assert await loop.sock_recv(server, 10) == b"somebody"
            await world.network.unpublish(sandbox_id, world.network.published(sandbox_id))


async def test_the_next_hyperd_holds_the_ports_and_makes_the_rules(world, database):
    """With a connection over one of them that goes on."""
    await world.plug(ONE, world.one, [PortRequest(80, host_port=8080)])
    loop = asyncio.get_running_loop()
    with world.outside.socket() as client, world.one.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", 80))
        server.listen(1)
        async with asyncio.timeout(SOON_S):
            await loop.sock_connect(client, (HOST_OUTSIDE, 8080))
            accepted, _ = await loop.sock_accept(server)
        world.network.close()
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        following = BridgeNetwork(SETTINGS, database)
        try:
            await following.prepare()
            assert following.published(ONE) == (PublishedPort(80, TCP, "0.0.0.0", 8080),)
            with socket.socket() as other, pytest.raises(OSError):
                other.bind(("", 8080))
            with accepted:
                async with asyncio.timeout(SOON_S):
                    await loop.sock_sendall(client, b"still here")
                    assert await loop.sock_recv(accepted, 20) == b"still here"
            server.close()
            assert (
                await tcp_peer(world.outside.socket(), world.one.socket(), 80, (HOST_OUTSIDE, 8080))
                == OUTSIDE
            )
            await following.release(ONE)
        finally:
            following.close()


async def test_rules_that_somebody_flushed_come_back_with_the_ports(world):
    await world.plug(ONE, world.one, [PortRequest(80, host_port=8080)])
    await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
    await world.network.publish(ONE, [PortRequest(81, host_port=8081)], "box1")
    for port in (80, 81):
        assert await tcp_peer(host_socket(), world.one.socket(), port, (LOOPBACK, 8000 + port)) == GATEWAY


async def test_a_caller_that_goes_away_at_any_moment_leaves_no_port(world):
    for moment in range(40):
        attaching = asyncio.create_task(world.network.attach(ONE, [PortRequest(80, host_port=8080)], "box1"))
        for _ in range(moment):
            await asyncio.sleep(0)
        attaching.cancel()
        await asyncio.wait([attaching])
        if not attaching.cancelled():
            await world.network.release(ONE)
        assert world.network.published(ONE) == (), moment
        assert await world.network.list_attached() == set(), moment
        with socket.socket() as free:
            free.bind(("", 8080))
    assert b"8080" not in (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout


async def test_ports_without_an_address_are_published_at_the_default(database):
    network = BridgeNetwork(
        BridgeSettings(
            tap_owner_uid=0,
            bridge=SETTINGS.bridge,
            subnet=IPv4Network("10.213.0.0/24"),
            publish_address=IPv4Address(LOOPBACK),
        ),
        database,
    )
    try:
        await network.prepare()
        await network.attach(ONE, [PortRequest(80)], "box1")
        (port,) = network.published(ONE)
        assert port.host_ip == LOOPBACK
        await network.release(ONE)
    finally:
        network.close()
        await clean()


async def test_records_that_are_read_again_after_a_failure_publish_nothing_twice(bridge_network, database):
    first = await bridge_network.attach(ONE, [PortRequest(80, host_port=8080)], "box1")
    assert first
    bridge_network.close()
    following = BridgeNetwork(SETTINGS, database)
    try:
        await following._publishing.load()  # and then something else could not be read
        await following.prepare()
        await following.release(ONE)
        await following.attach(TWO, [PortRequest(80, host_port=8080)], "box2")
        assert following.published(TWO) == (PublishedPort(80, TCP, "0.0.0.0", 8080),)
        await following.release(TWO)
    finally:
        following.close()
