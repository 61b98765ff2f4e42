# SPDX-License-Identifier: Apache-2.0
"""What can be written into a domain at all. Checked here, so that the error names the value and not a line of XML."""

import re
from pathlib import Path

from hyperd.errors import InvalidError
from hyperd.model.vm import Channel, Disk, MemoryFile, Nic, SharePort, VmDefinition

MAX_DEVICES = 20  # disks, NICs and shares: each has a slot of the one PCI bus

_MAX_SOCKET_PATH_BYTES = 107
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # XML 1.0 cannot carry most of these
_CHANNEL_NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")
_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,20}")  # VIRTIO_BLK_ID_BYTES
_TAG = re.compile(r"[A-Za-z0-9._-]{1,36}")  # virtio_fs_config
_TAP_NAME = re.compile(r"[A-Za-z0-9._-]{1,15}")  # IFNAMSIZ
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def require_possible(definition: VmDefinition) -> None:
    """Raises InvalidError that names the first value with which no VM can be made."""
    if definition.vcpus < 1 or definition.memory_mib < 1:
        raise InvalidError(
            "a VM needs a CPU and memory", subject=f"{definition.vcpus} CPUs, {definition.memory_mib} MiB"
        )
    if len(definition.disks) + len(definition.nics) + len(definition.shares) > MAX_DEVICES:
        raise InvalidError(f"more than {MAX_DEVICES} disks, NICs and shares", subject=definition.sandbox_id)
    for text in (definition.sandbox_id, definition.cmdline):
        if _UNPRINTABLE.search(text):
            raise InvalidError("has control characters in it", subject=repr(text))
    for path in (definition.kernel, definition.initramfs, definition.console_log):
        _require_path(path)
    if definition.restore_from is not None:
        _require_path(definition.restore_from)
    if definition.memory_file is not None:
        _require_memory_file(definition, definition.memory_file)
    for channel in definition.channels:
        _require_channel(channel)
    for disk in definition.disks:
        require_disk(disk)
    for nic in definition.nics:
        require_nic(nic)
    for share in definition.shares:
        require_share(share)
    if definition.shares and not definition.shared_memory:
        raise InvalidError("shares need memory that is shared", subject=definition.sandbox_id)


def _require_path(path: Path) -> None:
    if not path.is_absolute() or _UNPRINTABLE.search(str(path)):
        raise InvalidError("not an absolute, printable path", subject=repr(str(path)))


def _require_memory_file(definition: VmDefinition, file: MemoryFile) -> None:
    _require_path(file.path)
    if not file.shared and definition.free_page_reporting:
        # QEMU would refuse each page that the guest reports, with a line in its log.
        raise InvalidError("free pages of a privately mapped file cannot be reported", subject=str(file.path))


def _require_channel(channel: Channel) -> None:
    if not _CHANNEL_NAME.fullmatch(channel.name):
        raise InvalidError("a channel's name is letters, digits, dots and dashes", subject=repr(channel.name))
    _require_socket(channel.path)


def _require_socket(path: Path) -> None:
    _require_path(path)
    if len(str(path).encode()) > _MAX_SOCKET_PATH_BYTES:
        raise InvalidError(f"a socket's path has at most {_MAX_SOCKET_PATH_BYTES} bytes", subject=str(path))


def require_share(share: SharePort) -> None:
    """Raises InvalidError."""
    _require_socket(share.socket)
    if not _TAG.fullmatch(share.tag):
        raise InvalidError(
            "a share's tag is 1 to 36 letters, digits, dots and dashes", subject=repr(share.tag)
        )


def require_disk(disk: Disk) -> None:
    """Raises InvalidError."""
    if disk.export is None:
        _require_path(disk.path)
    elif _UNPRINTABLE.search(str(disk.export)):
        raise InvalidError("has control characters in it", subject=repr(str(disk.export)))
    if not _SERIAL.fullmatch(disk.serial):
        raise InvalidError(
            "a disk's serial is 1 to 20 letters, digits, dots and dashes", subject=repr(disk.serial)
        )


def require_nic(nic: Nic) -> None:
    """Raises InvalidError."""
    if not _MAC.fullmatch(nic.mac):
        raise InvalidError("not a MAC address", subject=repr(nic.mac))
    if not _TAP_NAME.fullmatch(nic.tap):
        raise InvalidError("not a network interface's name", subject=repr(nic.tap))
