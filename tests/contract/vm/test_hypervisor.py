# SPDX-License-Identifier: Apache-2.0
"""What every hypervisor promises: one body, two subjects, the fake and libvirt with real QEMU."""

import asyncio
import contextlib
import dataclasses

import pytest

from hyperd.errors import ExistsError, HyperError, NotFoundError, UnavailableError
from hyperd.model.vm import HOT_PLUG_DEVICES, Disk, DiskFormat, SandboxId, VmGone, VmGoneCause
from hyperd.vm import Hypervisor
from tests.contract.vm.lab import new_id
from tests.contract.vm.subject import Subject


async def next_event(hypervisor: Hypervisor) -> VmGone:
    async with asyncio.timeout(10):
        return await anext(aiter(hypervisor.events()))


async def test_a_started_vm_is_listed_until_it_is_destroyed(subject: Subject) -> None:
    definition = subject.lab.define()
    status = await subject.hypervisor.start(definition)
    assert status.sandbox_id == definition.sandbox_id
    assert status.pid > 1
    assert await subject.hypervisor.find_running(definition.sandbox_id) == status
    assert await subject.hypervisor.find_running(new_id()) is None
    assert await subject.hypervisor.list_running() == [status]
    await subject.hypervisor.destroy(definition.sandbox_id)
    assert await subject.hypervisor.list_running() == []
    assert await subject.hypervisor.find_running(definition.sandbox_id) is None


async def test_destroying_is_an_event_and_may_be_repeated(subject: Subject) -> None:
    definition = subject.lab.define()
    await subject.hypervisor.start(definition)
    await subject.hypervisor.destroy(definition.sandbox_id)
    await subject.hypervisor.destroy(definition.sandbox_id)
    event = await next_event(subject.hypervisor)
    assert event == VmGone(definition.sandbox_id, VmGoneCause.DESTROYED)


async def test_what_a_vm_uses_of_the_host_is_counted(subject: Subject) -> None:
    definition = subject.lab.define()
    with pytest.raises(NotFoundError):
        await subject.hypervisor.usage(definition.sandbox_id)
    await subject.hypervisor.start(definition)
    first = await subject.hypervisor.usage(definition.sandbox_id)
    assert first.memory_bytes is not None
    assert first.memory_bytes > 1 << 20
    assert first.block_read_bytes is not None
    assert first.block_written_bytes is not None
    async with asyncio.timeout(
        20
    ):  # until it has used more CPU time than a tick of the clock it is counted by
        while (later := await subject.hypervisor.usage(definition.sandbox_id)).cpu_ns <= first.cpu_ns:
            await asyncio.sleep(0)
    assert later.read_at_ns > first.read_at_ns
    await subject.hypervisor.pause(definition.sandbox_id)
    assert (await subject.hypervisor.usage(definition.sandbox_id)).block_read_bytes is not None
    await subject.hypervisor.destroy(definition.sandbox_id)
    with pytest.raises(NotFoundError):
        await subject.hypervisor.usage(definition.sandbox_id)


async def test_destroying_what_never_was_is_no_error(subject: Subject) -> None:
    await subject.hypervisor.destroy(SandboxId("0" * 64))


async def test_a_second_vm_of_one_sandbox_is_refused_and_the_first_goes_on(subject: Subject) -> None:
    definition = subject.lab.define()
    status = await subject.hypervisor.start(definition)
    with pytest.raises(ExistsError):
        await subject.hypervisor.start(dataclasses.replace(definition, memory_mib=32))
    assert await subject.hypervisor.list_running() == [status]
    await subject.hypervisor.destroy(definition.sandbox_id)


async def test_disks_are_plugged_into_a_vm_that_runs_while_there_is_room(subject: Subject) -> None:
    definition = subject.lab.define()
    await subject.hypervisor.start(definition)
    disks = []
    for number in range(HOT_PLUG_DEVICES + 1):
        path = subject.lab.path / f"hot{number}.img"
        path.write_bytes(bytes(1 << 20))
        path.chmod(0o666)
        disks.append(Disk(f"volume{number}", path, DiskFormat.RAW, readonly=number == 1))
    *fitting, one_more = disks
    for disk in fitting:
        await subject.hypervisor.attach_disk(definition.sandbox_id, disk)
    with pytest.raises(UnavailableError):
        await subject.hypervisor.attach_disk(definition.sandbox_id, one_more)
    await subject.hypervisor.destroy(definition.sandbox_id)
    with pytest.raises(NotFoundError):
        await subject.hypervisor.attach_disk(definition.sandbox_id, one_more)


async def test_what_is_plugged_in_is_told_and_what_is_not_there_counts_as_unplugged(subject: Subject) -> None:
    """A guest that never booted lets go of nothing: that one does is seen with real ones (test_riders.py)."""
    path = subject.lab.path / "first.img"
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o666)
    first = Disk("writable", path, DiskFormat.RAW, readonly=False)
    definition = subject.lab.define(disks=(first,))
    await subject.hypervisor.start(definition)
    assert await subject.hypervisor.list_plugged(definition.sandbox_id) == []
    hot = dataclasses.replace(first, serial="writable-0123456789a", path=path.with_name("hot.img"))
    hot.path.write_bytes(bytes(1 << 20))
    hot.path.chmod(0o666)
    await subject.hypervisor.attach_disk(definition.sandbox_id, hot)
    assert await subject.hypervisor.list_plugged(definition.sandbox_id) == [hot.serial]
    assert await subject.hypervisor.detach_disk(definition.sandbox_id, "absent") is True
    assert await subject.hypervisor.detach_disk(definition.sandbox_id, "writable") is False
    await subject.hypervisor.destroy(definition.sandbox_id)
    for gone in (
        subject.hypervisor.list_plugged(definition.sandbox_id),
        subject.hypervisor.detach_disk(definition.sandbox_id, hot.serial),
    ):
        with pytest.raises(NotFoundError):
            await gone


async def test_a_disk_grows_under_its_vm(subject: Subject) -> None:
    definition = subject.lab.define()
    path = subject.lab.path / "grows.img"
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o666)
    await subject.hypervisor.start(definition)
    disk = Disk("volume0", path, DiskFormat.RAW, readonly=False)
    await subject.hypervisor.attach_disk(definition.sandbox_id, disk)
    await subject.hypervisor.resize_disk(definition.sandbox_id, path, 4 << 20)
    await subject.hypervisor.resize_disk(definition.sandbox_id, path, 4 << 20)
    with pytest.raises(NotFoundError):
        await subject.hypervisor.resize_disk(definition.sandbox_id, path.with_name("none.img"), 4 << 20)
    await subject.hypervisor.destroy(definition.sandbox_id)
    with pytest.raises(NotFoundError):
        await subject.hypervisor.resize_disk(definition.sandbox_id, path, 8 << 20)


async def test_another_file_is_put_behind_a_disk_of_a_vm_that_stands_still(subject: Subject) -> None:
    before, after = (disk_of(subject, name) for name in ("before", "after"))
    definition = subject.lab.define(disks=(before,))
    status = await subject.hypervisor.start(definition)
    await subject.hypervisor.pause(definition.sandbox_id)
    await subject.hypervisor.replace_disk(definition.sandbox_id, after)
    assert subject.has_open(status, after.path)
    await subject.hypervisor.resume(definition.sandbox_id)
    assert await subject.hypervisor.list_running() == [status]
    await subject.hypervisor.destroy(definition.sandbox_id)
    with pytest.raises(NotFoundError):
        await subject.hypervisor.replace_disk(definition.sandbox_id, after)


async def test_a_file_that_is_not_there_leaves_the_disk_as_it_was(subject: Subject) -> None:
    before, after = (disk_of(subject, name) for name in ("before", "after"))
    definition = subject.lab.define(disks=(before,))
    status = await subject.hypervisor.start(definition)
    await subject.hypervisor.pause(definition.sandbox_id)
    with pytest.raises(UnavailableError):
        await subject.hypervisor.replace_disk(definition.sandbox_id, subject.absent(after))
    with pytest.raises(NotFoundError, match="other"):
        await subject.hypervisor.replace_disk(
            definition.sandbox_id, dataclasses.replace(after, serial="other")
        )
    assert subject.has_open(status, before.path)
    await subject.hypervisor.replace_disk(definition.sandbox_id, after)  # the name is free
    assert subject.has_open(status, after.path)
    await subject.hypervisor.destroy(definition.sandbox_id)


def disk_of(subject: Subject, name: str) -> Disk:
    path = subject.lab.path / f"{name}.img"
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o644)
    return Disk("image", path, DiskFormat.RAW, readonly=True)


async def test_a_destroyed_vm_can_be_started_again_at_once(subject: Subject) -> None:
    definition = subject.lab.define()
    first = await subject.hypervisor.start(definition)
    await subject.hypervisor.destroy(definition.sandbox_id)
    second = await subject.hypervisor.start(definition)
    assert second.pid != first.pid
    assert await subject.hypervisor.list_running() == [second]
    await subject.hypervisor.destroy(definition.sandbox_id)


async def test_a_failed_start_leaves_nothing_and_can_be_repeated(subject: Subject) -> None:
    definition = subject.broken()
    with pytest.raises(HyperError) as caught:
        await subject.hypervisor.start(definition)
    assert "qemu" in caught.value.evidence
    assert await subject.hypervisor.list_running() == []
    good = subject.lab.define(sandbox_id=definition.sandbox_id)
    await subject.hypervisor.start(good)
    await subject.hypervisor.destroy(good.sandbox_id)


@pytest.mark.parametrize(
    ("guest", "cause"), [("panic", VmGoneCause.CRASHED), ("power-off", VmGoneCause.SHUTDOWN)]
)
async def test_a_vm_that_ends_by_itself_says_why(subject: Subject, guest: str, cause: VmGoneCause) -> None:
    sandbox_id = SandboxId("a" * 64)
    with contextlib.suppress(HyperError):  # it was gone before its start was done
        await subject.start_and_end(sandbox_id, guest)
    event = await next_event(subject.hypervisor)
    assert event.sandbox_id == sandbox_id
    assert event.cause is cause
    assert await subject.hypervisor.list_running() == []
    await subject.hypervisor.destroy(sandbox_id)


async def test_several_vms_start_at_the_same_time(subject: Subject) -> None:
    definitions = [
        subject.lab.define(channels=(), console_log=subject.lab.path / f"console-{number}")
        for number in range(4)
    ]
    async with asyncio.TaskGroup() as tasks:
        for definition in definitions:
            tasks.create_task(subject.hypervisor.start(definition))
    running = await subject.hypervisor.list_running()
    assert {status.sandbox_id for status in running} == {one.sandbox_id for one in definitions}
    async with asyncio.TaskGroup() as tasks:
        for definition in definitions:
            tasks.create_task(subject.hypervisor.destroy(definition.sandbox_id))
    assert await subject.hypervisor.list_running() == []
