# SPDX-License-Identifier: Apache-2.0
"""What is a container's own stays with it, whatever becomes of the spare that it was promised."""

import asyncio

import pytest

from hyperd.errors import UnavailableError
from hyperd.model.container import ContainerState, StartPath
from hyperd.model.policy import Limits
from hyperd.model.vm import SandboxId
from hyperd.model.volume import Mount, MountType, VolumeName, VolumeRequest
from hyperd.sandbox import Fleet, PolicyDesk
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.spared import SHAPE, report, require_nothing_of, spare_of
from tests.unit.sandbox.spared import keeping_one as keeping_one  # noqa: PLC0414 - a fixture
from tests.unit.sandbox.spared import ready as ready  # noqa: PLC0414 - a fixture


def require_whole(world: World, sandbox_id: SandboxId) -> None:
    assert sandbox_id in world.hypervisor.running
    assert sandbox_id in world.storage.disks
    assert sandbox_id in world.network.taps
    assert sandbox_id in world.network.leases


async def expired(world: World, sandbox_id: SandboxId) -> None:
    """As if its time were over; when that has had its effects."""
    world.spares.vm_gone(sandbox_id)
    await eventually(lambda: sandbox_id not in world.spares._removals._going)


async def limit(world: World, fleet: Fleet, reference: str) -> None:
    """As `hyper egress set` does."""
    desk = PolicyDesk(
        world.network, lambda name: fleet.get(name).record, list, lambda name: fleet.get(name).reroute()
    )
    await desk.set_egress(reference, "none")


async def test_who_binds_a_directory_is_promised_none_and_keeps_what_it_has(
    world: World, ready: Fleet
) -> None:
    spare = await spare_of(world)
    handle = await started(ready, mounts=(Mount(MountType.BIND, "/x", "/srv"),))
    sandbox_id = handle.record.sandbox_id
    await expired(world, sandbox_id)
    require_whole(world, sandbox_id)
    assert world.spares.ready == [spare]


async def test_a_shared_volume_ends_the_spare_and_nothing_else(world: World, ready: Fleet) -> None:
    """It is known to be shared only at the start."""
    await ready.volumes.create(VolumeRequest(VolumeName("pool"), filesystem="virtiofs"))
    spare = await spare_of(world)
    handle = await started(ready, mounts=(Mount(MountType.VOLUME, "/x", "pool"),))
    assert handle.record.sandbox_id == spare.sandbox_id
    assert report(handle).path is StartPath.TEMPLATE
    await expired(world, spare.sandbox_id)
    require_whole(world, spare.sandbox_id)


async def test_a_promise_does_not_expire_while_its_container_starts(
    world: World, ready: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = await spare_of(world)
    handle = await created(ready)
    world.accelerator_gate.clear()
    starting = asyncio.ensure_future(handle.start())
    await eventually(lambda: spare.sandbox_id in dict(world.ledger.admission.held))
    world.spares._expire(spare)
    assert not world.spares._removals._going
    world.accelerator_gate.set()
    await starting
    assert report(handle).path is StartPath.SPARE


@pytest.mark.parametrize("how", ["claimed", "expired"])
async def test_limits_set_before_the_start_hold_in_it(world: World, ready: Fleet, how: str) -> None:
    spare = await spare_of(world)
    handle = await created(ready, name="c")
    assert handle.record.sandbox_id == spare.sandbox_id
    await limit(world, ready, "c")
    if how == "expired":
        await expired(world, spare.sandbox_id)
    await handle.start()
    assert world.network.policies.limits_of(spare.sandbox_id) == Limits(egress="none")
    assert report(handle).path is StartPath.TEMPLATE
    assert [one.sandbox_id for one in world.hypervisor.definitions].count(spare.sandbox_id) == 2
    require_whole(world, spare.sandbox_id)


async def test_a_floating_address_and_the_lease_outlive_the_promise(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    handle = await created(ready)
    ((floating),) = await world.network.floating.allocate(1)
    await world.network.floating.attach(floating.address, spare.sandbox_id)
    lease = dict(world.network.leases[spare.sandbox_id])
    await expired(world, spare.sandbox_id)
    assert spare.sandbox_id not in world.network.taps
    assert spare.sandbox_id not in world.storage.disks
    assert world.network.floating.known[floating.address].sandbox_id == spare.sandbox_id
    await handle.start()
    assert world.network.leases[spare.sandbox_id] == lease
    await handle.remove(force=True)
    require_nothing_of(world, spare.sandbox_id)


async def test_a_spare_that_cannot_be_removed_is_counted_and_tried_again(world: World) -> None:
    world.memory_mib = 256 + 136
    async with world.daemon():
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        spare = await spare_of(world)
        world.hypervisor.undying.add(spare.sandbox_id)
        await expired(world, spare.sandbox_id)
        await world.spares.look()
        assert world.spares.ready == []  # no room: its VM is there
        world.hypervisor.undying.clear()
        await world.spares.look()
        require_nothing_of(world, spare.sandbox_id)
        assert (await spare_of(world)).sandbox_id != spare.sandbox_id


async def test_a_bug_in_removing_one_does_not_end_hyperd(
    world: World, ready: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = await spare_of(world)

    async def refuse(_: SandboxId) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "remove", refuse)
        await expired(world, spare.sandbox_id)
    handle = await started(ready)
    assert handle.view().state is ContainerState.RUNNING
    await world.spares.look()
    require_nothing_of(world, spare.sandbox_id)


async def test_a_making_that_leaves_something_is_tidied_up(world: World) -> None:
    async with world.daemon():
        await world.templates.build(SHAPE)
        world.hypervisor.fail_next_pause = UnavailableError("bad luck")
        world.hypervisor.fail_next_destroy = UnavailableError("QEMU does not end")
        world.spares.begin(SHAPE)
        await world.spares.look()
        await world.spares.look()
        assert not world.hypervisor.running
        assert not world.network.leases


async def test_a_start_says_what_it_cannot_get_rid_of_and_touches_nothing_of_a_run(
    world: World, ready: Fleet
) -> None:
    spare = await spare_of(world)
    handle = await created(ready)
    world.hypervisor.undying.add(spare.sandbox_id)
    world.spares.vm_gone(spare.sandbox_id)
    with pytest.raises(UnavailableError, match="does not end"):
        await handle.start()
    world.hypervisor.undying.clear()
    await handle.start()
    await world.spares.look()
    require_whole(world, spare.sandbox_id)
    assert report(handle).path is StartPath.TEMPLATE
