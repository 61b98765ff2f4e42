# SPDX-License-Identifier: Apache-2.0
"""Containers with volumes, over fakes of all rooms."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.container import ContainerState, StartPath, StartReport
from hyperd.model.volume import Mount, MountType, VolumeName, VolumeRequest
from hyperd.sandbox import SandboxHandle
from hyperd.sandbox.template import STRIKES
from tests.fakes.hypervisor import qemu_died
from tests.fakes.world import created, eventually, started


def volume(destination, source="", **fields):
    return Mount(MountType.VOLUME, destination, source, **fields)


DATA = volume("/data", "db")


def report(handle: SandboxHandle) -> StartReport:
    start = handle.view().start
    assert start is not None
    return start


async def test_a_container_has_its_volume_from_its_creation_and_its_vm_while_it_runs(fleet, world):
    handle = await created(fleet, mounts=(DATA,))
    assert [user.attached for user in (await fleet.volumes.get("db")).users] == [False]
    await handle.start()
    assert world.volumes.attached_to("db") == {handle.record.sandbox_id}
    disk = world.hypervisor.definitions[-1].disks[2]
    assert (disk.serial, disk.readonly) == ("volume0", False)
    await handle.stop(timeout_s=0)
    assert world.volumes.attached_to("db") == set()
    with pytest.raises(WrongStateError, match="in use by container"):
        await fleet.volumes.remove("db")
    await handle.remove(force=False)
    await fleet.volumes.remove("db")
    with pytest.raises(NotFoundError):
        await fleet.volumes.remove("db")


async def test_the_second_who_would_write_is_told_who_does(fleet, world):
    first = await started(fleet, name="first", mounts=(DATA,))
    second = await created(fleet, mounts=(DATA,))
    with pytest.raises(WrongStateError, match="first"):
        await second.start()
    world.require_nothing_left_of(second)
    assert world.volumes.attached_to("db") == {first.record.sandbox_id}
    assert second.view().state is ContainerState.FAILED


async def test_a_shared_one_is_a_share_in_each_and_written_to_by_all(fleet, world):
    await fleet.volumes.create(VolumeRequest(VolumeName("pool"), filesystem="virtiofs"))
    mounts = (volume("/pool", "pool"), DATA)
    first = await started(fleet, name="first", mounts=mounts)
    second = await started(fleet, mounts=(volume("/pool", "pool"), volume("/p", "pool", readonly=True)))
    for handle in (first, second):
        (share,) = world.shares.served[handle.record.sandbox_id]
        assert (share.request.ours, share.request.readonly, share.request.tag) == (True, False, "volume0")
        plan = next(iter(world.agent(handle).containers.values())).plan
        assert (plan.mounts[0].type, plan.mounts[0].subdirectory, plan.mounts[0].copy_image) == (
            "virtiofs",
            "",
            False,
        )
    assert [disk.serial for disk in world.hypervisor.definitions[-2].disks] == [
        "image",
        "writable",
        "volume1",
    ]
    assert world.volumes.attached_to("pool") == {first.record.sandbox_id, second.record.sandbox_id}
    for refused in (
        fleet.living_volumes.snapshot(VolumeName("pool"), ""),
        fleet.living_volumes.resize(VolumeName("pool"), 1 << 30),
    ):
        with pytest.raises(UnsupportedError, match="is shared"):
            await refused


async def test_the_guest_is_told_what_each_volume_holds(fleet, world):
    await fleet.volumes.create(VolumeRequest(VolumeName("db"), filesystem="xfs"))
    handle = await started(fleet, mounts=(volume("/other", "other"), DATA))
    plan = next(iter(world.agent(handle).containers.values())).plan
    assert [(mount.destination, mount.type) for mount in plan.mounts] == [
        ("/other", "block:ext4"),
        ("/data", "block:xfs"),
    ]


async def test_a_start_that_fails_lets_go_of_its_volumes(fleet, world):
    handle = await created(fleet, mounts=(DATA,))
    world.hypervisor.fail_next_start = qemu_died()
    with pytest.raises(UnavailableError):
        await handle.start()
    assert world.volumes.attached_to("db") == set()


async def test_a_container_that_cannot_be_recorded_leaves_no_volume(fleet, world):
    await created(fleet, name="web")
    with pytest.raises(ExistsError):
        await created(fleet, name="web", mounts=(DATA, volume("/anon")))
    world.volumes.fail_next_make = ExhaustedError("no space for a volume")
    with pytest.raises(ExhaustedError):
        await created(fleet, mounts=(DATA,))
    assert world.volumes.kept == {}


@pytest.mark.parametrize("with_volumes", [False, True])
async def test_anonymous_volumes_go_when_asked_and_named_ones_stay(fleet, world, with_volumes):
    handle = await created(fleet, mounts=(DATA, volume("/anon")))
    await handle.remove(force=False, volumes=with_volumes)
    assert len(world.volumes.kept) == (1 if with_volumes else 2)
    pruned = await fleet.volumes.prune(named=False)
    assert len(pruned.removed) == (0 if with_volumes else 1)
    assert set(world.volumes.kept) == {"db"}


async def test_a_refused_removal_does_not_make_the_next_one_take_the_volumes(fleet, world):
    handle = await started(fleet, mounts=(volume("/anon"),))
    with pytest.raises(WrongStateError):
        await handle.remove(force=False, volumes=True)
    await handle.remove(force=True)
    assert len(world.volumes.kept) == 1


async def test_rm_takes_the_anonymous_volumes_and_those_of_others_stay(fleet, world):
    first = await started(fleet, auto_remove=True, mounts=(DATA, volume("/anon")))
    other = await created(fleet, volumes_from=(f"{first.record.name}:ro",))
    assert [mount.readonly for mount in other.record.spec.mounts] == [True, True]
    await first.stop(timeout_s=0)
    await eventually(lambda: len(fleet.list_views([], everything=True)) == 1)
    assert len(world.volumes.kept) == 2
    await other.remove(force=False, volumes=True)
    assert set(world.volumes.kept) == {"db"}


async def test_a_removal_that_hyperd_was_killed_in_is_finished_with_its_volumes(world):
    async with world.daemon() as fleet:
        handle = await created(fleet, mounts=(volume("/anon"),))
        world.hypervisor.fail_next_destroy = UnavailableError("libvirt hangs")
        with pytest.raises(UnavailableError):
            await handle.remove(force=False, volumes=True)
        assert handle.view().state is ContainerState.REMOVING
    async with world.daemon() as fleet:
        await eventually(lambda: not fleet.list_views([], everything=True))
        assert world.volumes.kept == {}


async def test_a_daemon_that_comes_back_adopts_attachments_and_drops_dead_ones(world):
    async with world.daemon() as fleet:
        alive = await started(fleet, name="alive", mounts=(DATA,))
        dead = await started(fleet, name="dead", mounts=(volume("/x", "other"),))
    world.hypervisor.lose(dead.record.sandbox_id)
    async with world.daemon() as fleet:
        assert world.volumes.attached_to("db") == {alive.record.sandbox_id}
        assert world.volumes.attached_to("other") == set()
        await fleet.get("alive").remove(force=True)
        assert world.volumes.attached_to("db") == set()


@pytest.mark.parametrize("gone_by_itself", [False, True])
async def test_a_vm_that_cannot_be_ended_keeps_its_volumes_until_it_is_gone(fleet, world, gone_by_itself):
    first = await started(fleet, name="first", mounts=(DATA,))
    second = await created(fleet, mounts=(DATA,))
    sandbox_id = first.record.sandbox_id
    world.hypervisor.undying.add(sandbox_id)
    world.agent(first).fail_next("shutdown", UnavailableError("gone"))
    await first.stop(timeout_s=0)
    assert first.view().state is ContainerState.EXITED
    for _ in range(3):
        await fleet.reconcile()
    assert world.volumes.attached_to("db") == {sandbox_id}
    with pytest.raises(WrongStateError, match="first"):
        await second.start()
    world.hypervisor.undying.clear()
    if gone_by_itself:
        world.hypervisor.lose(sandbox_id)
    for _ in range(2):
        await fleet.reconcile()
    await eventually(lambda: world.volumes.attached_to("db") == set())
    assert sandbox_id not in world.hypervisor.running
    await second.start()


async def test_a_start_whose_vm_cannot_be_ended_keeps_its_volumes(fleet, world):
    handle = await created(fleet, mounts=(DATA,))
    world.hypervisor.undying.add(handle.record.sandbox_id)
    world.hypervisor.held_verbs.add("create_container")
    starting = asyncio.get_running_loop().create_task(handle.start())
    await eventually(lambda: handle.record.sandbox_id in world.hypervisor.agents)
    await world.agent(handle).wait_called("create_container")
    await handle.stop(timeout_s=0)
    await asyncio.wait((starting,))
    assert world.volumes.attached_to("db") == {handle.record.sandbox_id}
    starting.exception()


async def test_a_vm_that_no_record_knows_keeps_its_volumes_until_it_is_gone(world):
    async with world.daemon() as fleet:
        handle = await started(fleet, mounts=(DATA,))
        sandbox_id = handle.record.sandbox_id
    async with world.stored() as records:
        await records.delete(sandbox_id)
    world.hypervisor.undying.add(sandbox_id)
    async with world.daemon():
        assert world.volumes.attached_to("db") == {sandbox_id}
    world.hypervisor.undying.clear()
    async with world.daemon() as fleet:
        await eventually(lambda: sandbox_id not in world.hypervisor.running)
        await eventually(lambda: not world.volumes.kept["db"].users)


async def test_the_files_of_one_are_open_to_all_while_another_has_its_volume(fleet, world):
    handle = await created(fleet, mounts=(DATA,))
    await started(fleet, mounts=(DATA,))

    async def take(_: object) -> None:
        pass

    await handle.files.export(take)
    assert len(world.hypervisor.definitions[-1].disks) == 2
    assert world.hypervisor.definitions[-1].nics == ()
    assert len(world.volumes.attached_to("db")) == 1


async def test_what_would_copy_a_volume_is_refused(fleet):
    handle = await started(fleet, mounts=(DATA,))
    for refused in (handle.snapshot("x"), handle.hibernate()):
        with pytest.raises(UnsupportedError, match="has volumes"):
            await refused
    assert handle.view().state is ContainerState.RUNNING


async def test_a_start_from_a_template_plugs_the_volumes_in(world):
    world.templates_enabled = True
    async with world.daemon() as fleet:
        await world.build_templates(1, 256)
        handle = await started(fleet, mounts=(DATA,))
        assert report(handle).path is StartPath.TEMPLATE
        assert len(world.hypervisor.definitions[-1].disks) == 2
        (disk,) = world.hypervisor.plugged[handle.record.sandbox_id]
        assert disk.serial == "volume0"
        many = await started(fleet, mounts=tuple(volume(f"/{n}", f"v{n}") for n in range(9)))
        assert report(many).path is StartPath.COLD
        assert "9 volumes are more than a template has room for" in report(many).note
        assert len(world.hypervisor.definitions[-1].disks) == 11


async def test_a_volume_that_cannot_be_plugged_in_costs_time_and_no_error(world):
    world.templates_enabled = True
    async with world.daemon() as fleet:
        await world.build_templates(1, 256)
        templates = world.snapshots.everything()
        for _ in range(STRIKES + 1):
            world.hypervisor.fail_next_attach = UnavailableError("no room for another device")
            handle = await started(fleet, mounts=(DATA,))
            assert report(handle).path is StartPath.COLD
            assert "no room for another device" in report(handle).note
            await handle.stop(timeout_s=0)
        assert world.snapshots.everything() == templates  # they are not to blame


async def test_volumes_are_chosen_by_filters(fleet):
    await fleet.volumes.create(VolumeRequest(VolumeName("web-data"), labels={"team": "web"}))
    await fleet.volumes.create(VolumeRequest(VolumeName("")))
    await created(fleet, mounts=(DATA,))

    async def names(*wanted):
        return [view.volume.name for view in await fleet.volumes.list(wanted)]

    assert await names(("name", "web")) == ["web-data"]
    assert await names(("label", "team=web")) == ["web-data"]
    assert await names(("label", "team=db")) == []
    assert await names(("dangling", "false")) == ["db"]
    # The anonymous one is named by hexadecimal digits, of which `db` may be two.
    assert {"web-data", "db"} <= set(await names(("name", "web"), ("name", "db")))
    assert len(await names(("driver", "local"), ("dangling", "true"))) == 2
    for wrong in (("colour", "red"), ("dangling", "perhaps")):
        with pytest.raises(InvalidError):
            await names(wrong)
    assert len(fleet.list_views([("volume", "db")], everything=True)) == 1
    assert len(fleet.list_views([("volume", "/data")], everything=True)) == 1
    assert fleet.list_views([("volume", "web-data")], everything=True) == []


async def test_prune_leaves_what_is_used_and_what_is_named(fleet, world):
    await fleet.volumes.create(VolumeRequest(VolumeName("kept"), labels={"keep": "1"}))
    await fleet.volumes.create(VolumeRequest(VolumeName("gone")))
    await created(fleet, mounts=(volume("/anon"),))
    assert (await fleet.volumes.prune(named=False)).removed == ()
    pruned = await fleet.volumes.prune(named=True, wanted=[("label", "keep")])
    assert pruned.removed == ("kept",)
    await fleet.volumes.prune(named=True)
    assert len(world.volumes.kept) == 1


async def test_the_disk_of_a_size_of_its_own_is_asked_for(fleet, world):
    handle = await started(fleet, writable_size_bytes=1 << 30)
    assert world.storage.sizes[handle.record.sandbox_id] == 1 << 30


async def test_the_disk_is_synced_at_the_end_also_of_one_that_is_removed(fleet, world):
    handle = await started(fleet, auto_remove=True, mounts=(DATA,))
    agent = world.agent(handle)
    await handle.stop(timeout_s=0)
    assert agent.powered_off


async def test_a_server_that_nobody_speaks_to_any_more_is_told_and_the_container_runs_on(fleet, world):
    handle = await started(fleet, name="web", mounts=(DATA, volume("/more", "db"), volume("/other", "other")))
    world.volumes.crash(handle.record.sandbox_id, "db", "lost the server")
    await eventually(lambda: handle.view().trouble)
    assert "the server of volume db any more: /data, /more has I/O errors" in handle.view().trouble
    assert "lost the server" in handle.view().trouble
    assert handle.view().state is ContainerState.RUNNING
    await handle.stop(timeout_s=0)
    await handle.start()
    assert handle.view().trouble == ""
