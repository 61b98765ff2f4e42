# SPDX-License-Identifier: Apache-2.0
"""A spare has an address that somebody may need more."""

import pytest

from hyperd.errors import ExistsError
from hyperd.model.container import ContainerState
from hyperd.model.network import Endpoint, NetworkSpec
from hyperd.sandbox import Fleet
from tests.fakes.network import FakeNetwork
from tests.fakes.world import World, started
from tests.unit.sandbox.spared import SHAPE, require_nothing_of, spare_of
from tests.unit.sandbox.spared import keeping_one as keeping_one  # noqa: PLC0414 - a fixture
from tests.unit.sandbox.spared import ready as ready  # noqa: PLC0414 - a fixture


async def test_an_address_that_only_a_spare_has_can_be_asked_for(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    address = world.network.leases[spare.sandbox_id]["bridge"].address
    handle = await started(ready, address=address)
    assert [at.address for at in handle.view().attachments] == [address]
    require_nothing_of(world, spare.sandbox_id)
    assert (await spare_of(world)).sandbox_id != spare.sandbox_id


@pytest.mark.parametrize("asks_for_mac", [False, True])
async def test_an_address_that_only_a_spare_has_can_be_joined_with(
    world: World, ready: Fleet, *, asks_for_mac: bool
) -> None:
    await world.network.create_network(NetworkSpec("back"))
    handle = await started(ready, network="back")
    spare = await spare_of(world)
    lease = world.network.leases[spare.sandbox_id]["bridge"]
    await handle.connect(
        Endpoint("bridge", mac_address=lease.mac) if asks_for_mac else Endpoint("bridge", lease.address)
    )
    joined = handle.view().attachments[1]
    assert joined.mac == lease.mac if asks_for_mac else joined.address == lease.address
    require_nothing_of(world, spare.sandbox_id)
    assert (await spare_of(world)).sandbox_id != spare.sandbox_id


async def test_the_last_address_of_a_subnet_is_for_who_joins(world: World) -> None:
    world.network = FakeNetwork("10.99.0.0/29")  # five
    async with world.daemon() as fleet:
        handle = await started(fleet, network="none")
        for _ in range(4):
            await started(fleet)
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        spare = await spare_of(world)
        await handle.connect(Endpoint("bridge"))
        assert handle.view().attachments
        require_nothing_of(world, spare.sandbox_id)


async def test_the_last_address_of_a_subnet_is_for_who_starts(world: World) -> None:
    world.network = FakeNetwork("10.99.0.0/29")  # five
    async with world.daemon() as fleet:
        for _ in range(4):
            await started(fleet)
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        spare = await spare_of(world)
        handle = await started(fleet, writable_size_bytes=1 << 30)
        assert handle.view().state is ContainerState.RUNNING
        require_nothing_of(world, spare.sandbox_id)


async def test_no_spare_goes_for_an_address_that_another_container_has(world: World, ready: Fleet) -> None:
    other = await started(ready)
    spare = await spare_of(world)
    address = other.view().attachments[0].address
    with pytest.raises(ExistsError):
        await started(ready, address=address)
    assert world.spares.ready == [spare]
