# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import dataclasses
import tempfile
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyperd.errors import ExhaustedError, ExistsError, InvalidError, WrongStateError
from hyperd.host.database import Database
from hyperd.model.network import Endpoint
from hyperd.model.vm import SandboxId
from hyperd.network.attachments import wish_of
from hyperd.network.leases import Leases, Wish
from hyperd.network.plugs import address6_in
from hyperd.network.settings import BridgeSettings

SETTINGS = BridgeSettings(tap_owner_uid=0, subnet=IPv4Network("10.9.8.0/28"))


def box(number):
    return SandboxId(f"{number:064x}")


@pytest.fixture
async def leases(database):
    it = Leases(database, SETTINGS)
    await it.prepare()
    return it


async def test_a_sandbox_keeps_its_lease_until_it_is_released(leases):
    first = await leases.lease(box(1))
    assert first.is_new
    again = await leases.lease(box(1))
    assert (again.address, again.is_new) == (first.address, False)
    assert await leases.list_owners() == {box(1)}
    await leases.release(box(1))
    await leases.release(box(1))
    assert await leases.list_owners() == set()


async def test_many_at_once_get_different_addresses_until_none_is_left(leases):
    async with asyncio.TaskGroup() as tasks:
        given = [tasks.create_task(leases.lease(box(number))) for number in range(13)]
    assert len({task.result().address for task in given}) == 13
    with pytest.raises(ExhaustedError):
        await leases.lease(box(99))
    assert box(99) not in await leases.list_owners()


async def test_leases_and_their_order_outlive_the_daemon(database, leases):
    first = await leases.lease(box(1))
    await leases.release(box(1))
    successor = Leases(database, SETTINGS)
    await successor.prepare()
    assert (await successor.lease(box(2))).address == first.address + 1


async def test_a_lease_of_another_subnet_is_replaced(database, leases):
    await leases.lease(box(1))
    moved = Leases(database, BridgeSettings(tap_owner_uid=0, subnet=IPv4Network("10.77.0.0/24")))
    lease = await moved.lease(box(1))
    assert lease.address in IPv4Network("10.77.0.0/24")
    assert await moved.list_owners() == {box(1)}


async def test_networks_have_leases_of_their_own(database, leases):
    other = Leases(database, BridgeSettings(tap_owner_uid=0, name="other", subnet=SETTINGS.subnet))
    assert (await leases.lease(box(1))).address == (await other.lease(box(1))).address
    await other.release(box(1))
    assert await leases.list_owners() == {box(1)}


@pytest.mark.parametrize(
    ("wish", "what"),
    [
        (Wish(address=SETTINGS.subnet[5]), "address 10.9.8.5"),
        (Wish(mac="02:00:00:00:00:01"), "MAC address 02:00:00:00:00:01"),
        (Wish(address6=IPv6Address("fd12:3456::9")), "address fd12:3456::9"),
    ],
)
async def test_whoever_has_it_is_called_as_users_call_him(database, leases, wish, what):
    settings = dataclasses.replace(SETTINGS, subnet6=IPv6Network("fd12:3456::/64"))
    named = Leases(database, settings, called={box(1): "container web"}.__getitem__)
    await named.lease(box(1), wish)
    with pytest.raises(ExistsError, match=f"^{what}: is in use by container web$"):
        await named.lease(box(2), wish)
    with pytest.raises(WrongStateError, match="is in use by container web"):
        await named.forget_all()
    assert await named.list_owners() == {box(1)}


class LeasingBoth(RuleBasedStateMachine):
    """Leases with IPv6, some of an address that was asked for: no address of either kind is ever two's."""

    SUBNET6 = IPv6Network("fd12:3456::/64")
    SETTINGS = dataclasses.replace(SETTINGS, subnet6=SUBNET6)

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.database = Database(Path(self.directory.name, "leases.db"))
        self.loop.run_until_complete(self.database.open())
        self.leases = Leases(self.database, self.SETTINGS)
        self.loop.run_until_complete(self.leases.prepare())

    def teardown(self):
        self.loop.run_until_complete(self.database.close())
        self.loop.close()
        self.directory.cleanup()

    @rule(
        number=st.integers(0, 15), place=st.none() | st.integers(0, 15), place6=st.none() | st.integers(0, 20)
    )
    def lease(self, number, place, place6):
        wish = Wish(
            None if place is None else SETTINGS.subnet[place],
            address6=None if place6 is None else self.SUBNET6[place6],
        )
        with contextlib.suppress(ExistsError, ExhaustedError, InvalidError):
            self.loop.run_until_complete(self.leases.lease(box(number), wish))

    @rule(number=st.integers(0, 15))
    def release(self, number):
        self.loop.run_until_complete(self.leases.release(box(number)))

    @invariant()
    def nobody_has_anothers(self):
        known = self.loop.run_until_complete(self.leases.list_all())
        both = [(lease.address, address6_in(lease, self.SETTINGS)) for lease in known]
        assert len({address for address, _ in both}) == len({address6 for _, address6 in both}) == len(known)
        assert self.SETTINGS.gateway6 not in [address6 for _, address6 in both]


TestLeasingBoth = LeasingBoth.TestCase
TestLeasingBoth.settings = hypothesis.settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_an_mtu_that_is_none_is_told_with_the_network_and_the_range():
    with pytest.raises(InvalidError, match="576 to 65521, not 20") as raised:
        BridgeSettings(tap_owner_uid=0, name="n1", bridge="hyb", subnet=SETTINGS.subnet, mtu=20)
    assert raised.value.subject == "network n1"


async def test_an_address_that_an_earlier_hyperd_gave_with_a_scope_is_the_one_without(database, leases):
    settings = dataclasses.replace(SETTINGS, subnet6=IPv6Network("fd12:3456::/64"))
    there = Leases(database, settings)
    await there.lease(box(1), Wish(address6=IPv6Address("fd12:3456::50%eth0")))
    (lease,) = await there.list_all()
    assert address6_in(lease, settings) == IPv6Address("fd12:3456::50")


def test_an_address_with_a_scope_is_none_to_ask_for():
    with pytest.raises(InvalidError, match="no IPv6 address"):
        wish_of(Endpoint("six", address6="fd12:3456::50%eth0"), 0)


async def test_an_ipv6_address_of_a_network_without_ipv6_is_told_of_the_network(leases):
    with pytest.raises(InvalidError, match="has no IPv6") as raised:
        await leases.lease(box(1), Wish(address6=IPv6Address("fd00::5")))
    assert (raised.value.subject, raised.value.hint) == (f"network {SETTINGS.name}", "make it with --ipv6")
    assert await leases.list_owners() == set()
