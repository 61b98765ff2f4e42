# SPDX-License-Identifier: Apache-2.0
"""Floating addresses: what is sent to one comes to its sandbox, what that begins comes from it; and the fake's."""

import asyncio
import socket
from ipaddress import IPv4Network

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    WrongStateError,
)
from hyperd.host import process
from hyperd.model.network import Endpoint, NetworkSpec
from hyperd.network import BridgeNetworks
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.egress import (
    HOST_OUTSIDE,
    OUTSIDE,
    PLAIN,
    POLICED,
    SOON_S,
    connects,
    peer_of,
    rules,
    world,
)
from tests.fakes.floating import FakeFloating

POOLS = (IPv4Network("203.0.113.0/29"),)
ONE = "203.0.113.1"


@pytest.fixture(params=["fake", "real"])
async def floating(request, database):
    if request.param == "fake":
        yield FakeFloating(str(POOLS[0]))
        return
    networks = BridgeNetworks(SETTINGS, database, lambda: (), POOLS)
    await networks.prepare()
    yield networks.floating
    networks.close()
    await clean()


async def test_addresses_are_allocated_named_lent_and_released(floating):
    (first,) = await floating.allocate(1)
    (wanted,) = await floating.allocate(1, "203.0.113.5")
    assert (first.address, wanted.address) == (ONE, "203.0.113.5")
    with pytest.raises(ExistsError):
        await floating.allocate(1, "203.0.113.5")
    with pytest.raises(InvalidError):
        await floating.allocate(1, "192.0.2.1")
    with pytest.raises(ExhaustedError):
        await floating.allocate(5)
    assert (await floating.name(ONE, "front")).name == "front"
    with pytest.raises(ExistsError):
        await floating.name(wanted.address, "front")
    with pytest.raises(InvalidError):
        await floating.name(ONE, "0")
    assert (await floating.attach("front", POLICED)).sandbox_id == POLICED
    await floating.attach(ONE, POLICED)
    with pytest.raises(WrongStateError):
        await floating.attach(ONE, PLAIN)
    with pytest.raises(ExistsError):
        await floating.attach(wanted.address, POLICED)
    with pytest.raises(WrongStateError):
        await floating.release(ONE)
    assert (await floating.attach(ONE, PLAIN, force=True)).sandbox_id == PLAIN
    assert await floating.detach(POLICED) is None
    assert (await floating.detach(PLAIN)).address == ONE
    await floating.release("front")
    with pytest.raises(NotFoundError):
        await floating.release(ONE)
    assert [known.address for known in await floating.list_addresses()] == [wanted.address]


async def lent(it) -> None:
    await it.networks.floating.allocate(1)
    await it.networks.floating.attach(ONE, POLICED)


async def loopback() -> list[str]:
    async with AsyncIPRoute() as netlink:
        return [each.get_attr("IFA_LOCAL") async for each in await netlink.addr("dump", index=1)]


@pytest.mark.parametrize("egress", ["", "allow-all"])
async def test_it_is_one_to_one_and_both_ways(database, egress):
    async with world(database, egress, POOLS) as it:
        await lent(it)
        await it.outside_knows(f"{ONE}/32")
        assert await connects(it.outside, it.guest, ONE, 8080), "any port"
        assert await peer_of(it.guest, it.outside, OUTSIDE, 9000) == ONE
        assert await peer_of(it.neighbour, it.outside, OUTSIDE, 9001) == HOST_OUTSIDE
        assert await connects(it.neighbour, it.guest, ONE, 8081), "its neighbours, too"
        await it.networks.floating.detach(POLICED)
        assert not await connects(it.outside, it.guest, ONE, 8080)
        assert await peer_of(it.guest, it.outside, OUTSIDE, 9002) == HOST_OUTSIDE
        assert ONE not in await loopback()
        assert "_floating" not in await rules()


async def test_the_host_answers_for_it_on_the_wire(database):
    async with world(database, "", (IPv4Network("198.51.100.64/29"),)) as it:
        await it.networks.floating.allocate(1)
        await it.networks.floating.attach("198.51.100.65", POLICED)
        assert await connects(it.outside, it.guest, "198.51.100.65", 8080), "an address of the wire itself"


async def test_it_is_there_after_a_kill_and_a_flush_and_gone_with_the_sandbox(database):
    async with world(database, "", POOLS) as it:
        await lent(it)
        await it.outside_knows(f"{ONE}/32")
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        await process.run_checked(["ip", "addr", "flush", "dev", "lo", "scope", "global"], timeout_s=20)
        await it.restart(database)
        assert await connects(it.outside, it.guest, ONE, 8080)
        await process.run_checked(
            ["nft", "delete", "table", "inet", f"{SETTINGS.table}_floating"], timeout_s=20
        )
        await it.networks.floating.look()
        assert await connects(it.outside, it.guest, ONE, 8080)
        await process.run_checked(
            ["nft", "flush", "chain", "inet", f"{SETTINGS.table}_floating", "arriving"], timeout_s=20
        )
        await it.networks.floating.look()
        assert await connects(it.outside, it.guest, ONE, 8080)
        await it.networks.release(POLICED)
        assert ONE not in await loopback()
        (known,) = await it.networks.floating.list_addresses()
        assert known.sandbox_id is None, "it stays allocated"


async def test_what_was_cut_short_is_made_right_by_the_next_hyperd(database):
    async with world(database, "", POOLS) as it:
        await lent(it)
        await it.networks.floating._records.detach(POLICED)  # and killed
        assert ONE in await loopback()
        await it.restart(database)
        assert ONE not in await loopback()
        assert "_floating" not in await rules()
        await it.networks.floating._records.attach(ONE, POLICED, force=False)  # and killed
        await it.restart(database)
        assert ONE in await loopback()


async def test_an_address_of_the_host_s_own_is_neither_given_nor_touched(database):
    async with world(database, "", POOLS) as it:
        async with AsyncIPRoute() as netlink:
            await netlink.addr("add", index=1, address=ONE, prefixlen=32)
        (made,) = await it.networks.floating.allocate(1)
        assert made.address == "203.0.113.2"
        await it.restart(database)
        assert ONE in await loopback()
        async with AsyncIPRoute() as netlink:
            await netlink.addr("del", index=1, address=ONE, prefixlen=32)


async def test_one_that_has_not_started_yet_gets_it_with_its_address(database):
    async with world(database, "", POOLS) as it:
        await it.networks.release(PLAIN)
        await it.networks.floating.allocate(1)
        await it.networks.floating.attach(ONE, PLAIN)
        assert ONE not in await loopback()
        await it.networks.attach(PLAIN)
        assert ONE in await loopback()


@pytest.mark.parametrize("how", ["disconnect", "keep_only"])
async def test_it_does_not_stay_with_an_address_that_somebody_else_may_get(database, how):
    async with world(database, "", POOLS) as it:
        await lent(it)
        await it.networks.create_network(NetworkSpec("back"))
        kept = await it.networks.attach(POLICED, endpoint=Endpoint(network="back"), slot=1)
        if how == "disconnect":
            await it.networks.disconnect(POLICED, "bridge")
        else:
            await it.networks.keep_only({POLICED: ["back"]})
        told = await rules()
        assert f"{ONE} : {it.leases[0].address}" not in told
        assert f"{ONE} : {kept.address}" in told
        await it.networks.release(POLICED)
        await it.networks.remove_network("back")


async def test_of_several_networks_it_leads_to_the_one_that_answers_leave_by(database):
    async with world(database, "", POOLS) as it:
        networks = it.networks

        async def inside() -> str:
            return (await rules()).partition("map to {")[2].partition("elements = { ")[2].partition(" }")[0]

        await networks.create_network(NetworkSpec("aa"))
        await networks.create_network(NetworkSpec("zz"))
        await networks.create_network(NetworkSpec("shut", internal=True))
        await lent(it)
        assert await inside() == f"{ONE} : {it.leases[0].address}"
        by_name = await networks.attach(POLICED, (), "job", Endpoint("aa"), 1)
        assert await inside() == f"{ONE} : {by_name.address}"
        await networks.attach(POLICED, (), "job", Endpoint("shut", gateway_priority=9), 2)
        assert await inside() == f"{ONE} : {by_name.address}", "nothing leaves by an internal one"
        by_priority = await networks.attach(POLICED, (), "job", Endpoint("zz", gateway_priority=1), 3)
        assert await inside() == f"{ONE} : {by_priority.address}"
        await it.restart(database)
        assert await inside() == f"{ONE} : {by_priority.address}"
        for network, left in (("zz", by_name), ("aa", it.leases[0])):
            await it.networks.disconnect(POLICED, network)
            assert await inside() == f"{ONE} : {left.address}"
        await it.networks.disconnect(POLICED, "bridge")
        assert "_floating" not in await rules()
        await it.networks.release(POLICED)
        for network in ("aa", "zz", "shut"):
            await it.networks.remove_network(network)


async def test_whoever_has_one_is_known_to_have_something(database):
    async with world(database, "", POOLS) as it:
        await it.networks.release(POLICED)
        await lent(it)
        assert POLICED in await it.networks.list_attached()
        await it.networks.release(POLICED)
        assert POLICED not in await it.networks.list_attached()


async def test_one_that_could_not_be_taken_away_is_taken_the_next_time(database, monkeypatch):
    async with world(database, "", POOLS) as it:
        await lent(it)
        with monkeypatch.context() as without_nft:
            without_nft.setenv("PATH", "/nowhere")
            with pytest.raises(UnavailableError):
                await it.networks.floating.detach(POLICED)
        await it.networks.floating.detach(POLICED)
        assert ONE not in await loopback()
        assert "_floating" not in await rules()


async def test_an_address_is_free_only_when_the_floating_one_has_left_it(database, monkeypatch):
    async with world(database, "", POOLS) as it:
        await lent(it)
        with monkeypatch.context() as without_nft:
            without_nft.setenv("PATH", "/nowhere")
            with pytest.raises(UnavailableError):
                await it.networks.release(POLICED)
        assert await it.networks._address_of(POLICED) is not None
        await it.networks.release(POLICED)
        assert ONE not in await loopback()


async def test_what_is_under_way_ends_when_it_is_taken_away(database):
    async with world(database, "", POOLS) as it:
        await lent(it)
        await it.outside_knows(f"{ONE}/32")
        loop = asyncio.get_running_loop()
        with it.outside.socket(socket.SOCK_DGRAM) as sending, it.guest.socket(socket.SOCK_DGRAM) as heard:
            heard.bind(("", 9000))
            await loop.sock_sendto(sending, b"one", (ONE, 9000))
            async with asyncio.timeout(SOON_S):
                assert await loop.sock_recv(heard, 100) == b"one"
            await it.networks.floating.detach(POLICED)
            await loop.sock_sendto(sending, b"two", (ONE, 9000))
            await it.networks.floating.attach(ONE, POLICED)
            await loop.sock_sendto(sending, b"three", (ONE, 9000))
            async with asyncio.timeout(SOON_S):
                assert await loop.sock_recv(heard, 100) == b"three"
