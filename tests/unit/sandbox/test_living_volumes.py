# SPDX-License-Identifier: Apache-2.0
"""Volumes that grow and are copied while their containers run, over fakes of all rooms."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.volume import Consistency, Mount, MountType, VolumeName, VolumeRequest
from tests.fakes.world import created, started

DB = VolumeName("db")
DATA = Mount(MountType.VOLUME, "/data", DB)
READ = Mount(MountType.VOLUME, "/data", DB, readonly=True)
LARGE = 20 << 30


def agent_of(world, handle):
    return world.dialer.agent(world.runner.settings.paths(handle.record.sandbox_id).control_socket)


async def test_a_volume_that_nobody_writes_to_is_a_larger_disk(fleet, world):
    await created(fleet, mounts=(DATA,))
    view = await fleet.living_volumes.resize(DB, LARGE)
    assert view.volume.size_bytes == LARGE
    assert world.hypervisor.disk_sizes == {}
    with pytest.raises(NotFoundError):
        await fleet.living_volumes.resize(VolumeName("none"), LARGE)


async def test_one_that_is_written_to_grows_in_its_vm_and_its_guest(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    view = await fleet.living_volumes.resize(DB, LARGE)
    assert world.hypervisor.disk_sizes == {view.volume.path: LARGE}
    assert agent_of(world, handle).volume_sizes == {"volume0": LARGE}


async def test_readers_see_the_new_size_when_they_start_again(fleet, world):
    handle = await started(fleet, mounts=(READ,))
    await fleet.living_volumes.resize(DB, LARGE)
    assert world.hypervisor.disk_sizes == {}
    assert agent_of(world, handle).volume_sizes == {}


async def test_none_becomes_smaller(fleet):
    await created(fleet, mounts=(DATA,))
    with pytest.raises(InvalidError, match="does not become smaller"):
        await fleet.living_volumes.resize(DB, 1 << 30)


async def test_a_growth_that_the_guest_refuses_is_told_and_the_next_one_goes_on(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    agent = agent_of(world, handle)
    agent.fail_next("grow_volume", TimeoutExpiredError("the agent did not answer in time"))
    with pytest.raises(TimeoutExpiredError, match="its file system not yet"):
        await fleet.living_volumes.resize(DB, LARGE)
    assert (await fleet.volumes.get(DB)).volume.size_bytes == LARGE
    await fleet.living_volumes.resize(DB, LARGE)
    assert agent.volume_sizes == {"volume0": LARGE}
    world.hypervisor.fail_next_resize_disk = UnavailableError("QEMU does not answer")
    with pytest.raises(UnavailableError, match="its file system not yet"):
        await fleet.living_volumes.resize(DB, LARGE + (1 << 30))


async def test_under_a_paused_container_nothing_grows(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    await handle.pause()
    with pytest.raises(WrongStateError, match="which is paused"):
        await fleet.living_volumes.resize(DB, LARGE)
    assert (await fleet.volumes.get(DB)).volume.size_bytes < LARGE
    assert world.hypervisor.disk_sizes == {}


async def test_a_snapshot_of_a_volume_at_rest_is_a_copy(fleet):
    await created(fleet, mounts=(DATA,))
    taken = await fleet.living_volumes.snapshot(DB, "before")
    assert (taken.volume, taken.consistency) == (DB, Consistency.DETACHED)
    made = await fleet.volumes.create(VolumeRequest(VolumeName("copy"), snapshot="before"))
    assert made.volume.size_bytes == taken.size_bytes
    with pytest.raises(InvalidError, match="smaller"):
        await fleet.volumes.create(VolumeRequest(VolumeName("less"), 64 << 20, snapshot="before"))
    with pytest.raises(ExistsError):
        await fleet.living_volumes.snapshot(DB, "before")


async def test_a_guest_stands_still_for_its_copy_and_goes_on_whatever_comes(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    agent = agent_of(world, handle)
    seen = []

    async def look() -> None:
        seen.append(set(agent.still_volumes))

    world.volumes.snapshots.copied = look
    taken = await fleet.living_volumes.snapshot(DB, "")
    assert taken.consistency is Consistency.FROZEN
    assert (seen, agent.still_volumes) == ([{"volume0"}], set())

    async def fails() -> None:
        raise ExhaustedError("no space for a copy")

    world.volumes.snapshots.copied = fails
    with pytest.raises(ExhaustedError):
        await fleet.living_volumes.snapshot(DB, "")
    assert agent.still_volumes == set()


async def test_whoever_hangs_up_while_a_guest_comes_to_a_stop_leaves_none_standing(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    agent = agent_of(world, handle)
    answers = agent.hold("freeze_volume")
    taking = asyncio.create_task(fleet.living_volumes.snapshot(DB, ""))
    await agent.wait_called("freeze_volume")
    agent.freeze_volume("volume0")  # the agent goes on with what it was asked, whoever hears its answer
    with pytest.raises(WrongStateError, match="is being copied"):
        await fleet.living_volumes.snapshot(DB, "")
    assert agent.still_volumes == {"volume0"}
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert agent.still_volumes == set()
    answers.set()
    assert (await fleet.living_volumes.snapshot(DB, "")).consistency is Consistency.FROZEN


async def test_one_that_stands_still_for_somebody_else_is_not_let_go(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    agent_of(world, handle).freeze_volume("volume0")  # for a hyperd that was killed
    with pytest.raises(WrongStateError, match="stands still already"):
        await fleet.living_volumes.snapshot(DB, "")
    assert agent_of(world, handle).still_volumes == {"volume0"}


async def test_a_copy_that_took_longer_than_the_guest_waits_is_none(fleet, world):
    handle = await started(fleet, mounts=(DATA,))

    async def goes_on_by_itself() -> None:
        agent_of(world, handle).still_volumes.clear()

    world.volumes.snapshots.copied = goes_on_by_itself
    with pytest.raises(UnavailableError, match="was not copied within"):
        await fleet.living_volumes.snapshot(DB, "")
    assert world.volumes.snapshots.kept == []


@pytest.mark.parametrize("error", [TimeoutExpiredError("no answer"), HyperError("the agent failed")])
async def test_a_guest_that_does_not_stand_still_is_copied_at_one_moment_or_not_at_all(fleet, world, error):
    handle = await started(fleet, mounts=(DATA,))
    agent_of(world, handle).fail_next("freeze_volume", error)
    with pytest.raises(UnavailableError, match="does not stand still") as caught:
        await fleet.living_volumes.snapshot(DB, "")
    assert "hyper pause" in caught.value.hint
    world.volumes.snapshots.shares_blocks = True
    agent_of(world, handle).fail_next("freeze_volume", error)
    assert (await fleet.living_volumes.snapshot(DB, "")).consistency is Consistency.CRASH


async def test_a_paused_container_is_copied_as_it_stands(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    await handle.pause()
    assert (await fleet.living_volumes.snapshot(DB, "")).consistency is Consistency.CRASH
    world.volumes.snapshots.copied = handle.unpause
    with pytest.raises(WrongStateError, match="went on meanwhile"):
        await fleet.living_volumes.snapshot(DB, "")
    assert len(world.volumes.snapshots.kept) == 1


async def tar():
    yield b"a tar"


def agent_of_vm(world):
    """Of the VM that a volume was filled by."""
    sandbox_id = world.hypervisor.definitions[-1].sandbox_id
    return sandbox_id, world.dialer.agent(world.runner.settings.paths(sandbox_id).control_socket)


async def test_a_copy_that_takes_longer_than_writers_wait_is_given_up(fleet, world, monkeypatch):
    handle = await started(fleet, mounts=(DATA,))
    monkeypatch.setattr("hyperd.sandbox.living_volumes.STILL_S", 0.05)

    async def never() -> None:
        await asyncio.Event().wait()

    world.volumes.snapshots.copied = never
    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError, match="was not copied within"):
            await fleet.living_volumes.snapshot(DB, "slow")
    assert agent_of(world, handle).still_volumes == set()


async def test_a_volume_is_filled_through_a_vm_that_leaves_nothing(fleet, world):
    await created(fleet, mounts=(DATA,))
    await fleet.volume_vms.fill(DB, tar(), keep_owner=True)
    sandbox_id, agent = agent_of_vm(world)
    calls = [verb for verb in agent.calls if verb != "piece"]
    assert calls[-4:] == ["open_volume", "write_tree", "delete_container", "shutdown"]
    disks = world.hypervisor.definitions[-1].disks
    assert [(disk.serial, disk.readonly) for disk in disks][-1] == ("volume0", False)
    assert world.volumes.attached_to("db") == set()
    assert sandbox_id not in world.hypervisor.running
    assert not world.ledger.admission.held
    assert sandbox_id not in await world.storage.list_sandboxes()


@pytest.mark.parametrize("verb", ["configure", "open_volume", "write_tree", "delete_container", "shutdown"])
async def test_whatever_fails_while_it_is_filled_leaves_nothing(fleet, world, verb, monkeypatch):
    await created(fleet, mounts=(DATA,))
    connect = world.dialer.connect

    async def connecting(control_socket, *args, **fields):
        world.dialer.agent(control_socket).fail_next(verb, UnavailableError("bad luck"))
        return await connect(control_socket, *args, **fields)

    monkeypatch.setattr(world.dialer, "connect", connecting)
    with pytest.raises(UnavailableError):
        await fleet.volume_vms.fill(DB, tar(), keep_owner=False)
    assert world.volumes.attached_to("db") == set()
    assert world.hypervisor.running == {}
    assert not world.ledger.admission.held


async def test_what_somebody_writes_to_is_not_filled(fleet, world):
    await started(fleet, name="web", mounts=(DATA,))
    with pytest.raises(WrongStateError, match="web"):
        await fleet.volume_vms.fill(DB, tar(), keep_owner=False)
    with pytest.raises(NotFoundError):
        await fleet.volume_vms.fill(VolumeName("none"), tar(), keep_owner=False)
    assert len(world.hypervisor.running) == 1


async def test_a_volume_is_not_for_others_while_the_vm_that_fills_it_does_not_end(fleet, world):
    await created(fleet, mounts=(DATA,))

    async def undying():
        world.hypervisor.undying.add(agent_of_vm(world)[0])
        yield b"half a tar"
        raise InvalidError("and no more")

    with pytest.raises(UnavailableError, match="does not end"):
        await fleet.volume_vms.fill(DB, undying(), keep_owner=False)
    sandbox_id = world.hypervisor.destroyed[-1]
    assert sandbox_id in world.hypervisor.running
    assert world.volumes.attached_to("db") == {sandbox_id}
    await fleet.reconcile()
    assert world.volumes.attached_to("db") == {sandbox_id}
    world.hypervisor.undying.clear()
    await fleet.reconcile()
    assert sandbox_id not in world.hypervisor.running
    assert world.volumes.attached_to("db") == set()


async def test_a_vm_that_a_killed_hyperd_left_is_ended_when_it_can_be(world):
    async with world.daemon() as fleet:
        await created(fleet, mounts=(DATA,))

        async def killed():
            world.hypervisor.undying.add(agent_of_vm(world)[0])
            yield b"half a tar"
            raise InvalidError("and no more")

        with pytest.raises(UnavailableError):
            await fleet.volume_vms.fill(DB, killed(), keep_owner=False)
        (left,) = world.hypervisor.running
    async with world.daemon() as fleet:
        assert world.volumes.attached_to("db") == {left}
        world.hypervisor.undying.clear()
        await fleet.reconcile()
        assert world.hypervisor.running == {}
        assert world.volumes.attached_to("db") == set()
        assert left not in await world.storage.list_sandboxes()


async def test_an_export_holds_the_guest_still_as_a_snapshot_does(fleet, world):
    handle = await started(fleet, mounts=(DATA,))
    agent = agent_of(world, handle)
    async with fleet.living_volumes.exported(DB) as stream:
        assert agent.still_volumes == set()
        data = [piece async for piece in stream]
    assert agent.calls.count("freeze_volume") == 1
    assert world.volumes.snapshots.kept == []
    imported = await fleet.volumes.import_("back", {"a": "b"}, _each(data))
    assert (imported.volume.name, imported.volume.labels) == ("back", {"a": "b"})


async def _each(pieces):
    for piece in pieces:
        yield piece
