# SPDX-License-Identifier: Apache-2.0
"""Floating addresses: what is sent to one comes to its sandbox, what that begins comes from it; and the fake's."""

from ipaddress import IPv4Network

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.errors import ExhaustedError, ExistsError, InvalidError, NotFoundError, WrongStateError
from hyperd.host import process
from hyperd.network import BridgeNetworks
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.egress import (
    HOST_OUTSIDE,
    OUTSIDE,
    PLAIN,
    POLICED,
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
