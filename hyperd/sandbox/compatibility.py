# SPDX-License-Identifier: Apache-2.0
"""Where a saved VM can go on: on a host whose VMs are made of the same things. Pure but for the facts it is given."""

import dataclasses
from dataclasses import dataclass

from hyperd.errors import UnsupportedError
from hyperd.model.snapshot import Compatibility, Snapshot
from hyperd.model.vm import HOT_PLUG_DEVICES, Accelerator, VmDefinition


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Of this host and this installation."""

    qemu_version: str
    machine: str
    host_cpu: str  # model, family and flags in short: matters where the guest sees the host's CPU
    kernel_sha256: str
    initramfs_sha256: str


def compatibility_of(definition: VmDefinition, facts: HostFacts) -> Compatibility:
    """What a VM of this definition, saved on this host, asks of another."""
    is_kvm = definition.accelerator is Accelerator.KVM
    return Compatibility(
        qemu_version=facts.qemu_version,
        machine=facts.machine,
        cpu_model=f"host {facts.host_cpu}" if is_kvm else "max",
        accelerator=definition.accelerator.value,
        kernel_sha256=facts.kernel_sha256,
        initramfs_sha256=facts.initramfs_sha256,
        cmdline=definition.cmdline,
        vcpus=definition.vcpus,
        memory_mib=definition.memory_mib,
        layout=layout_of(definition),
    )


def layout_of(definition: VmDefinition) -> str:
    """The devices as the guest finds them: what is behind them may differ.

    Not compared: the bytes on the image's disk. The image's id fixes its layers as they were packed, not what
    mkfs.erofs made of them, so a snapshot imported where another version of it converted them would find other blocks
    than those in its page cache. docs/snapshots.md says so.
    """
    disks = [f"disk:{disk.serial}:{'ro' if disk.readonly else 'rw'}" for disk in definition.disks]
    nics = ["nic" for _ in definition.nics]
    channels = [f"port:{channel.name}" for channel in definition.channels]
    reporting = ["free-page-reporting"] if definition.free_page_reporting else []
    return ",".join((*disks, *nics, *channels, *reporting, f"spare:{HOT_PLUG_DEVICES}"))


def require_compatible(snapshot: Snapshot, here: Compatibility) -> None:
    """Raises UnsupportedError that names each field that differs, with both values."""
    there = snapshot.manifest.compatibility
    differing = [
        f"{field.name}: saved with {getattr(there, field.name)!r}, here is {getattr(here, field.name)!r}"
        for field in dataclasses.fields(Compatibility)
        if getattr(there, field.name) != getattr(here, field.name)
    ]
    if differing:
        raise UnsupportedError(
            "cannot be restored here",
            subject=f"snapshot {snapshot.manifest.name or snapshot.manifest.snapshot_id[:12]}",
            evidence="\n".join(differing),
            hint="restore it on a host of the same kind, or make a new one",
        )
