# SPDX-License-Identifier: Apache-2.0
"""Saved and restored guests of real QEMU: they go on where they were, each with memory of its own, confined."""

import asyncio
import contextlib
import dataclasses
import grp
import hashlib
import os
import pwd
import re
import socket
import time
from pathlib import Path

import pytest

from hyperd.errors import NotFoundError, TimeoutExpiredError, UnavailableError
from hyperd.host import process
from hyperd.host.reaper import Reaper
from hyperd.model.vm import Disk, DiskFormat, MemoryFile, Nic, VmDefinition, own_uid
from hyperd.vm.libvirt import LibvirtHypervisor
from tests.contract.vm.killing import end_all, hold_and_kill, holder, require_running, resume_all
from tests.contract.vm.lab import Lab, counted, eventually, new_id

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("shared", [True, False])
async def test_clones_go_on_where_their_source_was_each_with_memory_of_its_own(
    hypervisor: LibvirtHypervisor, lab: Lab, shared: bool
) -> None:
    source = lab.define_source(shared=shared)
    state = lab.qemu_file("state")
    await hypervisor.start(source)
    await eventually(lambda: len(counted(source)) > 3)
    await hypervisor.save(source.sandbox_id, state)
    await hypervisor.destroy(source.sandbox_id)
    last = counted(source)[-1]
    files = [state, *([source.memory_file.path] if source.memory_file else [])]
    before = [digest(path) for path in files]
    clones = [lab.define_clone(source, state) for _ in range(3)]
    for clone in clones:
        await hypervisor.start(clone)
    # The number is in memory: were that shared, each would find the others' additions.
    await eventually(lambda: all(len(counted(clone)) >= 20 for clone in clones))
    for clone in clones:
        first = counted(clone)[0]
        assert first in (last, last + 1, last + 2)  # saved within a line, or between
        assert counted(clone)[:20] == numbers(first, 20)
        await hypervisor.destroy(clone.sandbox_id)
    assert [digest(path) for path in files] == before


async def test_a_vm_with_an_image_s_disk_is_saved_and_goes_on_elsewhere(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    """It is a VMDK, with which QEMU refuses to migrate in the normal mode."""
    extent, image = lab.qemu_file("extent", size_mib=1), lab.qemu_file("image.vmdk")
    image.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="twoGbMaxExtentFlat"\n\nRW 2048 FLAT "{extent.name}" 0\nddb.adapterType = "ide"\n'
    )
    disk = Disk("image", image, DiskFormat.VMDK, readonly=True)
    source = dataclasses.replace(lab.define_source(shared=False), disks=(disk,))
    await hypervisor.start(source)
    await eventually(lambda: len(counted(source)) > 3)
    state = lab.qemu_file("state")
    await hypervisor.save(source.sandbox_id, state)
    await hypervisor.resume(source.sandbox_id)
    clone = lab.define_clone(source, state, disks=(disk,))
    await hypervisor.start(clone)
    for definition in (source, clone):
        seen = len(counted(definition))
        await eventually(lambda: len(counted(definition)) > seen + 3)  # noqa: B023
        await hypervisor.destroy(definition.sandbox_id)


async def test_a_vm_that_was_saved_goes_on_and_misses_nothing(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    source = lab.define_source(shared=False)
    await hypervisor.start(source)
    for name in ("one", "two"):
        seen = len(counted(source))
        await eventually(lambda: len(counted(source)) > seen + 3)  # noqa: B023
        await hypervisor.save(source.sandbox_id, lab.qemu_file(name))
        await hypervisor.resume(source.sandbox_id)
    seen = len(counted(source))
    await eventually(lambda: len(counted(source)) > seen + 3)
    lines = counted(source)
    assert lines == list(range(1, len(lines) + 1))
    await hypervisor.destroy(source.sandbox_id)


async def test_a_clone_may_only_read_the_template_whoever_is_in_it(lab: Lab) -> None:
    """Under a uid of its own; the files belong to root and QEMU's group may read them."""
    settings = dataclasses.replace(lab.settings, own_uids=True)
    source_id = new_id()
    ram = MemoryFile(lab.qemu_file("ram", 64, own_uid(source_id)), shared=True)
    state = lab.qemu_file("state", 0, own_uid(source_id))
    source = lab.define_counting(sandbox_id=source_id, memory_file=ram)
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        await hypervisor.start(source)
        await hypervisor.save(source.sandbox_id, state)
        await hypervisor.destroy(source.sandbox_id)
        for path in (ram.path, state):
            os.chown(path, 0, grp.getgrnam(settings.qemu_group).gr_gid)
            path.chmod(0o440)
        clone = lab.define_clone(source, state)
        vm = await hypervisor.start(clone)
        await eventually(lambda: len(counted(clone)) > 3)
        assert open_flags(vm.pid, ram.path) == {os.O_RDONLY}
        assert set(mappings(vm.pid, ram.path)) == {"rw-p"}
        assert open_flags(vm.pid, state) == set(), "the state was read and closed"
        await hypervisor.destroy(clone.sandbox_id)


async def test_nobody_is_told_a_clones_old_mac_address(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    if any(not name.startswith(("lo", "hv", "hyper")) for _, name in socket.if_nameindex()):
        pytest.skip("makes a tap: run inside a private network namespace")
    async with contextlib.AsyncExitStack() as stack:
        for tap in ("hvtest0", "hvtest1"):
            await process.run_checked(["ip", "tuntap", "add", tap, "mode", "tap"], timeout_s=5)
            stack.push_async_callback(process.run_checked, ["ip", "link", "del", tap], timeout_s=5)
            await process.run_checked(["ip", "link", "set", tap, "up"], timeout_s=5)
        source = lab.define_source(shared=True, nics=(Nic("hvtest0", "52:54:00:00:00:01"),))
        state = lab.qemu_file("state")
        await hypervisor.start(source)
        await hypervisor.save(source.sandbox_id, state)
        clone = lab.define_clone(source, state, nics=(Nic("hvtest1", "52:54:00:00:00:02"),))
        begun = time.monotonic()
        await hypervisor.start(clone)
        # QEMU would announce it at once and four times within the next 550 ms.
        await eventually(lambda: time.monotonic() - begun > 0.7 and len(counted(clone)) > 20)
        assert Path("/sys/class/net/hvtest1/statistics/rx_packets").read_text() == "0\n"
        for definition in (source, clone):
            await hypervisor.destroy(definition.sandbox_id)


async def test_a_restore_that_hangs_can_be_destroyed_and_keeps_no_other_from_its_end(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    """Ten, two more than there are threads for starts: each QEMU waits for somebody to write its state."""
    other = lab.define_counting()
    await hypervisor.start(other)
    hanging = [lab.define_counting(restore_from=fifo(lab, f"state-{number}")) for number in range(10)]

    async def start(definition: VmDefinition) -> None:
        with pytest.raises(UnavailableError):  # RestoreError for those that had come so far
            await hypervisor.start(definition)

    async with asyncio.TaskGroup() as tasks:
        for definition in hanging:
            tasks.create_task(start(definition))
        await eventually(lambda: sum(is_reading(pid) for pid in lab.qemu_pids()) == 8)
        async with asyncio.timeout(5):
            assert [vm.sandbox_id for vm in await hypervisor.list_running()] == [other.sandbox_id]
            await hypervisor.destroy(other.sandbox_id)
        async with asyncio.TaskGroup() as endings:
            for definition in hanging:
                endings.create_task(hypervisor.destroy(definition.sandbox_id))
    assert not lab.qemu_pids()
    assert await hypervisor.list_running() == []


async def test_a_restore_that_hangs_ends_with_its_deadline(lab: Lab) -> None:
    settings = dataclasses.replace(lab.settings, start_timeout_s=1.5)
    definition = lab.define_counting(restore_from=fifo(lab, "state"))
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        with pytest.raises(TimeoutExpiredError):
            await hypervisor.start(definition)
        booted = dataclasses.replace(definition, restore_from=None)
        await hypervisor.start(booted)
        await hypervisor.destroy(booted.sandbox_id)


async def test_a_cancelled_restore_leaves_nothing(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    definition = lab.define_counting(restore_from=fifo(lab, "state"))
    async with asyncio.TaskGroup() as tasks:
        start = tasks.create_task(hypervisor.start(definition))
        await eventually(lambda: any(is_reading(pid) for pid in lab.qemu_pids()))
        start.cancel()
    await eventually(lambda: not lab.qemu_pids())
    assert await hypervisor.list_running() == []


async def test_a_save_that_stands_still_is_given_up_and_the_vm_goes_on(lab: Lab) -> None:
    # A page in a tenth of a second.
    settings = dataclasses.replace(lab.settings, save_bytes_per_s=10, save_stall_s=0.03)
    source = lab.define_source(shared=False, guest="fill")
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        await hypervisor.start(source)
        await eventually(lambda: bool(counted(source)))
        with pytest.raises(UnavailableError, match="nothing was written"):
            await hypervisor.save(source.sandbox_id, lab.qemu_file("state"))
        await require_goes_on(hypervisor, source)
        await hypervisor.destroy(source.sandbox_id)


async def test_a_save_takes_no_longer_than_it_may_and_the_vm_goes_on(lab: Lab) -> None:
    settings = dataclasses.replace(lab.settings, save_bytes_per_s=10, save_timeout_s=0.3)
    source = lab.define_source(shared=False, guest="fill")
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        await hypervisor.start(source)
        await eventually(lambda: bool(counted(source)))
        with pytest.raises(UnavailableError, match="was not saved in"):
            await hypervisor.save(source.sandbox_id, lab.qemu_file("state"))
        await require_goes_on(hypervisor, source)
        await hypervisor.destroy(source.sandbox_id)


async def test_a_vm_that_is_destroyed_while_it_is_saved_is_not_found(lab: Lab) -> None:
    settings = dataclasses.replace(lab.settings, save_bytes_per_s=10)
    source = lab.define_source(shared=False, guest="fill")
    state = lab.qemu_file("state")
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        await hypervisor.start(source)
        await eventually(lambda: bool(counted(source)))

        async def save() -> None:
            with pytest.raises((NotFoundError, UnavailableError)):
                await hypervisor.save(source.sandbox_id, state)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(save())
            await eventually(lambda: state.stat().st_size > 0)
            await hypervisor.destroy(source.sandbox_id)
        assert await hypervisor.list_running() == []


async def test_a_vm_whose_savers_have_gone_can_be_resumed(lab: Lab) -> None:
    settings = dataclasses.replace(lab.settings, save_bytes_per_s=10)
    source = lab.define_source(shared=False, guest="fill")
    state = lab.qemu_file("state")
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        await hypervisor.start(source)
        await eventually(lambda: bool(counted(source)))
        async with asyncio.TaskGroup() as tasks:
            save = tasks.create_task(hypervisor.save(source.sandbox_id, state))
            await eventually(lambda: state.stat().st_size > 0)
            save.cancel()
        await require_goes_on(hypervisor, source)
        await hypervisor.destroy(source.sandbox_id)


async def test_a_vm_paused_by_a_killed_process_is_paused_for_the_next_and_can_be_resumed(
    own_lab: Lab,
) -> None:
    await hold_and_kill(own_lab, new_id(), verb="pause")
    assert await resume_all(own_lab) == "1 0"
    assert await resume_all(own_lab) == "0 0"
    assert await end_all(own_lab) == "1 0"


@pytest.mark.parametrize("wanted", ["resume", "end"])
async def test_a_vm_whose_save_was_cut_off_can_be_resumed_or_ended_by_the_next(
    own_lab: Lab, wanted: str
) -> None:
    state = own_lab.qemu_file("state")
    async with process.spawn(holder(own_lab, "save", state, new_id())) as child:
        await require_running(child)
        await eventually(lambda: state.stat().st_size > 0)
    if wanted == "resume":
        assert await resume_all(own_lab) == "1 0"
    assert await end_all(own_lab) == "1 0"
    assert not own_lab.qemu_pids()


async def test_a_restore_that_was_cut_off_leaves_nothing(own_lab: Lab) -> None:
    state = fifo(own_lab, "state")
    async with Reaper():  # what the holder leaves behind becomes a child of this process
        async with process.spawn(holder(own_lab, "restore", state, new_id())) as child:
            await require_running(child)
            await eventually(lambda: any(is_reading(pid) for pid in own_lab.qemu_pids()))
        assert len(own_lab.qemu_pids()) == 1
        assert await end_all(own_lab) == "0 0"
        assert not own_lab.qemu_pids()


async def require_goes_on(hypervisor: LibvirtHypervisor, source: VmDefinition) -> None:
    assert [vm.paused for vm in await hypervisor.list_running()] == [True]
    await hypervisor.resume(source.sandbox_id)
    seen = len(counted(source))
    await eventually(lambda: len(counted(source)) > seen)
    assert [vm.paused for vm in await hypervisor.list_running()] == [False]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def numbers(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def open_flags(pid: int, path: Path) -> set[int]:
    flags = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if link.readlink() == path:
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
            flags.add(int(re.search(r"flags:\s*(\d+)", info)[1], 8) & os.O_ACCMODE)  # type: ignore[index]
    return flags


def mappings(pid: int, path: Path) -> list[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if line.endswith(str(path))]


def fifo(lab: Lab, name: str) -> Path:
    """A state that nobody writes."""
    path = lab.path / name
    os.mkfifo(path, 0o600)
    os.chown(path, pwd.getpwnam("libvirt-qemu").pw_uid, -1)
    return path


def is_reading(pid: int) -> bool:
    """It waits for somebody to open the other end of its state."""
    return Path(f"/proc/{pid}/wchan").read_text() in {"wait_for_partner", "fifo_open"}
