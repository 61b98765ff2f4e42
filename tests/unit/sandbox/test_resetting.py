# SPDX-License-Identifier: Apache-2.0
"""All containers go, and with them what they have of the host's."""

import asyncio

import pytest

from hyperd.errors import UnavailableError, WrongStateError
from hyperd.model.guest import ProcessExit
from hyperd.model.network import NetworkSpec
from hyperd.sandbox import Resetting
from hyperd.sandbox.resetting import REMOVALS
from tests.fakes.world import created, eventually, started
from tests.unit.sandbox.lives import error_of
from tests.unit.sandbox.spared import SHAPE, keep_one, report, require_nothing_of, spare_of


@pytest.fixture
def resetting(world, fleet):
    return Resetting(world.network, fleet, world.spares, world.templates)


async def furnish(world, fleet):
    await world.network.create_network(NetworkSpec("back"))
    await world.network.policies.groups.create('{"name": "web"}')
    await world.network.policies.groups.create('{"name": "db", "rules": [{"remote_group_name": "web"}]}')
    await world.network.policies.groups.update('{"rules": [{"remote_group_name": "db"}]}', "web")
    ((address),) = await world.network.floating.allocate(1)
    handle = await started(fleet, name="site", network="back", security_groups=("web",))
    await created(fleet, name="idle")
    await world.network.floating.attach(address.address, handle.record.sandbox_id)
    return handle


async def test_it_is_refused_while_containers_run(world, fleet, resetting):
    await furnish(world, fleet)
    with pytest.raises(WrongStateError, match="containers run: site"):
        await resetting.reset(force=False)
    assert len(fleet.views()) == 2


@pytest.mark.parametrize("force", [True, False])
async def test_nothing_is_left(world, fleet, resetting, force):
    handle = await furnish(world, fleet)
    if not force:
        await handle.stop(timeout_s=0)
    gone = await resetting.reset(force=force)
    assert (gone.containers, gone.networks, gone.groups) == (["idle", "site"], ["back"], ["db", "web"])
    assert gone.floating == ["203.0.113.1"]
    assert fleet.views() == []
    assert not world.network.leases
    assert not world.network.taps
    assert not world.network.floating.known
    assert len(world.network.networks) == 1
    assert (await resetting.reset(force=False)).containers == []


async def test_an_address_of_a_container_whom_nobody_knows_goes_too(world, fleet, resetting):
    ((address),) = await world.network.floating.allocate(1)
    await world.network.floating.attach(address.address, "f" * 64)
    assert (await resetting.reset(force=False)).floating == [address.address]
    assert not world.network.floating.known


async def test_spares_are_in_nobody_s_way_and_come_back_with_the_next_container(world):
    keep_one(world)
    async with world.daemon() as fleet:
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        await spare_of(world)
        promised = await created(fleet)
        spare = await spare_of(world)
        await Resetting(world.network, fleet, world.spares, world.templates).reset(force=False)
        for sandbox_id in (spare.sandbox_id, promised.record.sandbox_id):
            require_nothing_of(world, sandbox_id)
        await world.spares.look()
        assert not world.spares.ready
        await created(fleet)
        assert (await spare_of(world)).sandbox_id != spare.sandbox_id


async def test_a_template_that_is_being_built_is_in_nobody_s_way_and_is_built_when_it_is_missed(world):
    world.templates_enabled = True
    async with world.daemon() as fleet, asyncio.TaskGroup() as tasks:
        world.hypervisor.save_gate.clear()
        handle = await started(fleet)
        asking = tasks.create_task(error_of(world.templates.build(SHAPE)))
        await eventually(lambda: len(world.hypervisor.running) == 2)
        await Resetting(world.network, fleet, world.spares, world.templates).reset(force=True)
        assert not world.hypervisor.running
        assert not world.network.leases
        assert not world.network.taps
        assert not world.snapshots.drafts
        assert isinstance(await asking, UnavailableError)
        world.hypervisor.save_gate.set()
        handle = await started(fleet)
        assert report(handle).note.endswith("being built")
        await eventually(world.templates.list)


async def test_no_template_is_built_during_a_reset(world):
    world.templates_enabled = True
    async with world.daemon(), asyncio.TaskGroup() as tasks:
        async with world.templates.away():
            building = tasks.create_task(world.templates.build(SHAPE))
            await eventually(lambda: world.templates._building)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not world.network.leases
        await building


async def test_one_that_failed_halfway_is_asked_again(world, fleet, resetting):
    await furnish(world, fleet)
    world.network.fail_next_release = UnavailableError("the kernel refused")
    with pytest.raises(UnavailableError):
        await resetting.reset(force=True)
    await resetting.reset(force=True)
    assert fleet.views() == []
    assert world.network.leases == {}


async def test_one_that_ends_by_itself_and_goes_meanwhile_was_to_go(world, fleet, resetting):
    first = await started(fleet, name="first")
    passing = await started(fleet, name="passing", auto_remove=True)
    views = fleet.views()
    world.process(passing).finish(ProcessExit(0))
    await eventually(lambda: len(fleet.views()) == 1)
    gone = await resetting._reset(views)
    assert gone.containers == ["first", "passing"]
    assert fleet.views() == []
    world.require_nothing_left_of(first)


async def test_containers_go_side_by_side_and_not_all_at_once(world, fleet, resetting):
    for _ in range(REMOVALS + 1):
        await started(fleet)
    gate = world.hypervisor.hold("destroy")
    task = asyncio.create_task(resetting.reset(force=True))
    await eventually(lambda: len(world.hypervisor.destroyed) == REMOVALS)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(world.hypervisor.destroyed) == REMOVALS
    gate.set()
    await task
    assert fleet.views() == []
