# SPDX-License-Identifier: Apache-2.0
"""Networks with IPv6: who reaches whom, under which address; what a hostile guest says to its neighbours."""

import asyncio
import contextlib
import socket
import struct
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.errors import ExistsError, InvalidError, UnavailableError
from hyperd.host import process
from hyperd.model.network import Endpoint, NetworkSpec
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetworks
from hyperd.network.pool import link_local_of
from hyperd.network.tap import PREFIX
from tests.contract.network.conftest import SETTINGS, Namespace, clean
from tests.contract.network.test_speakers import plugged, raw

ONE, TWO = SandboxId("1" * 64), SandboxId("2" * 64)
HOST_OUTSIDE, OUTSIDE, METADATA = "2001:db8:1::1", "2001:db8:1::2", "fd00:ec2::254"
SOON_S = 5.0
NOT_AT_ALL_S = 0.5
NODAD = 2
FORWARDING = Path("/proc/sys/net/ipv6/conf/all/forwarding")


@pytest.fixture
async def networks(database):
    made = BridgeNetworks(SETTINGS, database)
    try:
        await made.prepare()
        yield made
    finally:
        for owner in await made.list_attached():
            await made.release(owner)
        for view in made.list_networks()[1:]:
            await made.remove_network(view.spec.name)
        made.close()
        await clean()


async def test_a_way_out_that_is_too_narrow_for_ipv6_is_told_as_that(networks):
    async with AsyncIPRoute() as netlink:
        await netlink.link("add", ifname="narrow0", kind="veth", mtu=1200)
        (index,) = await netlink.link_lookup(ifname="narrow0")
        await netlink.link("set", index=index, state="up")
        await netlink.route("add", dst="0.0.0.0/0", oif=index)
        with pytest.raises(UnavailableError, match="IPv6 needs an MTU of 1280") as raised:
            await networks.create_network(NetworkSpec("six", ipv6=True))
        assert "--mtu 1280" in raised.value.hint
        await networks.create_network(NetworkSpec("six", ipv6=True, mtu=1280))
        await netlink.link("del", index=index)


@contextlib.asynccontextmanager
async def guest(networks, sandbox_id, network="six", **fields):
    lease = await networks.attach(sandbox_id, (), "x", Endpoint(network, **fields))
    async with AsyncIPRoute() as netlink:
        (bridge,) = await netlink.link_lookup(ifname=networks.get_network(network).bridge)
    with contextlib.closing(Namespace()) as namespace:
        async with namespace.wired(
            f"{PREFIX}-guest{sandbox_id[0]}",
            f"{lease.address}/{lease.prefix_length}",
            gateway=lease.gateway,
            mac=lease.mac,
            master=bridge,
        ):
            speak(namespace, f"{lease.address6}/{lease.prefix_length6}", lease.gateway6)
            yield namespace, lease


def speak(namespace, address, gateway=""):
    async def steps(netlink):
        (eth0,) = await netlink.link_lookup(ifname="eth0")
        plain, prefix = address.split("/")
        await netlink.addr(
            "add", index=eth0, address=plain, prefixlen=int(prefix), family=socket.AF_INET6, flags=NODAD
        )
        if gateway:
            await netlink.route("add", dst="default", gateway=gateway, family=socket.AF_INET6)

    namespace.configure(steps)


@contextlib.asynccontextmanager
async def somebody_outside():
    with contextlib.closing(Namespace()) as outside:
        async with outside.wired("veth-out", "198.51.100.2/24") as out:
            speak(outside, f"{OUTSIDE}/64", HOST_OUTSIDE)
            speak(outside, f"{METADATA}/128")
            async with AsyncIPRoute() as netlink:
                await netlink.addr(
                    "add", index=out, address=HOST_OUTSIDE, prefixlen=64, family=socket.AF_INET6, flags=NODAD
                )
                await netlink.route("add", dst=f"{METADATA}/128", gateway=OUTSIDE, family=socket.AF_INET6)
            yield outside


def tcp(namespace=None):
    made = (namespace.call if namespace else lambda make, *args: make(*args))(socket.socket, socket.AF_INET6)
    made.setblocking(False)
    return made


async def connects(client, server, address):
    """The peer address that the server sees. Raises OSError or TimeoutError."""
    loop = asyncio.get_running_loop()
    with client, server:
        server.bind(("::", 8080))
        server.listen(1)
        async with asyncio.timeout(SOON_S):
            await loop.sock_connect(client, (address, 8080))
            accepted, peer = await loop.sock_accept(server)
            accepted.close()
        return str(peer[0])


async def refused(client, server, address, within_s=SOON_S):
    with pytest.raises((OSError, TimeoutError)):
        async with asyncio.timeout(within_s):
            await connects(client, server, address)


async def test_a_network_gets_a_unique_local_prefix_and_guests_an_address_of_it(networks):
    made = await networks.create_network(NetworkSpec("six", ipv6=True))
    subnet = IPv6Network(made.spec.subnet6)
    assert subnet.subnet_of(IPv6Network("fd00::/8"))
    assert subnet.prefixlen == 64
    other = await networks.create_network(NetworkSpec("other", ipv6=True))
    assert other.spec.subnet6 != made.spec.subnet6
    one, two = [await networks.attach(box, (), "x", Endpoint("six")) for box in (ONE, TWO)]
    assert {IPv6Address(one.address6), IPv6Address(two.address6)} == {subnet[2], subnet[3]}
    assert (one.gateway6, one.prefix_length6) == (str(subnet[1]), 64)
    plain = await networks.attach(ONE, (), "x")
    assert (plain.address6, plain.gateway6) == ("", "")


async def test_guests_reach_each_other_and_the_outside_under_the_hosts_address(networks):
    await networks.create_network(NetworkSpec("six", ipv6=True))
    async with guest(networks, ONE) as (one, lease), guest(networks, TWO) as (two, other):
        assert await connects(tcp(one), tcp(two), other.address6) == lease.address6
        async with somebody_outside() as outside:
            assert await connects(tcp(one), tcp(outside), OUTSIDE) == HOST_OUTSIDE
            assert await connects(tcp(), tcp(one), lease.address6) == lease.gateway6
            await refused(tcp(outside), tcp(one), lease.address6, NOT_AT_ALL_S)
            await refused(tcp(one), tcp(outside), METADATA)
            for address in (lease.gateway6, HOST_OUTSIDE):
                await refused(tcp(one), tcp(), address)


async def test_networks_are_closed_to_each_other_and_internal_ones_to_the_world(networks):
    await networks.create_network(NetworkSpec("six", ipv6=True))
    await networks.create_network(NetworkSpec("vault", ipv6=True, internal=True))
    async with guest(networks, ONE) as (one, _), guest(networks, TWO, "vault") as (two, other):
        await refused(tcp(one), tcp(two), other.address6, NOT_AT_ALL_S)
        async with somebody_outside() as outside:
            await refused(tcp(two), tcp(outside), OUTSIDE)


async def test_an_address_that_is_asked_for_is_nobody_elses(networks):
    await networks.create_network(NetworkSpec("six", subnet="10.220.0.0/24", subnet6="fd12:3456::/64"))
    fixed = await networks.attach(ONE, (), "x", Endpoint("six", address6="fd12:3456::2"))
    assert fixed.address6 == "fd12:3456::2"
    others = [
        await networks.attach(SandboxId(f"{number:x}" * 64), (), "x", Endpoint("six"))
        for number in range(2, 9)
    ]
    assert "fd12:3456::2" not in [other.address6 for other in others]
    assert len({other.address6 for other in others}) == 7
    for taken in ("fd12:3456::2", others[0].address6):
        with pytest.raises(ExistsError):
            await networks.attach(SandboxId("a" * 64), (), "x", Endpoint("six", address6=taken))
    for wrong in ("fd12:3456::", "fd12:3456::1", "fd12:3457::9"):
        with pytest.raises(InvalidError):
            await networks.attach(SandboxId("a" * 64), (), "x", Endpoint("six", address6=wrong))
    with pytest.raises(InvalidError):
        await networks.attach(SandboxId("a" * 64), (), "x", Endpoint(address6="fd12:3456::9"))


@pytest.mark.parametrize(
    "fields",
    [
        {"subnet6": "fd12::/126"},
        {"subnet6": "fe80::/64"},
        {"subnet6": "ff02::/64"},
        {"subnet6": "fd00:ec2::/64"},
        {"subnet6": "10.0.0.0/8"},
        {"subnet6": "fd12::1/64"},
        {"subnet6": "fd12::/64", "gateway6": "fd13::1"},
        {"gateway6": "fd13::1"},
        {"subnet6": "2001:db8:1::/64"},
    ],
)
async def test_subnets_that_cannot_be_are_refused_and_leave_nothing(networks, fields):
    async with somebody_outside():
        with pytest.raises(InvalidError):
            await networks.create_network(NetworkSpec("six", **fields))
    assert len(networks.list_networks()) == 1


async def test_networks_come_back_with_their_prefix(networks, database):
    made = await networks.create_network(NetworkSpec("six", ipv6=True))
    lease = await networks.attach(ONE, (), "x", Endpoint("six"))
    networks.close()
    following = BridgeNetworks(SETTINGS, database)
    try:
        await following.prepare()
        assert following.get_network("six").spec == made.spec
        assert await following.attach(ONE, (), "x", Endpoint("six")) == lease
        await following.release(ONE)
        await following.remove_network("six")
    finally:
        following.close()
        networks._networks.pop("six")
        networks._views.pop("six")
    assert FORWARDING.read_text().strip() == "1"


def ip6(word, mac, source, *, protocol=253, body=b"", target="33:33:00:00:00:01"):
    payload = body + b"word:" + word.encode()
    header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255) + IPv6Address(source).packed
    return raw(target) + raw(mac) + b"\x86\xdd" + header + IPv6Address("ff02::1").packed + payload


def icmp6(word, mac, source, kind, target):
    body = struct.pack("!BBHI", kind, 0, 0, 0) + IPv6Address(target).packed
    return ip6(word, mac, source, protocol=58, body=body)


def udp(word, mac, source, ports):
    return ip6(word, mac, source, protocol=17, body=struct.pack("!4H", *ports, 40, 0))


OTHER_MAC, ADVERT, SOLICIT, ROUTER, REDIRECT = "02:00:00:00:00:99", 136, 135, 134, 137


def say(mouth, liar, listener):
    own, link = liar.address6, str(link_local_of(liar.mac))
    neighbour, gateway = listener.address6, liar.gateway6
    mouth.send(ip6("own ip", liar.mac, own))
    mouth.send(icmp6("own advert", liar.mac, own, ADVERT, own))
    mouth.send(icmp6("own link", liar.mac, link, SOLICIT, neighbour))
    mouth.send(ip6("forged mac", OTHER_MAC, own))
    mouth.send(ip6("neighbour", listener.mac, neighbour))
    mouth.send(ip6("forged ip", liar.mac, neighbour))
    mouth.send(ip6("forged link", liar.mac, "fe80::1"))
    mouth.send(icmp6("probe", liar.mac, "::", SOLICIT, neighbour))
    mouth.send(icmp6("advert for a neighbour", liar.mac, own, ADVERT, neighbour))
    mouth.send(icmp6("advert for the gateway", liar.mac, link, ADVERT, gateway))
    mouth.send(icmp6("router", liar.mac, link, ROUTER, own))
    mouth.send(icmp6("redirect", liar.mac, link, REDIRECT, own))
    mouth.send(udp("dhcp server", liar.mac, link, (547, 546)))
    mouth.send(ip6("end", liar.mac, own))


async def test_only_what_a_guest_says_as_itself_is_heard(networks):
    await networks.create_network(NetworkSpec("six", ipv6=True))
    liar, listener = [await networks.attach(box, (), "x", Endpoint("six")) for box in (ONE, TWO)]
    words: set[bytes] = set()
    wanted = {b"own ip", b"own advert", b"own link", b"end"}
    with plugged(liar.tap, listener.tap) as (mouth, ear):
        async with asyncio.timeout(20):
            while not words >= wanted:
                say(mouth, liar, listener)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        while (word := await ear.hear()) != b"end":
                            words |= {word} - {b""}
                        words.add(word)
    assert words == wanted


async def test_rules_that_were_flushed_come_back_with_ipv6(networks):
    made = await networks.create_network(NetworkSpec("six", ipv6=True))
    lease = await networks.attach(ONE, (), "x", Endpoint("six"))

    async def listed():
        tables = [["nft", "list", "table", family, f"hyper_{made.bridge}"] for family in ("inet", "bridge")]
        return b"".join([(await process.run(table, timeout_s=20)).stdout for table in tables])

    before = await listed()
    assert lease.address6.encode() in before
    await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
    await networks.attach(ONE, (), "x", Endpoint("six"))
    assert await listed() == before
    await networks.disconnect(ONE, made.spec.name)
    assert lease.address6.encode() not in await listed()
