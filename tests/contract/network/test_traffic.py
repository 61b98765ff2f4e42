# SPDX-License-Identifier: Apache-2.0
"""What may talk with what. A guest is played by a namespace on the bridge with a leased address."""

import asyncio
import contextlib
import os
import socket
import struct

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.model.vm import SandboxId
from hyperd.network.tap import PREFIX
from tests.contract.network.conftest import SETTINGS, Namespace

HOST_OUTSIDE, OUTSIDE, METADATA = "198.51.100.1", "198.51.100.2", "169.254.169.254"
SOON_S = 5.0
NOT_AT_ALL_S = 0.5  # how long a packet is given that should not come


@contextlib.contextmanager
def namespaces(count):
    made = [Namespace() for _ in range(count)]
    try:
        yield made
    finally:
        for namespace in made:
            namespace.close()


@pytest.fixture
async def world(bridge_network):
    """Two guests and somebody outside, who also plays the cloud's metadata service."""
    async with contextlib.AsyncExitStack() as stack:
        one, two, outside = stack.enter_context(namespaces(3))
        async with AsyncIPRoute() as netlink:
            (bridge,) = await netlink.link_lookup(ifname=SETTINGS.bridge)
        leases = [await bridge_network.attach(SandboxId(f"{number:064x}")) for number in (1, 2)]
        for number, (namespace, lease) in enumerate(zip((one, two), leases, strict=True)):
            await stack.enter_async_context(
                namespace.wired(
                    f"{PREFIX}-guest{number}",  # the rules know taps by their name
                    f"{lease.address}/{lease.prefix_length}",
                    gateway=lease.gateway,
                    mac=lease.mac,
                    master=bridge,
                )
            )
        out = await stack.enter_async_context(outside.wired("veth-out", f"{OUTSIDE}/24"))

        async def metadata(netlink):
            await netlink.addr("add", index=1, address=METADATA, prefixlen=32)

        outside.configure(metadata)
        async with AsyncIPRoute() as netlink:
            await netlink.addr("add", index=out, address=HOST_OUTSIDE, prefixlen=24)
            await netlink.route("add", dst=f"{METADATA}/32", gateway=OUTSIDE)
        yield World(one, two, outside, leases)


class World:
    def __init__(self, one, two, outside, leases):
        self.one, self.two, self.outside = one, two, outside
        self.leases = leases


async def connects(client: socket.socket, server: socket.socket, address: tuple[str, int]) -> str:
    """The peer address that the server sees. Raises OSError or TimeoutError."""
    loop = asyncio.get_running_loop()
    with client, server:
        server.bind(("", address[1]))
        server.listen(1)
        async with asyncio.timeout(SOON_S):
            await loop.sock_connect(client, address)
            accepted, peer = await loop.sock_accept(server)
            accepted.close()
        return str(peer[0])


async def refused(
    client: socket.socket, server: socket.socket, address: tuple[str, int], wait_s=SOON_S
) -> None:
    loop = asyncio.get_running_loop()
    with client, server:
        server.bind(("", address[1]))
        server.listen(1)
        with pytest.raises((OSError, TimeoutError)):
            async with asyncio.timeout(wait_s):
                await loop.sock_connect(client, address)


async def test_a_guest_reaches_the_outside_under_the_hosts_address(world):
    assert await connects(world.one.socket(), world.outside.socket(), (OUTSIDE, 8080)) == HOST_OUTSIDE


async def test_guests_reach_each_other_under_their_own_addresses(world):
    one, two = world.leases
    assert await connects(world.one.socket(), world.two.socket(), (two.address, 8080)) == one.address


async def test_the_host_reaches_a_guest(world):
    client = socket.socket()
    client.setblocking(False)
    assert (
        await connects(client, world.one.socket(), (world.leases[0].address, 80)) == world.leases[0].gateway
    )


@pytest.mark.parametrize("host_address", [str(SETTINGS.gateway), HOST_OUTSIDE])
async def test_a_guest_does_not_reach_the_hosts_services(world, host_address):
    server = socket.socket()
    server.setblocking(False)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await refused(world.one.socket(), server, (host_address, 8022))
    assert loop.time() - began < SOON_S / 2, "it is told so, not left to wait"


async def test_nobody_outside_reaches_a_guest(world):
    async def route_to_guests(netlink):
        await netlink.route("add", dst=str(SETTINGS.subnet), gateway=HOST_OUTSIDE)

    world.outside.configure(route_to_guests)
    address = (world.leases[0].address, 80)
    await refused(world.outside.socket(), world.one.socket(), address, NOT_AT_ALL_S)


async def test_the_clouds_metadata_is_out_of_reach_but_its_name_server_is_not(world):
    await refused(world.one.socket(), world.outside.socket(), (METADATA, 80))
    assert await connects(world.one.socket(), world.outside.socket(), (METADATA, 53)) == HOST_OUTSIDE


async def test_the_gateway_answers_a_ping(world):
    loop = asyncio.get_running_loop()
    with world.one.socket(socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinger:
        async with asyncio.timeout(SOON_S):
            await loop.sock_sendto(pinger, echo_request(), (world.leases[0].gateway, 0))
            answer = await loop.sock_recv(pinger, 1024)
    assert answer[20] == 0, "an echo reply"


async def test_a_guest_cannot_speak_under_another_address(world):
    async def second_address(netlink):
        (eth0,) = await netlink.link_lookup(ifname="eth0")
        await netlink.addr("add", index=eth0, address="203.0.113.9", prefixlen=32)

    world.one.configure(second_address)
    client = world.one.socket()
    client.bind(("203.0.113.9", 0))
    async with AsyncIPRoute() as netlink:
        await netlink.route("add", dst="203.0.113.9/32", gateway=world.leases[0].address)
    await refused(client, world.outside.socket(), (OUTSIDE, 8080), NOT_AT_ALL_S)


def echo_request() -> bytes:
    head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
    total = sum(struct.unpack("!4H", head))
    return head[:2] + struct.pack("!H", ~((total >> 16) + total) & 0xFFFF) + head[4:]
