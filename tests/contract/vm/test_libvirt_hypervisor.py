# SPDX-License-Identifier: Apache-2.0
"""What holds for QEMU through embedded libvirt in particular."""

import asyncio
import contextlib
import dataclasses
import grp
import os
import pwd
import re
import shutil
import signal
import socket
import stat
from pathlib import Path

import pytest

from hyperd.errors import NotFoundError, UnavailableError, WrongStateError
from hyperd.host import process
from hyperd.host.reaper import Reaper
from hyperd.model.vm import Disk, DiskFormat, Nic, VmGoneCause, own_uid
from hyperd.vm import console_tail
from hyperd.vm.libvirt import LibvirtHypervisor
from tests.contract.vm.killing import end_all, hold_and_kill, holder
from tests.contract.vm.lab import Lab, eventually, new_id

pytestmark = pytest.mark.integration


def mount_namespace(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/mnt").readlink()


def open_files(pid: int) -> list[Path]:
    return [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def test_qemu_has_no_rights(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    vm = await hypervisor.start(lab.define())
    status = status_of(vm.pid)
    assert set(status["Uid"].split()) == {str(pwd.getpwnam("libvirt-qemu").pw_uid)}
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert mount_namespace(vm.pid) != mount_namespace(os.getpid())
    nodes = {path.name for path in Path(f"/proc/{vm.pid}/root/dev").iterdir() if not path.is_dir()}
    assert nodes <= {"null", "full", "zero", "random", "urandom", "kvm", "ptmx"}
    await hypervisor.destroy(vm.sandbox_id)


async def test_a_qemu_under_a_uid_of_its_own_opens_its_own_disk_and_nobody_elses(lab: Lab) -> None:
    settings = dataclasses.replace(lab.settings, own_uids=True)
    one, two = new_id(), new_id()
    disks = {}
    for sandbox_id in (one, two):
        path = lab.path / sandbox_id[:12]
        path.write_bytes(bytes(1024 * 1024))
        path.chmod(0o600)
        os.chown(path, own_uid(sandbox_id), 0)
        disks[sandbox_id] = Disk("writable", path, DiskFormat.RAW, readonly=False)
    async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
        vm = await hypervisor.start(lab.define(sandbox_id=one, disks=(disks[one],)))
        assert disks[one].path in open_files(vm.pid)
        status = status_of(vm.pid)
        assert set(status["Uid"].split()) == {str(own_uid(one))}
        assert int(status["CapEff"], 16) == 0
        assert set(status["Groups"].split()) <= {str(grp.getgrnam(settings.qemu_group).gr_gid)}
        await hypervisor.destroy(one)
        with pytest.raises(UnavailableError, match=f"{two[:12]}': Permission denied"):
            await hypervisor.start(lab.define(sandbox_id=one, disks=(disks[two],)))


async def test_a_channel_can_be_connected_to_as_soon_as_the_vm_runs(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    definition = lab.define()
    await hypervisor.start(definition)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(definition.channels[0].path))
    opened = definition.channels[0].path.stat()
    assert opened.st_mode & 0o002 == 0, "connecting takes the right to write"
    assert (opened.st_uid, opened.st_gid) == (0, 0)
    await hypervisor.destroy(definition.sandbox_id)


async def test_the_console_goes_to_a_file_that_only_root_reads_and_is_appended_to(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    definition = lab.define()
    for times in (1, 2):
        await hypervisor.start(definition)
        await eventually(lambda: console_tail(lab.console).count("hello") == times)  # noqa: B023
        await hypervisor.destroy(definition.sandbox_id)
    assert stat.S_IMODE(lab.console.stat().st_mode) == 0o600


async def test_disks_open_for_the_unprivileged_qemu_and_keep_their_owners(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    layers = lab.path / "layers"
    layers.mkdir(mode=0o711)
    for name in ("head", "layer"):
        (layers / name).write_bytes(bytes(1024 * 1024))
    extents = "\n".join(f'RW 2048 FLAT "{layers / name}" 0' for name in ("head", "layer"))
    descriptor = layers / "image.vmdk"
    descriptor.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="twoGbMaxExtentFlat"\n'
        f'{extents}\n\nddb.adapterType = "ide"\n'
    )
    writable = lab.path / "writable.raw"
    writable.write_bytes(b"")
    os.truncate(writable, 64 * 1024 * 1024)
    writable.chmod(0o600)
    shutil.chown(writable, "libvirt-qemu", "libvirt-qemu")
    vm = await hypervisor.start(
        lab.define(
            disks=(
                Disk("layers", descriptor, DiskFormat.VMDK, readonly=True),
                Disk("writable", writable, DiskFormat.RAW, readonly=False),
            )
        )
    )
    opened = open_files(vm.pid)
    assert {layers / "head", layers / "layer", writable} <= set(opened)
    assert (layers / "layer").owner() == "root"
    await hypervisor.destroy(vm.sandbox_id)
    assert writable.owner() == "libvirt-qemu"


async def test_a_disk_that_qemu_may_not_open_is_named_in_the_error(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    private = lab.path / "private.raw"
    private.write_bytes(bytes(1024 * 1024))
    private.chmod(0o600)
    with pytest.raises(UnavailableError) as caught:
        await hypervisor.start(lab.define(disks=(Disk("disk", private, DiskFormat.RAW, readonly=False),)))
    assert str(private) in str(caught.value)
    assert "Permission denied" in str(caught.value)


async def test_a_killed_qemu_is_a_lost_vm(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    definition = lab.define()
    vm = await hypervisor.start(definition)
    os.kill(vm.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        event = await anext(hypervisor.events())
    assert (event.sandbox_id, event.cause) == (vm.sandbox_id, VmGoneCause.LOST)
    assert await hypervisor.list_running() == []
    await hypervisor.destroy(vm.sandbox_id)
    await hypervisor.start(definition)
    await hypervisor.destroy(vm.sandbox_id)


async def test_destroying_a_vm_whose_qemu_was_killed_a_moment_ago(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    vm = await hypervisor.start(lab.define())
    os.kill(vm.pid, signal.SIGKILL)
    await hypervisor.destroy(vm.sandbox_id)
    assert await hypervisor.list_running() == []


async def test_a_guest_that_reboots_is_gone(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    definition = lab.define("reboot")
    with contextlib.suppress(UnavailableError):  # it may be gone before its start is done
        await hypervisor.start(definition)
    async with asyncio.timeout(10):
        event = await anext(hypervisor.events())
    assert (event.sandbox_id, event.cause) == (definition.sandbox_id, VmGoneCause.SHUTDOWN)
    await hypervisor.destroy(definition.sandbox_id)


async def test_a_cancelled_start_leaves_nothing(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    definition = lab.define()
    async with asyncio.TaskGroup() as tasks:
        start = tasks.create_task(hypervisor.start(definition))
        await eventually(lambda: bool(lab.qemu_pids()))
        start.cancel()
    await eventually(lambda: not lab.qemu_pids())
    assert await hypervisor.list_running() == []


async def test_a_sandbox_whose_start_was_cancelled_can_be_started_at_once(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    definition = lab.define()
    for timeout_s in (0.0, 0.01, 0.05, 0.1, 0.2):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await hypervisor.start(definition)
        await hypervisor.destroy(definition.sandbox_id)
        vm = await hypervisor.start(definition)
        assert await hypervisor.list_running() == [vm]
        await hypervisor.destroy(definition.sandbox_id)


async def test_a_start_under_way_can_be_destroyed(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    definition = lab.define()

    async def start() -> None:
        with contextlib.suppress(UnavailableError):
            await hypervisor.start(definition)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(start())
        await asyncio.sleep(0)
        await hypervisor.destroy(definition.sandbox_id)
    assert not lab.qemu_pids()
    assert await hypervisor.list_running() == []


async def test_starting_and_destroying_leaks_no_descriptor(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    async def once() -> int:
        definition = lab.define()
        await hypervisor.start(definition)
        await hypervisor.destroy(definition.sandbox_id)
        await hypervisor.start(definition)  # waits until libvirt has tidied up
        await hypervisor.destroy(definition.sandbox_id)
        await hypervisor.prepare()
        return len(open_files(os.getpid()))

    await once()
    before = await once()
    after = 0
    for _ in range(3):
        after = await once()
    assert after <= before + 2  # libvirt's tidying of the last one may be under way


async def test_qemu_is_told_how_much_translated_code_it_may_keep(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    vm = await hypervisor.start(lab.define())
    assert b"tb-size=32" in Path(f"/proc/{vm.pid}/cmdline").read_bytes()
    await hypervisor.destroy(vm.sandbox_id)


async def test_leaving_lets_vms_run_and_coming_back_adopts_them(lab: Lab) -> None:
    async with Reaper():
        async with LibvirtHypervisor(lab.settings) as first:
            vm = await first.start(lab.define())
        assert lab.qemu_pids() == [vm.pid]
        async with LibvirtHypervisor(lab.settings) as second:
            assert await second.list_running() == [vm]
            os.kill(vm.pid, signal.SIGKILL)
            async with asyncio.timeout(10):
                event = await anext(second.events())
            assert (event.sandbox_id, event.cause) == (vm.sandbox_id, VmGoneCause.LOST)


async def test_vms_outlive_a_killed_process_and_can_be_destroyed_in_the_first_moment_after(
    own_lab: Lab,
) -> None:
    await hold_and_kill(own_lab, *(new_id() for _ in range(3)))
    assert len(own_lab.qemu_pids()) == 3
    assert await end_all(own_lab) == "3 0"
    assert not own_lab.qemu_pids()


async def test_qemus_that_answer_nothing_are_taken_over_with_the_others_and_can_be_ended(
    own_lab: Lab,
) -> None:
    """libvirt gives up on each after 30 s: one after the other they would take longer than the next one has."""
    await hold_and_kill(own_lab, *(new_id() for _ in range(4)))
    for pid in own_lab.qemu_pids()[:3]:
        os.kill(pid, signal.SIGSTOP)
    assert await end_all(own_lab) == "4 0"
    assert not own_lab.qemu_pids()


async def test_vms_that_ended_while_nobody_looked_are_not_adopted(own_lab: Lab) -> None:
    await hold_and_kill(own_lab, new_id())
    for pid in own_lab.qemu_pids():
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not own_lab.qemu_pids())
    assert await end_all(own_lab) == "0 0"


async def test_a_start_that_was_cut_off_is_ended_before_libvirt_waits_for_it(own_lab: Lab) -> None:
    sandbox_id = new_id()
    status = own_lab.settings.pid_dir / f"hyper-{sandbox_id}.xml"
    own_lab.was_cut_off = True
    async with Reaper():  # what the holder leaves behind becomes a child of this process
        async with process.spawn(holder(own_lab, "hold", sandbox_id)) as child:
            await eventually(lambda: status.exists() and "starting up" in status.read_text(), timeout_s=60)
            child.kill()
            await child.wait()
        await eventually(lambda: not launchers())  # libvirt's may live a moment longer, and writes a file
        async with asyncio.timeout(20):
            assert await end_all(own_lab) in {"0 0", "1 0"}  # 1: it was running by then


@pytest.mark.parametrize("alive", [True, False])
async def test_a_start_that_was_cut_off_leaves_nothing(own_lab: Lab, alive: bool) -> None:
    sandbox_id = new_id()
    await hold_and_kill(own_lab, sandbox_id)
    status = own_lab.settings.pid_dir / f"hyper-{sandbox_id}.xml"
    text = re.sub(
        r"<domstatus [^>]*>", "<domstatus state='paused' reason='starting up' pid='0'>", status.read_text()
    )
    status.write_text(text)
    if not alive:
        for pid in own_lab.qemu_pids():
            os.kill(pid, signal.SIGKILL)
    assert await end_all(own_lab) == "0 0"
    assert not own_lab.qemu_pids()
    assert not list((own_lab.settings.root / "lib/qemu").glob("domain-*"))


async def test_a_second_process_is_refused_and_told_who_has_the_root(
    lab: Lab, hypervisor: LibvirtHypervisor
) -> None:
    assert await hypervisor.list_running() == []
    finished = await process.run(holder(lab, "end"), timeout_s=30)
    assert finished.returncode != 0
    assert WrongStateError.__name__ in finished.stderr_tail
    assert f"pid {os.getpid()}" in finished.stderr_tail


async def test_a_vm_gets_its_nic_on_the_tap_that_is_there(hypervisor: LibvirtHypervisor, lab: Lab) -> None:
    if any(not name.startswith(("lo", "hv", "hyper")) for _, name in socket.if_nameindex()):
        pytest.skip("makes a tap: run inside a private network namespace")
    await process.run_checked(["ip", "tuntap", "add", "hvtest0", "mode", "tap"], timeout_s=5)
    try:
        vm = await hypervisor.start(lab.define(nics=(Nic("hvtest0", "52:54:00:00:00:01"),)))
        assert "hvtest0" in taps_of(vm.pid)
        await hypervisor.destroy(vm.sandbox_id)
        link = await process.run_checked(["ip", "link", "show", "hvtest0"], timeout_s=5)
        assert b"hvtest0" in link.stdout  # it was there before the VM and is there after
    finally:
        await process.run_checked(["ip", "link", "del", "hvtest0"], timeout_s=5)


async def test_nics_are_plugged_in_and_those_of_the_start_stay(
    hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    """A guest that never booted lets go of nothing: that one let go is seen with real ones (test_rewiring.py)."""
    taps = ("hvtest0", "hvtest1")
    for tap in taps:
        await process.run_checked(["ip", "tuntap", "add", tap, "mode", "tap"], timeout_s=5)
    try:
        first, further = (Nic(tap, f"52:54:00:00:00:0{number}") for number, tap in enumerate(taps))
        vm = await hypervisor.start(lab.define(nics=(first,)))
        for nic in (first, further, further):
            await hypervisor.attach_nic(vm.sandbox_id, nic)
        assert [tap in taps_of(vm.pid) for tap in taps] == [True, True]
        assert await hypervisor.detach_nic(vm.sandbox_id, "hvtest0") is False
        assert await hypervisor.detach_nic(vm.sandbox_id, "hvtest9") is True
        await hypervisor.destroy(vm.sandbox_id)
        with pytest.raises(NotFoundError):
            await hypervisor.detach_nic(vm.sandbox_id, "hvtest1")
    finally:
        for tap in taps:
            await process.run_checked(["ip", "link", "del", tap], timeout_s=5)


def taps_of(pid: int) -> str:
    infos = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    return " ".join(info for info in infos if "iff:" in info)


def launchers() -> list[str]:
    """Orphans adopted by this process that have not become QEMU yet."""
    orphans = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                head, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
                parent, _, session = (int(field) for field in rest.split()[1:4])
                own = session in (os.getsid(0), int(entry.name))
                if parent == os.getpid() and not own and "(qemu-system" not in head:
                    orphans.append(head)
    return orphans
