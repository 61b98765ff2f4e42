# SPDX-License-Identifier: Apache-2.0
"""A world for policies: a sandbox that has one, a neighbour that has none, and servers beyond, with names."""

import asyncio
import contextlib
import errno
import socket
from ipaddress import ip_address

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from hyperd.host import process
from hyperd.model.policy import Limits
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetworks
from hyperd.network.elements import NETLINK_NETFILTER, attributes, message
from hyperd.network.tap import PREFIX, tap_name
from tests.contract.network.conftest import SETTINGS, Namespace, clean

POLICED, PLAIN = SandboxId("1" * 64), SandboxId("2" * 64)
HOST_OUTSIDE, OUTSIDE = "198.51.100.1", "198.51.100.2"
GOOD, BAD, INSIDE = "93.184.216.34", "93.184.216.99", "10.99.0.1"  # where the names lead
UPSTREAM = "127.0.0.78"
SOON_S = 10.0
_RCVBUFFORCE = 33  # socket(7); Python has no name for it


class Upstream(asyncio.DatagramProtocol):
    """Of the host: what `zone` has, and how often it was asked for it."""

    def __init__(self) -> None:
        self.zone = {
            "good.example.": [GOOD],
            "files.good.example.": [GOOD],
            "bad.example.": [BAD],
            "inside.example.": [INSIDE],
            "both.example.": [INSIDE, GOOD],
        }
        self.asked: list[str] = []

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, addr):
        query = dns.message.from_wire(data)
        made = dns.message.make_response(query)
        name = query.question[0].name.to_text()
        self.asked.append(name)
        if name not in self.zone:
            made.set_rcode(dns.rcode.NXDOMAIN)
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        version = {"A": 4, "AAAA": 6}.get(kind)
        known = [each for each in self.zone.get(name, []) if ip_address(each).version == version]
        if known:
            made.answer.append(dns.rrset.from_text(name, 60, "IN", kind, *known))
        self._transport.sendto(made.to_wire(), addr)


class World:
    def __init__(self, stack, pools, networks, guest, neighbour, outside, leases, upstream):
        self.stack, self.pools = stack, pools
        self.networks = networks
        self.guest, self.neighbour, self.outside = guest, neighbour, outside
        self.leases = leases
        self.upstream = upstream

    @property
    def policies(self):
        return self.networks.policies

    async def restart(self, database) -> None:
        """As after a kill."""
        self.networks.close()
        self.networks = BridgeNetworks(SETTINGS, database, lambda: (UPSTREAM,), self.pools)
        await self.networks.prepare()

    async def leave(self) -> None:
        for owner in (POLICED, PLAIN):
            await self.networks.release(owner)
        self.networks.close()

    @property
    def gateway(self) -> str:
        return str(self.leases[0].gateway)

    async def change(self, egress: str) -> None:
        await self.policies.change(POLICED, Limits(egress), "job")
        await self.networks.enforce(POLICED)

    async def look_up(self, name: str, kind: str = "A", server: str = "") -> list[str]:
        """The addresses that the guest is told. Raises TimeoutError."""
        return [rdata.to_text() for rrset in (await self.ask(name, kind, server)).answer for rdata in rrset]

    async def ask(self, name: str, kind: str = "A", server: str = "") -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=0)
        loop = asyncio.get_running_loop()
        with self.guest.socket(socket.SOCK_DGRAM) as asking:
            async with asyncio.timeout(SOON_S):
                await loop.sock_sendto(asking, query.to_wire(), (server or self.gateway, 53))
                return dns.message.from_wire(await loop.sock_recv(asking, 4096))

    async def connects(self, host: str, port: int, server: Namespace | None = None) -> bool:
        """Whether the guest reaches what listens there; told at once when it does not. Raises TimeoutError."""
        return await connects(self.guest, (server or self.outside), host, port)

    async def plug_again(self) -> None:
        """After the sandbox was stopped."""
        lease = await self.networks.attach(POLICED)
        self.guest.close()
        self.guest = Namespace()
        self.stack.callback(self.guest.close)
        await plug(self.stack, self.guest, lease, tap_name(POLICED), bridged=False)
        await self.networks.enforce(POLICED)

    async def replug_neighbour(self, limits: Limits) -> None:
        """With limits of its own."""
        await self.networks.detach(PLAIN)
        await self.policies.change(PLAIN, limits, "neighbour")
        lease = await self.networks.attach(PLAIN)
        self.neighbour.close()
        async with AsyncIPRoute() as netlink:
            for old in await netlink.link_lookup(ifname=f"{PREFIX}-guest2"):
                try:
                    await netlink.link("del", index=old)
                except NetlinkError as error:
                    if error.code != errno.ENODEV:  # it went with the namespace of its other end
                        raise
        self.neighbour = Namespace()
        self.stack.callback(self.neighbour.close)
        await plug(self.stack, self.neighbour, lease, tap_name(PLAIN), bridged=False)
        await self.networks.enforce(PLAIN)

    async def queue(self) -> str:
        """How what is sent to the guest waits."""
        shown = await process.run_checked(["tc", "qdisc", "show", "dev", tap_name(POLICED)], timeout_s=20)
        return shown.stdout.decode()

    async def flood(self, size_bytes: int) -> int:
        """What of so much arrives outside, in datagrams."""
        loop = asyncio.get_running_loop()
        with self.guest.socket(socket.SOCK_DGRAM) as sender, self.outside.socket(socket.SOCK_DGRAM) as heard:
            heard.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 4 * size_bytes)
            heard.bind(("", 9000))
            for _ in range(size_bytes // 1000):
                await loop.sock_sendto(sender, b"x" * 972, (OUTSIDE, 9000))
            arrived = 0
            while True:
                try:
                    arrived += len(heard.recv(2000)) + 28
                except BlockingIOError:
                    return arrived

    async def outside_knows(self, range_: str) -> None:
        """That the way there is through the host."""

        async def route(netlink):
            await netlink.route("add", dst=range_, gateway=HOST_OUTSIDE)

        self.outside.configure(route)

    async def scan(self, count: int) -> None:
        """A datagram to each of so many ports outside."""
        loop = asyncio.get_running_loop()
        for port in range(1000, 1000 + count):
            with self.guest.socket(socket.SOCK_DGRAM) as sender:  # a socket hears of the refusal once
                await loop.sock_sendto(sender, b"anybody?", (OUTSIDE, port))

    @contextlib.asynccontextmanager
    async def connected(self, host: str, port: int):
        """The guest's end of a connection to outside, and the other."""
        loop = asyncio.get_running_loop()
        with self.guest.socket() as begun, self.outside.socket() as listening:
            listening.bind(("", port))
            listening.listen(1)
            async with asyncio.timeout(SOON_S):
                await loop.sock_connect(begun, (host, port))
                accepted, _ = await loop.sock_accept(listening)
            with accepted:
                accepted.setblocking(False)
                yield begun, accepted

    async def tried(self) -> dict[tuple[str, int], int]:
        """Destination and port of what was refused -> how often."""
        report = await self.policies.report(POLICED)
        return {(attempt.destination, attempt.port): attempt.count for attempt in report.attempts}


async def rules() -> str:
    return (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout.decode()


def generation() -> int:
    """How many transactions nftables has seen here; see NFT_MSG_GETGEN in linux/netfilter/nf_tables.h."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.send(message(10 << 8 | 16, 1, 1, 0, b"", 0))
        return int.from_bytes(dict(attributes(kernel.recv(4096)[20:]))[1], "big")


async def connects(client: Namespace, server: Namespace, host: str, port: int, *, listens: int = 0) -> bool:
    """``listens``: where, when it is not that port."""
    return await are_joined(client.socket(), server.socket(), host, port, at=("", listens or port))


async def are_joined(
    begun: socket.socket, listening: socket.socket, host: str, port: int, *, at: tuple[str, int]
) -> bool:
    """One that listens ``at`` hears the other; told at once when it does not. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    with begun, listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(at)
        listening.listen(4)
        try:
            async with asyncio.timeout(SOON_S):
                await loop.sock_connect(begun, (host, port))
                accepted, _ = await loop.sock_accept(listening)
        except TimeoutError:
            raise
        except OSError:
            return False
        accepted.close()
        return True


async def peer_of(client: Namespace, server: Namespace, host: str, port: int) -> str:
    """Whom the server sees."""
    loop = asyncio.get_running_loop()
    with client.socket() as begun, server.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("", port))
        listening.listen(4)
        async with asyncio.timeout(SOON_S):
            await loop.sock_connect(begun, (host, port))
            accepted, peer = await loop.sock_accept(listening)
    accepted.close()
    return str(peer[0])


@contextlib.asynccontextmanager
async def world(database, egress: str, pools=()):
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    transport, _ = await loop.create_datagram_endpoint(lambda: upstream, local_addr=(UPSTREAM, 53))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(transport.close)
        networks = BridgeNetworks(SETTINGS, database, lambda: (UPSTREAM,), pools)
        stack.push_async_callback(clean)
        guest, neighbour, outside = (Namespace() for _ in range(3))
        it = World(stack, pools, networks, guest, neighbour, outside, [], upstream)
        stack.push_async_callback(it.leave)
        for namespace in (guest, neighbour, outside):
            stack.callback(namespace.close)
        await networks.prepare()
        await networks.policies.impose(POLICED, Limits(egress), "job")
        it.leases += [await networks.attach(owner) for owner in (POLICED, PLAIN)]
        await plug(stack, guest, it.leases[0], tap_name(POLICED), bridged=not egress)
        await networks.enforce(POLICED)
        await plug(stack, neighbour, it.leases[1], f"{PREFIX}-guest2", bridged=True)
        await around(stack, outside)
        yield it


async def plug(stack, namespace, lease, name, *, bridged) -> None:
    """A namespace in the place of the guest at a tap."""
    async with AsyncIPRoute() as netlink:
        for tap in await netlink.link_lookup(ifname=name):
            await netlink.link("del", index=tap)
        (bridge,) = await netlink.link_lookup(ifname=SETTINGS.bridge)
    address = f"{lease.address}/{lease.prefix_length}"
    wired = namespace.wired(
        name, address, gateway=lease.gateway, mac=lease.mac, master=bridge if bridged else 0
    )
    await stack.enter_async_context(wired)


async def around(stack, outside) -> None:
    out = await stack.enter_async_context(outside.wired("veth-out", f"{OUTSIDE}/24"))

    async def further(netlink):
        for address in (GOOD, BAD, INSIDE):
            await netlink.addr("add", index=1, address=address, prefixlen=32)

    outside.configure(further)
    async with AsyncIPRoute() as netlink:
        await netlink.addr("add", index=out, address=HOST_OUTSIDE, prefixlen=24)
        for address in (GOOD, BAD, INSIDE):
            await netlink.route("add", dst=f"{address}/32", gateway=OUTSIDE)
