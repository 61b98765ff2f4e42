# SPDX-License-Identifier: Apache-2.0
import asyncio
from ipaddress import IPv4Network

import pytest

from hyperd.errors import ExhaustedError
from hyperd.host.database import Database
from hyperd.model.vm import SandboxId
from hyperd.network.leases import Leases
from hyperd.network.settings import BridgeSettings

SETTINGS = BridgeSettings(tap_owner_uid=0, subnet=IPv4Network("10.9.8.0/28"))


def box(number):
    return SandboxId(f"{number:064x}")


@pytest.fixture
async def database(tmp_path):
    it = Database(tmp_path / "hyperd.db")
    await it.open()
    yield it
    await it.close()


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
