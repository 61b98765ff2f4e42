# SPDX-License-Identifier: Apache-2.0
"""Names on networks that users make: asked by a guest, a namespace on the bridge, of hyperd's server at the gateway."""

import asyncio
import functools
import socket
import struct
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

import dns.asyncquery
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.reversename
import dns.rrset
import pytest

from hyperd.errors import UnavailableError
from hyperd.model.network import Named, NetworkSpec
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetworks
from hyperd.network.forwarder import Forwarder
from hyperd.network.nameserver import NameServer
from hyperd.network.zone import Zone
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.test_networks import ONE, TWO, guest, somebody_outside

UPSTREAM = "127.0.0.77"
ZONE = Zone(
    "back", IPv4Network("192.0.2.0/24"), IPv4Address("192.0.2.254"), {"web": (IPv4Address("192.0.2.7"),)}
)
SOON_S = 10.0
THREE = SandboxId("3" * 64)


class Upstream(asyncio.DatagramProtocol):
    """A server of the host's: `big.test` only fits into TCP, `gone.test` is not there, `silent.test` hears nothing."""

    def __init__(self):
        self.asked = []

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, addr):
        query = dns.message.from_wire(data)
        made = self.answer(query)
        if made is not None:
            try:
                wire = made.to_wire(max_size=512)
            except dns.exception.TooBig:
                made = dns.message.make_response(query)
                made.flags |= dns.flags.TC
                wire = made.to_wire()
            self._transport.sendto(wire, addr)

    async def serve(self, reader, writer):
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        wire = self.answer(dns.message.from_wire(await reader.readexactly(size))).to_wire(max_size=65535)
        writer.write(struct.pack("!H", len(wire)) + wire)
        await writer.drain()
        writer.close()

    def answer(self, query):
        name = query.question[0].name
        text = name.to_text()
        self.asked.append(text)
        made = dns.message.make_response(query)
        match text:
            case silent if silent.endswith("silent.test."):
                return None
            case "gone.test.":
                made.set_rcode(dns.rcode.NXDOMAIN)
            case "big.test.":
                addresses = [f"192.0.2.{number}" for number in range(200)]
                made.answer.append(dns.rrset.from_text(name, 60, "IN", "A", *addresses))
            case _:
                made.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        return made


@asynccontextmanager
async def served(database, **spec):
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    transport, _ = await loop.create_datagram_endpoint(lambda: upstream, local_addr=(UPSTREAM, 53))
    server = await asyncio.start_server(upstream.serve, UPSTREAM, 53)
    networks = upstream.networks = BridgeNetworks(SETTINGS, database, lambda: (UPSTREAM,))
    try:
        await networks.prepare()
        made = await networks.create_network(NetworkSpec("back", **spec))
        async with guest(networks, ONE, "back") as (namespace, lease):
            other = lease.address.rpartition(".")[0] + ".77"
            networks.names_from(
                lambda: [
                    Named("back", lease.address, ("Web", "111111111111", "shared"), ONE),
                    Named("back", other, ("db", "222222222222", "shared"), TWO),
                    Named("bridge", "10.213.0.9", ("elsewhere",), THREE),
                ]
            )

            async def ask(name, kind="A", how=dns.query.udp, *, raw=None):
                query = raw or dns.message.make_query(name, kind)
                return await loop.run_in_executor(
                    None, namespace.call, lambda: how(query, lease.gateway, timeout=SOON_S)
                )

            yield ask, upstream, lease, namespace
    finally:
        for owner in await networks.list_attached():
            await networks.release(owner)
        await networks.remove_network(made.spec.name)
        networks.close()
        transport.close()
        server.close()
        await clean()


def texts(message):
    return sorted(str(record) for rrset in message.answer for record in rrset)


@pytest.mark.parametrize("how", [dns.query.udp, dns.query.tcp])
async def test_containers_are_called_by_name_alias_and_short_id(database, how):
    async with served(database) as (ask, upstream, lease, _):
        assert lease.dns_servers == (lease.gateway,)
        for name in ("web", "WEB", "web.back", "111111111111"):
            assert texts(await ask(name, how=how)) == [lease.address], name
        assert len(texts(await ask("shared", how=how))) == 2
        assert texts(await ask("host.hyper.internal", how=how)) == [lease.gateway]
        reverse = dns.reversename.from_address(lease.address)
        assert texts(await ask(reverse, "PTR", how=how)) == ["Web.back."]
        other_kind = await ask("web", "AAAA", how=how)
        assert (other_kind.rcode(), other_kind.answer) == (dns.rcode.NOERROR, [])
        assert upstream.asked == []


async def test_what_is_not_there_is_told_and_asked_of_nobody_else(database):
    async with served(database) as (ask, upstream, lease, _):
        nobody = dns.reversename.from_address(lease.address.rpartition(".")[0] + ".200")
        for name, kind in (("elsewhere", "A"), ("nobody", "A"), ("x.hyper.internal", "A"), (nobody, "PTR")):
            assert (await ask(name, kind)).rcode() == dns.rcode.NXDOMAIN, name
        assert upstream.asked == []


async def test_the_rest_is_asked_of_the_hosts_servers_once(database):
    async with served(database) as (ask, upstream, _, _):
        for _ in range(2):
            assert texts(await ask("example.test")) == ["192.0.2.1"]
        assert upstream.asked == ["example.test."]
        assert (await ask("gone.test")).rcode() == dns.rcode.NXDOMAIN
        assert (await ask("silent.test")).rcode() == dns.rcode.SERVFAIL


async def test_what_does_not_fit_is_cut_and_asked_again_over_tcp(database):
    async with served(database) as (ask, upstream, _, _):
        assert (await ask("big.test")).flags & dns.flags.TC
        assert len(texts(await ask("big.test", how=dns.query.tcp))) == 200
        assert upstream.asked == ["big.test."] * 2, "over UDP, then over TCP"


async def test_an_internal_network_asks_nobody(database):
    async with served(database, internal=True) as (ask, upstream, lease, _):
        assert texts(await ask("web")) == [lease.address]
        assert (await ask("example.test")).rcode() == dns.rcode.NXDOMAIN
        assert upstream.asked == []


async def test_nonsense_is_dropped_and_the_server_goes_on(database):
    async with served(database) as (ask, _, lease, namespace):
        with namespace.socket(socket.SOCK_DGRAM) as guest_socket:
            for nonsense in (
                b"",
                b"\0",
                b"\xff" * 600,
                b"\0\1\1\0\xff\xff\0\0\0\0\0\0" + b"\xc0\x0c" * 20,
                b"x" * 3000,
            ):
                guest_socket.sendto(nonsense, (lease.gateway, 53))
        with namespace.socket() as guest_socket:
            await asyncio.get_running_loop().sock_connect(guest_socket, (lease.gateway, 53))
            guest_socket.send(b"\xff\xff" + b"y" * 100)
        assert texts(await ask("web")) == [lease.address]


async def test_questions_that_nobody_answers_take_no_other_guest_s_place(database):
    loop = asyncio.get_running_loop()
    async with (
        served(database) as (_, upstream, lease, namespace),
        guest(upstream.networks, TWO, "back") as (
            other,
            _,
        ),
    ):
        with namespace.socket(socket.SOCK_DGRAM) as hostile:
            for number in range(390):
                query = dns.message.make_query(f"{number}.silent.test", "A").to_wire()
                await loop.sock_sendto(hostile, query, (lease.gateway, 53))
                await asyncio.sleep(0)  # the server takes it, else its socket is full
            query = dns.message.make_query("example.test", "A")
            asked = functools.partial(dns.query.udp, query, lease.gateway, timeout=SOON_S)
            answer = await loop.run_in_executor(None, other.call, asked)
        assert texts(answer) == ["192.0.2.1"]
        assert len(upstream.asked) < 50


async def test_what_many_ask_for_at_once_is_asked_once():
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    transport, _ = await loop.create_datagram_endpoint(lambda: upstream, local_addr=(UPSTREAM, 53))
    forwarder = Forwarder(lambda: (UPSTREAM,))
    query = dns.message.make_query("example.test", "A")
    told = await asyncio.gather(*(forwarder.ask(query, f"10.0.0.{number}") for number in range(40)))
    transport.close()
    assert [texts(each) for each in told] == [["192.0.2.1"]] * 40
    assert upstream.asked == ["example.test."]


@pytest.mark.parametrize("steps", range(9))
async def test_a_server_that_several_open_at_once_is_open_both_ways(steps):
    address = "127.0.0.99"
    server = NameServer(IPv4Address(address), lambda _: ZONE, Forwarder(lambda: ()))

    async def late():
        for _ in range(steps):
            await asyncio.sleep(0)
        await server.open()

    await asyncio.gather(server.open(), late(), late())
    query = dns.message.make_query("web", "A")
    for how in (dns.asyncquery.udp, dns.asyncquery.tcp):
        assert texts(await how(query, address, timeout=SOON_S)) == ["192.0.2.7"]
    server.close()
    await asyncio.sleep(0)  # now it is
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((address, 53))


async def test_a_port_that_is_taken_is_told_and_leaves_no_network(database):
    networks = BridgeNetworks(SETTINGS, database, tuple)
    try:
        await networks.prepare()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("", 53))
            with pytest.raises(UnavailableError, match="names cannot be served"):
                await networks.create_network(NetworkSpec("back"))
        assert len(networks.list_networks()) == 1
    finally:
        networks.close()
        await clean()


async def test_nobody_outside_asks_for_names(database):
    async with served(database) as (_, _, lease, _), somebody_outside() as outside:

        async def route(netlink):
            await netlink.route("add", dst=f"{lease.gateway}/32", gateway="198.51.100.1")

        outside.configure(route)
        loop = asyncio.get_running_loop()
        with outside.socket(socket.SOCK_DGRAM) as stranger:
            query = dns.message.make_query("web", "A").to_wire()
            await loop.sock_sendto(stranger, query, (lease.gateway, 53))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(stranger, 1000), 1)
