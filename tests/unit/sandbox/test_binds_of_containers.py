# SPDX-License-Identifier: Apache-2.0
"""Containers that see directories of the host, over fakes of all rooms."""

import pytest

from hyperd.errors import DeniedError, InvalidError, UnavailableError, UnsupportedError
from hyperd.model.container import ContainerState, StartPath, StartReport
from hyperd.model.guest import GuestMount
from hyperd.model.share import IdRange
from hyperd.model.vm import HOT_PLUG_DEVICES, Accelerator
from hyperd.model.volume import Mount, MountType
from hyperd.sandbox import SandboxHandle, lookout
from hyperd.sandbox.mount_sources import EMULATED_NOTE
from hyperd.sandbox.template import STRIKES
from tests.fakes.hypervisor import qemu_died, restore_failed
from tests.fakes.world import created, eventually, started


def bind(destination, source="/srv", **fields):
    return Mount(MountType.BIND, destination, source, **fields)


def report(handle: SandboxHandle) -> StartReport:
    start = handle.view().start
    assert start is not None
    return start


async def test_a_bind_is_served_while_its_container_runs(fleet, world):
    handle = await created(fleet, mounts=(bind("/x"), bind("/y", "/etc/motd", readonly=True)))
    world.shares.files.add("/etc/motd")
    assert world.shares.served == {}
    await handle.start()
    directory, file = world.shares.served[handle.record.sandbox_id]
    assert (directory.request.tag, directory.request.readonly, directory.is_file) == ("bind0", False, False)
    assert (file.request.tag, file.request.readonly, file.is_file) == ("bind1", True, True)
    definition = world.hypervisor.definitions[-1]
    assert definition.shared_memory
    assert [port.tag for port in definition.shares] == ["bind0", "bind1"]
    first, second = next(iter(world.agent(handle).containers.values())).plan.mounts
    assert first == GuestMount("/x", "virtiofs", "bind0", ("noexec",))
    assert second == GuestMount("/y", "virtiofs", "bind1", ("ro", "noexec"), "file")
    await handle.stop(timeout_s=0)
    assert world.shares.served == {}
    await handle.start()
    assert len(world.shares.served) == 1


async def test_programs_are_run_from_a_share_where_the_processor_runs_them(world):
    """An emulator would go on with what it translated of the memory into which virtiofsd wrote them."""
    for accelerator, options in ((Accelerator.TCG, ("noexec",)), (Accelerator.KVM, ())):
        world.found = accelerator
        async with world.daemon() as fleet:
            handle = await started(fleet, mounts=(bind("/x"),))
            (mount,) = next(iter(world.agent(handle).containers.values())).plan.mounts
            assert mount.options == options
            assert (EMULATED_NOTE in report(handle).note) == bool(options)
            await handle.remove(force=True)


async def test_a_container_without_binds_has_memory_of_its_own(fleet, world):
    await started(fleet)
    assert not world.hypervisor.definitions[-1].shared_memory
    assert world.shares.times == []


async def test_what_is_not_there_is_refused_when_the_container_is_made_or_made_when_it_starts(fleet, world):
    world.shares.missing |= {"/none", "/new"}
    with pytest.raises(InvalidError, match="bind source path does not exist: /none"):
        await created(fleet, mounts=(bind("/x", "/none"),))
    assert fleet.list_views([], everything=True) == []
    handle = await created(fleet, mounts=(bind("/x", "/new", create_source=True),))
    assert world.shares.made == []
    await handle.start()
    assert world.shares.made == ["/new"]


async def test_a_source_that_went_away_is_the_start_s_error(fleet, world):
    handle = await created(fleet, mounts=(bind("/x"),))
    world.shares.fail_next_find = DeniedError("may not be shared")
    with pytest.raises(DeniedError):
        await handle.start()
    world.require_nothing_left_of(handle)
    assert world.hypervisor.definitions == []


async def test_a_start_from_a_template_plugs_the_shares_in(world):
    world.templates_enabled = True
    async with world.daemon() as fleet:
        await world.build_templates(1, 256)
        handle = await started(fleet, mounts=(bind("/x"), Mount(MountType.VOLUME, "/data", "db")))
        assert report(handle).path is StartPath.TEMPLATE
        definition = world.hypervisor.definitions[-1]
        assert (definition.shares, definition.shared_memory) == ((), True)
        disk, port = world.hypervisor.plugged[handle.record.sandbox_id]
        assert (disk.serial, port.tag) == ("volume0", "bind0")
        many = await started(fleet, mounts=tuple(bind(f"/{n}") for n in range(HOT_PLUG_DEVICES + 1)))
        assert report(many).path is StartPath.COLD
        assert "9 shares are more than a template has room for" in report(many).note


@pytest.mark.parametrize("failure", ["plug", "restore"])
async def test_a_clone_that_fails_is_booted_with_shares_that_are_served_anew(world, failure):
    world.templates_enabled = True
    async with world.daemon() as fleet:
        await world.build_templates(1, 256)
        handle = await created(fleet, mounts=(bind("/x"),))
        if failure == "plug":
            world.hypervisor.fail_next_attach = UnavailableError("no room")
        else:
            world.hypervisor.fail_next_restore = restore_failed()
        await handle.start()
        assert report(handle).path is StartPath.COLD
        sandbox_id = handle.record.sandbox_id
        assert world.shares.times == [sandbox_id, sandbox_id]
        assert sandbox_id in world.shares.served


async def test_who_cannot_serve_is_named_instead_of_what_qemu_makes_of_it(fleet, world):
    handle = await created(fleet, mounts=(bind("/x"),))
    for evidence, told in (("/srv: Stale file handle", "cannot be served"), ("", "QEMU ended")):
        world.shares.crash(handle.record.sandbox_id, "bind0", evidence)
        world.hypervisor.fail_next_start = qemu_died()
        with pytest.raises(UnavailableError, match=told):
            await handle.start()
    assert world.shares.served == {}
    world.require_nothing_left_of(handle)


async def test_whoever_cannot_begin_to_serve_leaves_nothing(fleet, world):
    handle = await created(fleet, mounts=(bind("/x"),))
    world.shares.fail_next_serve = UnavailableError("cannot be executed")
    with pytest.raises(UnavailableError):
        await handle.start()
    world.require_nothing_left_of(handle)
    await handle.start()


async def test_no_template_is_blamed_for_whoever_cannot_serve(world):
    world.templates_enabled = True
    async with world.daemon() as fleet:
        await world.build_templates(1, 256)
        for _ in range(STRIKES + 1):
            handle = await created(fleet, mounts=(bind("/x"),))
            world.shares.fail_next_serve = UnavailableError("cannot be executed")
            await handle.start()
            assert report(handle).path is StartPath.COLD
            assert "cannot be executed" in report(handle).note
        assert report(await started(fleet)).path is StartPath.TEMPLATE


async def test_a_share_that_is_lost_is_told_and_the_container_runs_on(fleet, world):
    handle = await started(fleet, name="web", mounts=(bind("/x"), bind("/y")))
    world.shares.crash(handle.record.sandbox_id, "bind1")
    await eventually(lambda: handle.view().trouble)
    assert "what is shared at /y is not served any more" in handle.view().trouble
    assert handle.view().state is ContainerState.RUNNING
    world.shares.crash(handle.record.sandbox_id, "bind0", "/srv: Stale file handle")
    await eventually(lambda: "/x, /y" in handle.view().trouble)
    assert "Stale file handle" in handle.view().trouble
    await handle.stop(timeout_s=0)
    await handle.start()
    assert handle.view().trouble == ""


async def test_shares_that_cannot_be_watched_end_nothing_and_are_watched_later(fleet, world, monkeypatch):
    monkeypatch.setattr(lookout, "RETRY_DELAY_S", 0)
    world.shares.fail_next_wait = UnavailableError("is locked by nobody")
    handle = await started(fleet, name="web", mounts=(bind("/x"),))
    await eventually(lambda: world.shares.fail_next_wait is None)
    world.shares.crash(handle.record.sandbox_id, "bind0")
    await eventually(lambda: handle.view().trouble)
    assert handle.view().state is ContainerState.RUNNING


async def test_shares_of_a_vm_that_is_adopted_are_left_and_watched_and_others_end(world):
    async with world.daemon() as fleet:
        alive = await started(fleet, name="alive", mounts=(bind("/x"),))
        dead = await started(fleet, name="dead", mounts=(bind("/x"),))
    world.hypervisor.lose(dead.record.sandbox_id)
    async with world.daemon() as fleet:
        assert set(world.shares.served) == {alive.record.sandbox_id}
        handle = fleet.get("alive")
        await eventually(lambda: handle.view().state is ContainerState.RUNNING)
        world.shares.crash(alive.record.sandbox_id, "bind0")
        await eventually(lambda: handle.view().trouble)
        await handle.remove(force=True)
        assert world.shares.served == {}


async def test_what_would_copy_a_bind_is_refused(fleet):
    handle = await started(fleet, mounts=(bind("/x"),))
    for refused in (handle.snapshot("x"), handle.hibernate()):
        with pytest.raises(UnsupportedError, match="has directories of the host"):
            await refused


async def test_others_get_the_binds_of_a_container(fleet):
    first = await created(fleet, mounts=(bind("/x"),))
    other = await created(fleet, volumes_from=(f"{first.record.name}:ro",))
    (mount,) = other.record.spec.mounts
    assert (mount.type, mount.source, mount.readonly) == (MountType.BIND, "/srv", True)


async def test_the_fleet_s_regular_look_keeps_their_logs_short(fleet, world):
    await fleet.reconcile()
    assert world.shares.tidied == 1


@pytest.mark.parametrize(
    "mount",
    [
        bind("/x", "srv"),
        bind("/x", "/s\0"),
        bind("/x", mode=0o700),
        bind("/x", no_copy=True),
        bind("/x", uids=(IdRange(0, 0, 0),)),
        bind("/x", uids=(IdRange(0, 1 << 32, 1),)),
        bind("/x", uids=(IdRange(0, 0, 10), IdRange(5, 100, 1))),
        bind("/x", gids=(IdRange(0, 0, 10), IdRange(50, 9, 1))),
        Mount(MountType.VOLUME, "/x", "db", uids=(IdRange(0, 1, 1),)),
    ],
)
async def test_a_bind_that_makes_no_sense_is_refused(fleet, mount):
    with pytest.raises(InvalidError):
        await created(fleet, mounts=(mount,))


async def test_ids_that_differ_are_handed_on(fleet, world):
    ids = (IdRange(1000, 0, 1), IdRange(100000, 1, 10))
    handle = await started(fleet, mounts=(bind("/x", uids=ids),))
    (share,) = world.shares.served[handle.record.sandbox_id]
    assert (share.request.uids, share.request.gids) == (ids, ())
