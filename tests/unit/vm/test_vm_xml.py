# SPDX-License-Identifier: Apache-2.0
"""Domain XML, against golden files. ``HYPER_WRITE_GOLDEN=1`` writes them anew: read the difference, then commit it."""

import dataclasses
import os
import string
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError
from hyperd.model.vm import (
    Accelerator,
    Channel,
    Disk,
    DiskFormat,
    MemoryFile,
    NbdExport,
    Nic,
    SandboxId,
    SharePort,
    VmDefinition,
    own_uid,
)
from hyperd.vm.libvirt import LibvirtSettings
from hyperd.vm.libvirt.xml import (
    METADATA_URI,
    domain_name,
    domain_uuid,
    find_sandbox_id,
    render_domain,
    render_hot_disk,
    render_hot_nic,
)

GOLDEN = Path(__file__).parents[2] / "golden/vm"
SETTINGS = LibvirtSettings(root=Path("/var/lib/hyper/libvirt"))
SMALL = VmDefinition(
    sandbox_id=SandboxId("0123456789abcdef" * 4),
    vcpus=1,
    memory_mib=128,
    accelerator=Accelerator.TCG,
    kernel=Path("/usr/lib/hyper/vmlinux"),
    initramfs=Path("/usr/lib/hyper/initramfs"),
    cmdline="quiet panic=-1",
    console_log=Path("/var/lib/hyper/sandboxes/0123/console.log"),
)
FULL = dataclasses.replace(
    SMALL,
    vcpus=4,
    memory_mib=2048,
    accelerator=Accelerator.KVM,
    channels=(
        Channel("hyper.control", Path("/run/hyper/0123/control")),
        Channel("hyper.stream", Path("/run/hyper/0123/stream")),
    ),
    disks=(
        Disk("layers", Path("/var/lib/hyper/disks/a&b.vmdk"), DiskFormat.VMDK, readonly=True),
        Disk("writable", Path("/var/lib/hyper/sandboxes/0123/writable.raw"), DiskFormat.RAW, readonly=False),
    ),
    nics=(Nic("hyp0123", "52:54:00:12:34:56"),),
)


TEMPLATE = dataclasses.replace(
    SMALL, memory_file=MemoryFile(Path("/var/lib/hyper/a,b/ram"), shared=True), free_page_reporting=False
)
CLONE = dataclasses.replace(
    TEMPLATE,
    memory_file=MemoryFile(Path("/var/lib/hyper/a,b/ram"), shared=False),
    restore_from=Path("/var/lib/hyper/a,b/state"),
)


SHARING = dataclasses.replace(
    FULL, shared_memory=True, shares=(SharePort("bind0", Path("/run/hyper/shares/0123/bind0.sock")),)
)


def test_what_qemu_keeps_of_translated_code_is_bounded_under_emulation_alone():
    settings = dataclasses.replace(SETTINGS, translation_cache_mib=128)
    emulated, virtualized = (
        ET.fromstring(render_domain(definition, settings)) for definition in (SMALL, FULL)
    )
    cache = emulated.find("features/tcg/tb-cache")
    assert cache is not None
    assert (cache.text, cache.get("unit")) == ("128", "MiB")
    assert virtualized.find("features/tcg") is None


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("small-tcg", SMALL),
        ("full-kvm", FULL),
        ("template", TEMPLATE),
        ("clone", CLONE),
        ("sharing", SHARING),
    ],
)
def test_the_domain_is_as_the_golden_file_says(name: str, definition: VmDefinition) -> None:
    golden = GOLDEN / f"{name}.xml"
    rendered = render_domain(definition, SETTINGS)
    if os.environ.get("HYPER_WRITE_GOLDEN"):
        golden.write_text(rendered)
    assert rendered == golden.read_text()


def test_a_disk_for_a_vm_that_runs_is_as_one_that_it_starts_with_and_libvirt_finds_its_place() -> None:
    disk = Disk("volume0", Path("/var/lib/hyper/volumes/1/disk.img"), DiskFormat.RAW, readonly=False)
    hot = ET.fromstring(render_hot_disk(disk, "vdc"))
    cold = ET.fromstring(render_domain(dataclasses.replace(SMALL, disks=(disk,)), SETTINGS)).find(
        "devices/disk"
    )
    assert cold is not None
    place = cold.find("address")
    assert place is not None
    cold.remove(place)
    target = cold.find("target")
    assert target is not None
    target.set("dev", "vdc")
    assert ET.canonicalize(ET.tostring(hot), strip_text=True) == ET.canonicalize(
        ET.tostring(cold), strip_text=True
    )
    with pytest.raises(InvalidError):
        render_hot_disk(dataclasses.replace(disk, serial="x" * 21), "vdc")


def test_a_disk_of_a_servers_is_reached_by_the_network_and_waited_for_a_moment() -> None:
    export = NbdExport("127.0.0.1", 10809, "a&b/c")
    disk = Disk("volume0", Path("/none"), DiskFormat.RAW, readonly=False, export=export)
    root = ET.fromstring(render_hot_disk(disk, "vdc"))
    source = root.find("source")
    assert source is not None
    assert root.get("type") == "network"
    assert (source.attrib, source.find("host").attrib, source.find("reconnect").attrib) == (  # type: ignore[union-attr]
        {"protocol": "nbd", "name": "a&b/c"},
        {"name": "127.0.0.1", "port": "10809"},
        {"delay": "10"},
    )
    assert "/none" not in ET.tostring(root, encoding="unicode")
    here = dataclasses.replace(export, name="disk", socket=Path("/run/d.sock"))
    near = ET.fromstring(render_hot_disk(dataclasses.replace(disk, export=here), "vdc"))
    assert near.find("source/host").attrib == {"transport": "unix", "socket": "/run/d.sock"}  # type: ignore[union-attr]
    bad = dataclasses.replace(disk, export=dataclasses.replace(export, name="a\0b"))
    with pytest.raises(InvalidError):
        render_hot_disk(bad, "vdc")


def arguments(definition: VmDefinition) -> list[str]:
    root = ET.fromstring(render_domain(definition, SETTINGS))
    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    return [arg.get("value", "") for arg in root.findall(f"{{{uri}}}commandline/{{{uri}}}arg")]


def test_the_ram_has_one_name_whatever_is_behind_it() -> None:
    """It is in every saved state: what was saved with a file must be restorable without one."""
    for definition in (SMALL, TEMPLATE, CLONE):
        found = arguments(definition)
        assert ",id=hyper.ram,size=128M" in found[found.index("-object") + 1]
        assert "memory-backend=hyper.ram" in found


def test_only_a_template_in_the_making_can_write_its_ram_file() -> None:
    assert any("share=on" in argument for argument in arguments(TEMPLATE))
    assert any(argument.endswith("share=off,readonly=on,rom=off") for argument in arguments(CLONE))


def test_a_template_and_its_clone_have_the_same_devices() -> None:
    devices = [ET.fromstring(render_domain(one, SETTINGS)).find("devices") for one in (TEMPLATE, CLONE)]
    texts = {ET.tostring(one) for one in devices if one is not None}
    assert len(texts) == 1
    assert b"freePageReporting" not in texts.pop()


def test_no_two_devices_have_one_address() -> None:
    addresses = [
        tuple(sorted(address.attrib.items()))
        for address in ET.fromstring(render_domain(FULL, SETTINGS)).iter("address")
        if address.get("type") == "pci"
    ]
    without_functions = [dict(one) | {"multifunction": ""} for one in addresses]
    assert len({tuple(sorted(one.items())) for one in without_functions}) == len(addresses)


def test_a_device_of_its_own_never_moves_another_of_the_same_kind() -> None:
    """A saved guest finds its disks where they were, whatever else has changed."""
    first_disk = ET.fromstring(render_domain(FULL, SETTINGS)).find("devices/disk/address")
    more = dataclasses.replace(FULL, nics=(*FULL.nics, Nic("hyp9999", "52:54:00:12:34:57")))
    assert first_disk is not None
    again = ET.fromstring(render_domain(more, SETTINGS)).find("devices/disk/address")
    assert again is not None
    assert again.attrib == first_disk.attrib


def test_qemu_never_runs_as_root_whatever_its_configuration_says() -> None:
    domain = ET.fromstring(render_domain(SMALL, SETTINGS))
    assert domain.findtext("seclabel/label") == "libvirt-qemu:libvirt-qemu"
    labels = domain.findall("seclabel")
    assert [label.get("relabel") for label in labels] == ["no"]


def test_two_vms_run_under_two_users() -> None:
    settings = dataclasses.replace(SETTINGS, own_uids=True, qemu_group="kvm")
    other = dataclasses.replace(SMALL, sandbox_id=SandboxId("b" * 64))
    labels = {
        ET.fromstring(render_domain(one, settings)).findtext("seclabel/label") for one in (SMALL, other)
    }
    assert labels == {f"+{own_uid(one.sandbox_id)}:kvm" for one in (SMALL, other)}
    assert len(labels) == 2


@given(sandbox_id=st.text("0123456789abcdef", min_size=64, max_size=64).map(SandboxId))
def test_the_uid_of_a_sandbox_is_nobody_elses(sandbox_id: SandboxId) -> None:
    assert own_uid(sandbox_id) == own_uid(sandbox_id)
    assert 0x6FFF_FFFF < own_uid(sandbox_id) < 1 << 31


def test_the_driver_is_configuration() -> None:
    settings = dataclasses.replace(SETTINGS, tcg_driver="test")
    assert ET.fromstring(render_domain(SMALL, settings)).get("type") == "test"


def test_name_and_uuid_follow_from_the_sandbox() -> None:
    assert find_sandbox_id(domain_name(SMALL.sandbox_id)) == SMALL.sandbox_id
    assert find_sandbox_id("debian12") is None
    assert domain_uuid(SMALL.sandbox_id) == domain_uuid(SMALL.sandbox_id)
    assert domain_uuid(SandboxId("b" * 64)) != domain_uuid(SMALL.sandbox_id)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vcpus": 0}, "0 CPUs"),
        ({"memory_mib": 0}, "0 MiB"),
        ({"cmdline": "quiet\nevil"}, "evil"),
        ({"kernel": Path("vmlinux")}, "vmlinux"),
        ({"console_log": Path("/tmp/a\x07b")}, "x07"),
        ({"channels": (Channel("hyper.control", Path("/" + "s" * 107)),)}, "sss"),
        ({"channels": (Channel("a b", Path("/s")),)}, "a b"),
        ({"disks": (Disk("s" * 21, Path("/d"), DiskFormat.RAW, readonly=True),)}, "sss"),
        ({"disks": (Disk("", Path("/d"), DiskFormat.RAW, readonly=True),)}, "''"),
        (
            {"disks": tuple(Disk(f"d{n}", Path("/d"), DiskFormat.RAW, readonly=True) for n in range(30))},
            "0123",
        ),
        ({"nics": (Nic("tap0", "not a mac"),)}, "not a mac"),
        ({"nics": (Nic("t" * 16, "52:54:00:12:34:56"),)}, "ttt"),
        ({"restore_from": Path("state")}, "state"),
        ({"memory_file": MemoryFile(Path("ram"), shared=True)}, "ram"),
        ({"memory_file": MemoryFile(Path("/reported"), shared=False)}, "reported"),
    ],
)
def test_the_impossible_is_refused_and_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidError) as caught:
        render_domain(dataclasses.replace(SMALL, **change), SETTINGS)  # type: ignore[arg-type]
    assert named in caught.value.subject


@given(cmdline=st.text(max_size=200), name=st.text(string.printable, min_size=1, max_size=40))
def test_text_from_outside_is_text_or_refused_but_never_markup(cmdline: str, name: str) -> None:
    definition = dataclasses.replace(SMALL, cmdline=cmdline, kernel=Path("/k") / name.strip("/"))
    try:
        rendered = render_domain(definition, SETTINGS)
    except InvalidError:
        return
    domain = ET.fromstring(rendered)
    assert (domain.findtext("os/cmdline") or "") == cmdline
    assert domain.findtext("os/kernel") == str(definition.kernel)
    sandbox = domain.find(f"metadata/{{{METADATA_URI}}}sandbox")
    assert sandbox is not None
    assert sandbox.get("id") == SMALL.sandbox_id


def test_a_nic_for_a_vm_that_runs_leaves_its_place_to_libvirt() -> None:
    hot = ET.fromstring(render_hot_nic(Nic("hyt0g", "02:00:00:00:00:01")))
    assert hot.find("address") is None
    target = hot.find("target")
    assert target is not None
    assert target.attrib == {"dev": "hyt0g", "managed": "no"}
    with pytest.raises(InvalidError):
        render_hot_nic(Nic("tap'/>", "02:00:00:00:00:01"))
