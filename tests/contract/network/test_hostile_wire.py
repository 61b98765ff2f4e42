# SPDX-License-Identifier: Apache-2.0
"""A hostile guest at the end of a routed tap: it is nobody else, and nobody hears it but whom it may speak to."""

import asyncio
import socket
import struct

import pytest

from hyperd.host import process
from hyperd.network.tap import tap_name
from tests.contract.network.egress import OUTSIDE, POLICED, SOON_S, connects, world

NOT_AT_ALL_S = 0.5  # how long a packet is given that should not come
FORGED = "10.213.0.77"


async def heard(receiver: socket.socket, wait_s: float = NOT_AT_ALL_S) -> bytes | None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(wait_s):
            return await loop.sock_recv(receiver, 4096)
    except TimeoutError:
        return None


async def further_address(it, address: str) -> None:
    async def steps(netlink):
        (eth0,) = await netlink.link_lookup(ifname="eth0")
        await netlink.addr("add", index=eth0, address=address, prefixlen=32)

    it.guest.configure(steps)


@pytest.mark.parametrize("forged", [FORGED, "203.0.113.9", "10.213.0.1", "127.0.0.1"])
async def test_it_speaks_under_no_other_address(database, forged):
    async with world(database, "allow-all") as it:
        if not forged.startswith("127."):
            await further_address(it, forged)
        raw = it.guest.socket(socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw as sender, it.outside.socket(socket.SOCK_DGRAM) as receiver:
            receiver.bind(("", 9000))
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(sender, datagram(it.leases[0].address, OUTSIDE, 9000), (OUTSIDE, 0))
            assert await heard(receiver, SOON_S) is not None, "under its own it does"
            await loop.sock_sendto(sender, datagram(forged, OUTSIDE, 9000), (OUTSIDE, 0))
            assert await heard(receiver) is None


async def test_what_it_says_in_arp_is_believed_of_itself_alone(database):
    async with world(database, "allow-all") as it:
        mac = bytes.fromhex(it.leases[0].mac.replace(":", ""))
        with it.guest.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("eth0", 0x0806))
            for address in (FORGED, it.leases[1].address, "203.0.113.9"):
                for kind in (1, 2):
                    claimed, target = socket.inet_aton(address), socket.inet_aton(it.gateway)
                    arp = struct.pack(
                        "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, kind, mac, claimed, b"\xff" * 6, target
                    )
                    sender.send(b"\xff" * 6 + mac + b"\x08\x06" + arp)
        assert await it.connects(OUTSIDE, 8080), "what came before has been read"
        known = await process.run_checked(["ip", "neigh", "show", "dev", tap_name(POLICED)], timeout_s=20)
        addresses = {line.split()[0] for line in known.stdout.decode().splitlines()}
        assert addresses <= {it.leases[0].address}
        assert await it.connects(it.leases[1].address, 80, it.neighbour)


async def test_it_has_no_ipv6(database):
    async with world(database, "allow-all") as it:

        async def steps(netlink):
            (eth0,) = await netlink.link_lookup(ifname="eth0")
            await netlink.addr("add", index=eth0, address="fd00::1", prefixlen=64, flags=0x02)

        it.guest.configure(steps)
        (index,) = [each for each, name in it.guest.call(socket.if_nameindex) if name == "eth0"]
        loop = asyncio.get_running_loop()
        with it.guest.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with (
                it.neighbour.socket(socket.SOCK_DGRAM) as _,
                socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as host,
            ):
                host.setblocking(False)
                host.bind(("::", 9000))
                await loop.sock_sendto(sender, b"anybody?", ("ff02::1", 9000, 0, index))
                assert await heard(host) is None


async def test_what_it_broadcasts_nobody_hears(database):
    async with world(database, "allow-all") as it:
        loop = asyncio.get_running_loop()
        with it.guest.socket(socket.SOCK_DGRAM) as sender, it.neighbour.socket(socket.SOCK_DGRAM) as receiver:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            receiver.bind(("", 67))
            for address in ("255.255.255.255", "10.213.0.255"):
                await loop.sock_sendto(sender, b"an offer", (address, 67))
            assert await heard(receiver) is None


async def test_who_claims_to_be_a_neighbour_from_outside_is_not_heard(database):
    async with world(database, "none") as it:
        address, claimed = it.leases[0].address, it.leases[1].address
        await it.outside_knows("10.213.0.0/24")
        loop = asyncio.get_running_loop()
        raw = it.outside.socket(socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw as sender, it.guest.socket(socket.SOCK_DGRAM) as receiver:
            receiver.bind(("", 9000))
            await loop.sock_sendto(sender, datagram(claimed, address, 9000), (address, 0))
            assert await heard(receiver) is None
        assert await connects(it.neighbour, it.guest, address, 8080), "the neighbour itself is"


def datagram(source: str, destination: str, port: int) -> bytes:
    payload = b"who am I?"
    udp = struct.pack("!HHHH", 9999, port, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp
