# SPDX-License-Identifier: Apache-2.0
"""What a sandbox with a policy reaches in IPv6, and who reaches it, played by namespaces; what a hostile one says."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import socket
import struct
from typing import Any

import dns.message
import dns.rcode
import pytest
from pyroute2 import AsyncIPRoute

from hyperd.host import process
from hyperd.model.network import Attachment, Endpoint, NetworkSpec, PortRequest
from hyperd.model.policy import Limits
from hyperd.network import BridgeNetworks
from hyperd.network.bridge import is_loopback6_led
from hyperd.network.pool import link_local_of
from hyperd.network.tap import tap_name
from hyperd.sandbox.identity import routes_of
from tests.contract.network.conftest import SETTINGS, Namespace, clean
from tests.contract.network.egress import SOON_S, UPSTREAM, Upstream, are_joined
from tests.contract.network.test_hostile_wire import heard
from tests.contract.network.test_ipv6 import (
    HOST_OUTSIDE,
    METADATA,
    ONE,
    OUTSIDE,
    TWO,
    guest,
    somebody_outside,
    speak,
    tcp,
)

GOOD, BAD, INSIDE, MAPPED = "2606:2800:220:1::34", "2606:2800:220:1::99", "fd99::1", "::ffff:a00:1"
NAT64_INSIDE = "64:ff9b::a00:1"
NODAD = 2
BY_NAME = "allow: [{domain: [good.example, '*.good.example'], ports: 443}]"


@dataclasses.dataclass
class World:
    networks: BridgeNetworks
    guest: Namespace
    lease: Attachment
    neighbour: Namespace
    beside: Attachment
    outside: Namespace
    upstream: Upstream

    async def change(self, limits: Limits) -> None:
        await self.networks.policies.change(ONE, limits, "job")
        await self.networks.enforce(ONE)

    async def connects(self, host: str, port: int, server: Namespace | None = None) -> bool:
        return await connects(tcp(self.guest), tcp(server or self.outside), host, port)

    async def is_reached(self, client: Namespace | None, host: str, port: int, listens: int = 0) -> bool:
        return await connects(tcp(client), tcp(self.guest), host, port, listens=listens)

    async def ask(self, name: str, kind: str, server: str) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=0)
        with datagrams(self.guest) as asking:
            async with asyncio.timeout(SOON_S):
                await asyncio.get_running_loop().sock_sendto(asking, query.to_wire(), (server, 53))
                return dns.message.from_wire(await asyncio.get_running_loop().sock_recv(asking, 4096))

    async def look_up(self, name: str, kind: str = "AAAA", server: str = "") -> list[str]:
        answer = (await self.ask(name, kind, server or self.lease.gateway6)).answer
        return [rdata.to_text() for rrset in answer for rdata in rrset]

    async def tried(self) -> dict[tuple[str, str, int], int]:
        report = await self.networks.policies.report(ONE)
        return {(each.destination, each.protocol, each.port): each.count for each in report.attempts}


def datagrams(namespace: Namespace, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> socket.socket:
    made: socket.socket = namespace.call(socket.socket, socket.AF_INET6, kind, protocol)
    made.setblocking(False)
    return made


async def connects(
    client: socket.socket, server: socket.socket, host: str, port: int, *, listens: int = 0
) -> bool:
    return await are_joined(client, server, host, port, at=("::", listens or port))


def follow_routes(namespace: Namespace, lease: Attachment) -> None:
    """As the agent does."""

    async def steps(netlink: AsyncIPRoute) -> None:
        (eth0,) = await netlink.link_lookup(ifname="eth0")
        for route in routes_of(lease, has_default_route=False):
            via = {"gateway": route.gateway} if route.gateway else {"scope": 253}
            await netlink.route("add", dst=route.destination, oif=eth0, family=socket.AF_INET6, **via)

    namespace.configure(steps)


@contextlib.asynccontextmanager
async def world(database: Any, egress: str, spec: NetworkSpec | None = None):
    loop, upstream = asyncio.get_running_loop(), Upstream()
    upstream.zone |= {
        "good.example.": [GOOD, "93.184.216.34"],
        "bad.example.": [BAD],
        "inside.example.": [INSIDE],
        "all.example.": [INSIDE, MAPPED, NAT64_INSIDE, "fe80::1", "::1", METADATA, GOOD],
    }
    transport, _ = await loop.create_datagram_endpoint(lambda: upstream, local_addr=(UPSTREAM, 53))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(transport.close)
        networks = BridgeNetworks(SETTINGS, database, lambda: (UPSTREAM,))
        stack.push_async_callback(clean)
        stack.push_async_callback(_leave, networks)
        await networks.prepare()
        made = await networks.create_network(spec or NetworkSpec("six", ipv6=True))
        if egress:
            await networks.policies.impose(ONE, Limits(egress), "job")
        lease = await networks.attach(ONE, (), "job", Endpoint("six"))
        policed = stack.enter_context(contextlib.closing(Namespace()))
        async with AsyncIPRoute() as netlink:
            for tap in await netlink.link_lookup(ifname=tap_name(ONE)):
                await netlink.link("del", index=tap)
            (bridge,) = await netlink.link_lookup(ifname=made.bridge)
        wired = policed.wired(
            *(tap_name(ONE), f"{lease.address}/{lease.prefix_length}"),
            gateway=lease.gateway,
            mac=lease.mac,
            master=0 if egress else bridge,
        )
        await stack.enter_async_context(wired)
        speak(policed, f"{lease.address6}/{lease.prefix_length6}", lease.gateway6)
        follow_routes(policed, lease)
        await networks.enforce(ONE)
        neighbour, beside = await stack.enter_async_context(guest(networks, TWO))
        outside = await stack.enter_async_context(somebody_outside())

        async def further(netlink: AsyncIPRoute) -> None:
            for address in (GOOD, BAD, INSIDE):
                await netlink.addr("add", index=1, address=address, prefixlen=128, flags=NODAD)

        outside.configure(further)
        async with AsyncIPRoute() as netlink:
            for address in (GOOD, BAD, INSIDE):
                await netlink.route("add", dst=f"{address}/128", gateway=OUTSIDE, family=socket.AF_INET6)
        yield World(networks, policed, lease, neighbour, beside, outside, upstream)


async def _leave(networks: BridgeNetworks) -> None:
    for owner in await networks.list_attached():
        await networks.release(owner)
    for view in networks.list_networks()[1:]:
        await networks.remove_network(view.spec.name)
    networks.close()


async def test_nothing_leaves_under_none_and_what_was_tried_is_told(database):
    async with world(database, "none") as it:
        for _ in range(2):
            assert not await it.connects(OUTSIDE, 8080)
        assert not await it.connects(it.beside.address6, 80, it.neighbour)
        assert not await it.connects(it.lease.gateway6, 8022)
        assert await it.look_up("good.example") == []
        assert await it.tried() == {
            (OUTSIDE, "tcp", 8080): 2,
            (it.beside.address6, "tcp", 80): 1,
            (it.lease.gateway6, "tcp", 8022): 1,
            ("good.example", "dns", 0): 1,
        }
        assert await it.is_reached(it.neighbour, it.lease.address6, 8080), "and its neighbours reach it"
        assert await it.is_reached(None, it.lease.address6, 8080), "and the host"


async def test_an_allowed_name_leads_where_it_says_and_nowhere_else(database):
    async with world(database, BY_NAME) as it:
        assert not await it.connects(GOOD, 443), "not before it was asked for by its name"
        assert await it.look_up("good.example") == [GOOD]
        assert await it.connects(GOOD, 443)
        assert not await it.connects(GOOD, 80)
        assert await it.look_up("bad.example") == []
        assert not await it.connects(BAD, 443)
        report = await it.networks.policies.report(ONE)
        named = {(each.destination, each.port): each.name for each in report.attempts}
        assert (named[GOOD, 80], named[BAD, 443]) == ("good.example", "")


async def test_whomever_it_asks_by_ipv6_our_server_answers(database):
    async with world(database, BY_NAME) as it:
        for server in ("2001:4860:4860::8888", it.lease.gateway6):
            assert await it.look_up("good.example", server=server) == [GOOD]
            assert (await it.ask("bad.example", "AAAA", server)).rcode() == dns.rcode.NXDOMAIN
        await it.change(Limits("allow-all"))
        assert await it.look_up("bad.example", server="2001:4860:4860::8888") == [BAD]


async def test_names_that_lead_inside_are_not_told(database):
    async with world(database, "allow: [{domain: [inside.example, all.example]}]") as it:
        assert await it.look_up("inside.example") == []
        assert await it.look_up("all.example") == [GOOD]
        assert not await it.connects(INSIDE, 80)
        refused = {destination for destination, protocol, _ in await it.tried() if protocol == "dns"}
        assert refused >= {INSIDE, MAPPED, NAT64_INSIDE, "fe80::1", "::1", METADATA}


async def test_ranges_and_ports_hold_as_in_ipv4(database):
    allowed = f"allow: [{{cidr: '{INSIDE}/64', ports: 80}}, {{cidr: '2000::/3', protocol: udp}}]"
    async with world(database, allowed.replace(f"{INSIDE}/64", "fd99::/64")) as it:
        assert await it.connects(INSIDE, 80)
        assert not await it.connects(INSIDE, 81)
        assert not await it.connects(OUTSIDE, 80)
        with datagrams(it.guest) as sender, datagrams(it.outside) as receiver:
            receiver.bind(("::", 9000))
            await asyncio.get_running_loop().sock_sendto(sender, b"one", (OUTSIDE, 9000))
            assert await heard(receiver, SOON_S) == b"one"


@pytest.mark.parametrize("metadata", ["::/0", f"{METADATA}/128"])
async def test_the_metadata_are_reached_only_where_they_are_named(database, metadata):
    async with world(database, f"allow: [{{cidr: '{metadata}'}}]") as it:
        assert await it.connects(METADATA, 80) is (metadata != "::/0")
        assert not await it.connects(it.lease.gateway6, 8022), "nor the host"


async def test_allow_all_reaches_what_a_sandbox_without_a_policy_does(database):
    async with world(database, "allow-all") as it:
        assert await it.connects(OUTSIDE, 8080)
        assert await it.connects(it.beside.address6, 80, it.neighbour)
        assert not await it.connects(it.lease.gateway6, 8022)
        assert not await it.connects(METADATA, 80)


async def test_on_an_internal_network_it_reaches_its_neighbours_alone(database):
    async with world(database, "allow-all", NetworkSpec("six", ipv6=True, internal=True)) as it:
        assert await it.connects(it.beside.address6, 80, it.neighbour)
        assert await it.is_reached(it.neighbour, it.lease.address6, 80)
        assert not await it.connects(OUTSIDE, 8080)


async def test_one_that_runs_gets_its_first_policy_and_goes_on(database):
    async with world(database, "") as it:
        assert await it.connects(it.beside.address6, 80, it.neighbour)
        await it.change(Limits(f"allow: [{{cidr: '{OUTSIDE}'}}, {{cidr: '{it.beside.address6}'}}]"))
        follow_routes(it.guest, dataclasses.replace(it.lease, is_routed=True))
        assert await it.connects(OUTSIDE, 8080)
        assert await it.connects(it.beside.address6, 80, it.neighbour)
        await it.change(Limits("none"))
        assert not await it.connects(OUTSIDE, 8080)


async def test_what_is_published_in_ipv6_is_heard_from_whom_a_group_lets_in(database):
    def web(prefix: str) -> str:
        rule = {"direction": "ingress", "protocol": "tcp", "port_range_min": 80, "remote_ip_prefix": prefix}
        return json.dumps({"name": "web", "rules": [rule]})

    async with world(database, "allow-all") as it:
        await it.networks.publish(ONE, [PortRequest(80, host_port=8080)], "job", "six")
        assert await it.is_reached(it.outside, HOST_OUTSIDE, 8080, 80)
        assert await it.is_reached(None, "::1", 8080, 80) is is_loopback6_led()
        assert await it.is_reached(it.neighbour, it.beside.gateway6, 8080, 80)
        await it.networks.policies.groups.create(web("2001:db8:99::/64"))
        await it.change(Limits("allow-all", ("web",)))
        assert not await it.is_reached(it.outside, HOST_OUTSIDE, 8080, 80)
        await it.networks.policies.groups.update(web(f"{OUTSIDE}/128"))
        assert await it.is_reached(it.outside, HOST_OUTSIDE, 8080, 80)
        assert not await it.is_reached(it.neighbour, it.lease.address6, 80)


async def test_a_rule_may_speak_of_a_group(database):
    async with world(database, "allow: [{group: db, ports: 5432}]") as it:
        assert not await it.connects(it.beside.address6, 5432, it.neighbour)
        await it.networks.policies.groups.create('{"name": "db"}')
        shown = (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout.decode()
        assert "members6_" in shown


async def test_it_speaks_as_nobody_else(database):
    async with world(database, "allow-all") as it:
        net = ipaddress.IPv6Interface(f"{it.lease.address6}/64").network
        forged = [str(net[77]), "2001:db8:7::7", it.lease.gateway6, it.beside.address6]
        link = str(link_local_of(it.lease.mac))
        with (
            datagrams(it.guest, socket.SOCK_RAW, socket.IPPROTO_RAW) as mouth,
            datagrams(it.outside) as receiver,
        ):
            receiver.bind(("::", 9000))
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(mouth, datagram(it.lease.address6, OUTSIDE, 9000), (OUTSIDE, 0))
            assert await heard(receiver, SOON_S) is not None, "under its own address it does"
            for source in (*forged, link):
                await loop.sock_sendto(mouth, datagram(source, OUTSIDE, 9000), (OUTSIDE, 0))
            assert await heard(receiver) is None


async def test_what_it_says_of_neighbours_and_routers_is_not_believed(database):
    async with world(database, "allow-all") as it:
        link = str(link_local_of(it.lease.mac))
        with datagrams(it.guest, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as mouth:
            mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            (index,) = [each for each, name in it.guest.call(socket.if_nameindex) if name == "eth0"]
            loop = asyncio.get_running_loop()
            for target in (it.beside.address6, it.lease.gateway6, OUTSIDE):
                body = struct.pack("!BBHI", 136, 0, 0, 1 << 29) + ipaddress.IPv6Address(target).packed
                body += b"\x02\x01" + bytes.fromhex(it.lease.mac.replace(":", ""))
                await loop.sock_sendto(mouth, body, ("ff02::1", 0, 0, index))
            router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
            await loop.sock_sendto(mouth, router, ("ff02::1", 0, 0, index))
        assert await it.connects(OUTSIDE, 8080), "what came before has been read"
        shown = await process.run_checked(["ip", "-6", "neigh", "show", "dev", tap_name(ONE)], timeout_s=20)
        known = {line.split()[0] for line in shown.stdout.decode().splitlines()}
        assert known <= {it.lease.address6, link}
        routes = await process.run_checked(["ip", "-6", "route", "show", "dev", tap_name(ONE)], timeout_s=20)
        assert b"default" not in routes.stdout
        assert await it.connects(it.beside.address6, 80, it.neighbour)


async def test_names_are_not_told_to_an_address_of_its_link(database):
    """Which no policy is known by: all would be told."""
    async with world(database, BY_NAME) as it:
        link = str(link_local_of(it.lease.mac))
        with datagrams(it.guest, socket.SOCK_RAW, socket.IPPROTO_RAW) as mouth:
            query = dns.message.make_query("bad.example", "AAAA").to_wire()
            packet = datagram(link, it.lease.gateway6, 53, query)
            await asyncio.get_running_loop().sock_sendto(mouth, packet, (it.lease.gateway6, 0))
        assert await it.look_up("good.example") == [GOOD], "what came before was asked"
        assert "bad.example." not in it.upstream.asked


async def test_when_it_has_gone_nothing_of_it_is_left(database):
    async with world(database, "allow-all") as it:
        base = f"hyper_{it.networks.get_network('six').bridge}"
        for address in (it.lease.address, it.lease.address6):
            assert it.networks.policies.wire_at(base, ipaddress.ip_address(address)).name == tap_name(ONE)
        shown = await process.run_checked(["ip", "-6", "neigh", "show", "proxy"], timeout_s=20)
        assert it.lease.address6 in shown.stdout.decode()
        await it.networks.release(ONE)
        shown = await process.run_checked(["ip", "-6", "neigh", "show", "proxy"], timeout_s=20)
        assert it.lease.address6 not in shown.stdout.decode()
        ruleset = (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout.decode()
        assert tap_name(ONE) not in ruleset


def datagram(source: str, destination: str, port: int, payload: bytes = b"who am I?") -> bytes:
    size = 8 + len(payload)
    packed = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed
    udp = struct.pack("!HHHH", 9999, port, size, 0) + payload
    checked = packed + struct.pack("!II", size, 17) + udp + b"\0" * (size % 2)
    total = sum(struct.unpack(f"!{len(checked) // 2}H", checked))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    udp = udp[:6] + struct.pack("!H", (~total & 0xFFFF) or 0xFFFF) + udp[8:]
    return struct.pack("!IHBB", 6 << 28, size, 17, 64) + packed + udp
