# SPDX-License-Identifier: Apache-2.0
"""The VMs that this service makes: of sandboxes, and of the templates that those start from. Pure."""

from dataclasses import dataclass, replace
from pathlib import Path

from hyperd.model.container import ContainerRecord, Sizing
from hyperd.model.image import RootDisk
from hyperd.model.network import Attachment
from hyperd.model.snapshot import Snapshot
from hyperd.model.vm import (
    Accelerator,
    Channel,
    Disk,
    DiskFormat,
    MemoryFile,
    Nic,
    SandboxId,
    VmDefinition,
)

CONTROL_PORT = "hyper.control"
STREAM_PORT = "hyper.stream"
RAM = "ram"  # of a template's files
STATE = "state"
ROOT_SERIAL = "image"
WRITABLE_SERIAL = "writable"


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """What every VM has alike."""

    kernel: Path
    initramfs: Path
    cmdline: str

    def cmdline_under(self, accelerator: Accelerator) -> str:
        # Emulated on a busy host, a guest calibrates its TSC wrongly now and then (seen: 35 times too fast): it keeps
        # time by the ACPI PM timer then.
        return f"{self.cmdline} tsc=unstable" if accelerator is Accelerator.TCG else self.cmdline


@dataclass(frozen=True, slots=True)
class SandboxPaths:
    """Where one sandbox's files are."""

    run_dir: Path  # sockets; gone after a reboot of the host
    state_dir: Path

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"

    @property
    def stream_socket(self) -> Path:
        return self.run_dir / "stream.sock"

    @property
    def console_log(self) -> Path:
        return self.state_dir / "console.log"


@dataclass(frozen=True, slots=True)
class Shape:
    """What VMs have alike that can start from one template."""

    sizing: Sizing
    has_nic: bool
    accelerator: Accelerator

    def __str__(self) -> str:
        cpus = "1 vCPU" if self.sizing.vcpus == 1 else f"{self.sizing.vcpus} vCPUs"
        return f"{cpus}, {self.sizing.memory_mib} MiB" + ("" if self.has_nic else ", no network")


def shape_of(record: ContainerRecord, accelerator: Accelerator) -> Shape:
    return Shape(record.sizing, record.spec.network != "none", accelerator)


def vm_definition(
    record: ContainerRecord,
    root: RootDisk,
    writable: Path,
    attachments: tuple[Attachment, ...],
    paths: SandboxPaths,
    guest: GuestSettings,
    accelerator: Accelerator,
) -> VmDefinition:
    """With its first NIC: the others are plugged in when it runs."""
    shape = shape_of(record, accelerator)
    definition = _definition(record.sandbox_id, shape, paths, guest)
    return replace(
        definition,
        disks=_disks(root.path, DiskFormat.VMDK, writable),
        nics=tuple(Nic(attachment.tap, attachment.mac) for attachment in attachments[:1]),
    )


def template_definition(
    template_id: SandboxId,
    shape: Shape,
    nic: Nic | None,
    paths: SandboxPaths,
    guest: GuestSettings,
    memory_file: Path | None,
    writable: Path,
) -> VmDefinition:
    """With a placeholder for the image's disk. ``memory_file``: holds its RAM, for what starts from it to share."""
    return replace(
        _definition(template_id, shape, paths, guest),
        # What is behind a device may change; what depends on it the agent looks at again (agent/src/kept.rs).
        disks=_disks(placeholder(paths), DiskFormat.RAW, writable),
        nics=(nic,) if nic else (),
        memory_file=MemoryFile(memory_file, shared=True) if memory_file else None,
        free_page_reporting=memory_file is None,
    )


def bare_definition(
    record: ContainerRecord,
    writable: Path,
    paths: SandboxPaths,
    guest: GuestSettings,
    accelerator: Accelerator,
) -> VmDefinition:
    """Of a VM without an image and without a network: a placeholder stands for the disk."""
    definition = _definition(record.sandbox_id, shape_of(record, accelerator), paths, guest)
    return replace(definition, disks=_disks(placeholder(paths), DiskFormat.RAW, writable))


def template_shape_definition(shape: Shape, guest: GuestSettings, *, share_memory: bool) -> VmDefinition:
    """Of no VM: what the compatibility of such a template is told from."""
    nowhere = SandboxPaths(Path("/"), Path("/"))
    nic = Nic("", "") if shape.has_nic else None
    memory_file = Path("/ram") if share_memory else None
    return template_definition(SandboxId(""), shape, nic, nowhere, guest, memory_file, Path("/writable"))


def restored(definition: VmDefinition, state: Path, ram: Path | None) -> VmDefinition:
    """The same VM, going on where a template was saved: what it did not have there is plugged in afterwards."""
    return replace(
        definition,
        restore_from=state,
        memory_file=MemoryFile(ram, shared=False) if ram else None,
        free_page_reporting=ram is None,
    )


def from_template(definition: VmDefinition, snapshot: Snapshot) -> VmDefinition:
    """As ``restored``, with what that template has."""
    has_ram = any(file.name == RAM for file in snapshot.manifest.files)
    return restored(definition, snapshot.path(STATE), snapshot.path(RAM) if has_ram else None)


def placeholder(paths: SandboxPaths) -> Path:
    """Of the image's disk."""
    return paths.state_dir / f"{ROOT_SERIAL}.img"


def _disks(root: Path, root_format: DiskFormat, writable: Path) -> tuple[Disk, ...]:
    return (
        Disk(ROOT_SERIAL, root, root_format, readonly=True),
        Disk(WRITABLE_SERIAL, writable, DiskFormat.RAW, readonly=False),
    )


def _definition(
    sandbox_id: SandboxId, shape: Shape, paths: SandboxPaths, guest: GuestSettings
) -> VmDefinition:
    return VmDefinition(
        sandbox_id=sandbox_id,
        vcpus=shape.sizing.vcpus,
        memory_mib=shape.sizing.memory_mib,
        accelerator=shape.accelerator,
        kernel=guest.kernel,
        initramfs=guest.initramfs,
        cmdline=guest.cmdline_under(shape.accelerator),
        console_log=paths.console_log,
        channels=(Channel(CONTROL_PORT, paths.control_socket), Channel(STREAM_PORT, paths.stream_socket)),
    )
