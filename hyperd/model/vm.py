# SPDX-License-Identifier: Apache-2.0
"""What a virtual machine is made of, said without any hypervisor's words."""

import enum
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

SandboxId = NewType("SandboxId", str)  # 64 hexadecimal digits


# Nobody's, says https://systemd.io/UIDS-GIDS; from 2^31 on some programs take a uid for negative.
OWN_UIDS = range(0x7000_0000, 0x8000_0000)


def own_uid(sandbox_id: SandboxId) -> int:
    """Of the QEMU of this sandbox, always the same. Among 1,000 sandboxes two share one with a chance of 1 in 500."""
    digest = hashlib.sha256(sandbox_id.encode()).digest()
    return OWN_UIDS[int.from_bytes(digest[:4], "big") % len(OWN_UIDS)]


HOT_PLUG_DEVICES = 8  # that every VM has room for while it runs: the functions of one slot, a root port each


class Accelerator(enum.StrEnum):
    KVM = "kvm"
    TCG = "tcg"


class DiskFormat(enum.StrEnum):
    RAW = "raw"
    VMDK = "vmdk"


@dataclass(frozen=True, slots=True)
class NbdExport:
    """A disk that a server has: on the network, or at a socket of this host."""

    host: str
    port: int
    name: str
    socket: Path | None = None  # instead of host and port

    def __str__(self) -> str:
        if self.socket is not None:
            return f"nbd+unix:///{self.name}?socket={self.socket}"
        return f"nbd://{self.host}:{self.port}/{self.name}"


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtio-blk disk; the guest finds it by ``serial`` (at most 20 ASCII characters)."""

    serial: str
    path: Path
    format: DiskFormat
    readonly: bool
    export: NbdExport | None = None  # instead of what is at ``path``
    filesystem: str = ""  # of a volume's: which one the guest is to find there


@dataclass(frozen=True, slots=True)
class SharePort:
    """A virtio-fs device: the guest finds it by ``tag``; at ``socket`` somebody serves it (vhost-user)."""

    tag: str
    socket: Path


@dataclass(frozen=True, slots=True)
class Nic:
    """A virtio-net device on a tap that exists already."""

    tap: str
    mac: str


@dataclass(frozen=True, slots=True)
class Channel:
    """A virtio-serial port: ``name`` in the guest, a UNIX socket that QEMU listens on at ``path``."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """The guest's RAM as a file of exactly its size.

    ``shared``: the guest writes into it (a template in the making). Otherwise it is mapped private and opened
    read-only: the guest's writes are its own (copy-on-write), untouched pages are shared by all who map it. It must not
    change while anyone does; unlinking it is harmless. Of a VM with ``shared_memory`` it is copied instead.
    """

    path: Path
    shared: bool


@dataclass(frozen=True, slots=True)
class VmDefinition:
    sandbox_id: SandboxId
    vcpus: int
    memory_mib: int
    accelerator: Accelerator
    kernel: Path
    initramfs: Path
    cmdline: str
    console_log: Path  # the guest's serial console is appended here
    channels: tuple[Channel, ...] = ()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    shares: tuple[SharePort, ...] = ()
    memory_file: MemoryFile | None = None
    # Its RAM is memory that who serves a share maps too, of its own and without a name (memfd).
    shared_memory: bool = False
    # A state that ``Hypervisor.save`` wrote of a VM with the same layout: devices in the same order, sizes, CPU,
    # machine, free_page_reporting. File names, taps, sockets, MACs may differ.
    restore_from: Path | None = None
    # Memory that the guest frees goes back to the host. Not possible on a private mapping of a file.
    free_page_reporting: bool = True


@dataclass(frozen=True, slots=True)
class VmStatus:
    """A virtual machine that exists."""

    sandbox_id: SandboxId
    pid: int  # of the hypervisor process on the host
    paused: bool = False


class VmGoneCause(enum.StrEnum):
    SHUTDOWN = "shutdown"  # the guest powered itself off
    CRASHED = "crashed"  # the guest panicked
    DESTROYED = "destroyed"  # by us
    LOST = "lost"  # the hypervisor process went away without being asked


@dataclass(frozen=True, slots=True)
class VmGone:
    """A virtual machine has ceased to exist. A hint: late and duplicate ones occur."""

    sandbox_id: SandboxId
    cause: VmGoneCause
    detail: str = field(default="")
