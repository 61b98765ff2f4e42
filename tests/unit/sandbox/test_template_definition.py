# SPDX-License-Identifier: Apache-2.0
"""The VMs of sandboxes and templates: what is alike in them, and what is a template's key."""

import dataclasses
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperd.errors import NotFoundError
from hyperd.host.workers import Workers
from hyperd.model.container import ContainerRecord, ContainerSpec, Sizing
from hyperd.model.image import ImageId, RootDisk
from hyperd.model.network import Attachment
from hyperd.model.vm import HOT_PLUG_DEVICES, Accelerator, Nic, SandboxId, VmDefinition
from hyperd.sandbox import Facts, GuestSettings, SandboxPaths, Shape, definition
from hyperd.sandbox.compatibility import HostFacts, compatibility_of
from hyperd.sandbox.facts import describe_cpu

ID = SandboxId("0123456789ab" + "c" * 52)
GUEST = GuestSettings(Path("/k"), Path("/i"), "quiet")
PATHS = SandboxPaths(Path("/run/x"), Path("/state/x"))
WIRE = Attachment(ID, "bridge", "tap0", "aa:bb", "10.0.0.2", 24, "10.0.0.1", 1400, (), (), ())
FACTS = HostFacts("10.0.2", "pc-q35-10.0", "AuthenticAMD 25 1 0123", "aa" * 32, "bb" * 32)
SHAPE = Shape(Sizing(2, 512), has_nic=True, accelerator=Accelerator.TCG)


def record(**fields: object) -> ContainerRecord:
    spec = ContainerSpec("img", **fields)  # type: ignore[arg-type]
    return ContainerRecord(ID, "web", spec, ImageId("sha256:0"), ("a",), Sizing(2, 512), datetime.now(UTC))


def of_sandbox(*attachments: Attachment, layers: int = 3, **fields: object) -> VmDefinition:
    root = RootDisk(Path("/images/disk.vmdk"), layers)
    return definition.vm_definition(
        record(**fields), root, Path("/disk"), attachments, PATHS, GUEST, Accelerator.TCG
    )


def test_a_vm_has_the_image_s_disk_first_and_one_nic_only_with_a_lease() -> None:
    full = of_sandbox(WIRE, replace(WIRE, network="back", tap="tap1", slot=1))
    assert [disk.serial for disk in full.disks] == ["image", "writable"]
    assert [disk.readonly for disk in full.disks] == [True, False]
    assert full.nics == (Nic("tap0", "aa:bb"),)
    assert of_sandbox(network="none").nics == ()
    assert len(of_sandbox(layers=0).disks) == 2  # one layout for all


def test_what_was_saved_with_other_ports_for_hot_plug_is_of_another_layout() -> None:
    assert compatibility_of(of_sandbox(), FACTS).layout.endswith(f",spare:{HOT_PLUG_DEVICES}")


@pytest.mark.parametrize("has_nic", [True, False])
@pytest.mark.parametrize("share_memory", [True, False])
def test_a_clone_has_the_layout_of_its_template(*, has_nic: bool, share_memory: bool) -> None:
    shape = dataclasses.replace(SHAPE, has_nic=has_nic)
    ram = Path("/ram") if share_memory else None
    template = definition.template_definition(
        SandboxId("t" * 64),
        shape,
        Nic("tap9", "cc:dd") if has_nic else None,
        PATHS,
        GUEST,
        ram,
        Path("/disk"),
    )
    clone = definition.restored(of_sandbox(*([WIRE] if has_nic else [])), Path("/state"), ram)
    asked = definition.template_shape_definition(shape, GUEST, share_memory=share_memory)
    assert (
        compatibility_of(template, FACTS) == compatibility_of(clone, FACTS) == compatibility_of(asked, FACTS)
    )
    assert clone.restore_from == Path("/state")
    if share_memory:
        assert template.memory_file is not None
        assert template.memory_file.shared
        assert clone.memory_file is not None
        assert not clone.memory_file.shared
    else:
        assert template.memory_file is clone.memory_file is None


def test_every_part_of_a_shape_makes_another_key() -> None:
    shapes = [
        SHAPE,
        dataclasses.replace(SHAPE, has_nic=False),
        dataclasses.replace(SHAPE, sizing=Sizing(1, 512)),
        dataclasses.replace(SHAPE, sizing=Sizing(2, 256)),
        dataclasses.replace(SHAPE, accelerator=Accelerator.KVM),
    ]
    keys = {
        compatibility_of(definition.template_shape_definition(shape, GUEST, share_memory=shared), FACTS)
        for shape in shapes
        for shared in (True, False)
    }
    assert len(keys) == 2 * len(shapes)


def test_a_shape_reads_as_a_size() -> None:
    assert str(SHAPE) == "2 vCPUs, 512 MiB"
    assert str(Shape(Sizing(1, 256), has_nic=False, accelerator=Accelerator.KVM)) == (
        "1 vCPU, 256 MiB, no network"
    )


async def test_the_host_s_facts_follow_its_files(tmp_path: Path) -> None:
    files = Workers("files", 1)
    kernel, initramfs, emulator = tmp_path / "k", tmp_path / "i", tmp_path / "qemu"
    versions = iter(("10", "10", "10", "11"))

    async def ask() -> tuple[str, str]:
        return next(versions), "q35"

    facts = Facts(kernel, initramfs, emulator=emulator, ask=ask, files=files)
    try:
        with pytest.raises(NotFoundError):
            await facts.get()
        kernel.write_text("kernel")
        initramfs.write_text("agent")
        first = await facts.get()
        assert first.kernel_sha256 != first.initramfs_sha256
        assert await facts.get() is first
        initramfs.write_text("another agent")
        second = await facts.get()
        assert second.initramfs_sha256 != first.initramfs_sha256
        assert second.kernel_sha256 == first.kernel_sha256
        assert second.qemu_version == "10"
        emulator.write_text("upgraded under a running hyperd")
        assert (await facts.get()).qemu_version == "11"
    finally:
        files.close()


def test_a_cpu_is_its_model_and_its_features_whatever_their_order() -> None:
    text = "processor\t: 0\nvendor_id\t: X\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: a b c\n"
    described = describe_cpu(text + "\n" + text.replace("a b c", "z"))
    assert described.startswith("X 25 1 ")
    assert describe_cpu(text.replace("a b c", "c a b")) == described
    assert describe_cpu(text.replace("a b c", "a b")) != described
    assert describe_cpu("") != ""
