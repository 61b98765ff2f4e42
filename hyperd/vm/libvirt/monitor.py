# SPDX-License-Identifier: Apache-2.0
"""QEMU's own monitor (QMP) where libvirt has no word for what we want: a VM's state to a file and back,
and another file behind a disk.

Made on a bridge's thread, each call short; libvirtError passes. https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
"""

import contextlib
import enum
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu

from hyperd.model.vm import Disk
from hyperd.vm.libvirt.errors import MonitorError

_Json = dict[str, object]

_LIBVIRT_NODE = re.compile(r"libvirt-(\d+)-(?:format|storage)")


class Phase(enum.Enum):
    NONE = enum.auto()
    ACTIVE = enum.auto()
    COMPLETED = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True)
class Migration:
    """The last one of this QEMU, in either direction."""

    phase: Phase
    written_bytes: int = 0
    words: str = ""


_PHASES = {
    "none": Phase.NONE,
    "completed": Phase.COMPLETED,
    "failed": Phase.FAILED,
    "cancelled": Phase.FAILED,
}


def set_capabilities(domain: libvirt.virDomain, *, ram_elsewhere: bool) -> None:
    """All that we ever use are set: a VM that was restored in one way may be saved in the other."""
    wanted = {"x-ignore-shared": ram_elsewhere, "mapped-ram": not ram_elsewhere}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    _command(domain, "migrate-set-capabilities", {"capabilities": capabilities})


def silence_announcements(domain: libvirt.virDomain) -> None:
    """QEMU would announce the NIC's MAC address after a restore, and a clone still has the template's."""
    _command(domain, "migrate-set-parameters", {"announce-rounds": 0})


def migrate_incoming(domain: libvirt.virDomain, state: Path) -> None:
    """Returns at once. On failure QEMU stays and has the reason."""
    _command(domain, "migrate-incoming", {"uri": f"file:{state}", "exit-on-error": False})


def migrate(domain: libvirt.virDomain, state: Path, *, bytes_per_s: int) -> None:
    """Returns at once. QEMU's own limit, meant for networks, is 128 MiB/s.

    In the mode for a host that is rebooted: in the normal one QEMU refuses a VM with a VMDK (an image's disk), whose
    other end it takes for a host that writes to it at the same time (qapi/migration.json, MigMode).
    """
    _command(domain, "migrate-set-parameters", {"max-bandwidth": bytes_per_s, "mode": "cpr-reboot"})
    _command(domain, "migrate", {"uri": f"file:{state}"})


def cancel_migration(domain: libvirt.virDomain) -> None:
    """Returns at once; nothing under way is no error."""
    _command(domain, "migrate_cancel", {})


def query_migration(domain: libvirt.virDomain) -> Migration:
    answer = _command(domain, "query-migrate", {})
    ram = answer.get("ram")
    written = ram.get("transferred", 0) if isinstance(ram, dict) else 0
    phase = _PHASES.get(str(answer.get("status", "none")), Phase.ACTIVE)
    return Migration(phase, int(written), str(answer.get("error-desc", "")))


def is_incoming(domain: libvirt.virDomain) -> bool:
    return _command(domain, "query-status", {}).get("status") == "inmigrate"


def has_shared_ram(domain: libvirt.virDomain, backend: str) -> bool:
    """Whether the RAM is a file that this QEMU writes into: then it need not be saved."""
    answer = _ask(domain, "query-memdev", {})
    devices = answer if isinstance(answer, list) else []
    return any(device.get("id") == backend and device.get("share") for device in devices)


def replace_disk(domain: libvirt.virDomain, alias: str, disk: Disk) -> None:
    """Another block node behind the device: no reset, no word to the guest. The one that was there stays open."""
    node = f"hyper-{disk.serial}"
    options: _Json = {
        "driver": disk.format.value,
        "node-name": node,
        "read-only": disk.readonly,
        "discard": "ignore" if disk.readonly else "unmap",
        "file": {"driver": "file", "filename": str(disk.path), "read-only": disk.readonly},
    }
    _command(domain, "blockdev-add", options)
    try:
        device: _Json = {"path": f"/machine/peripheral/{alias}", "property": "drive", "value": node}
        _command(domain, "qom-set", device)
    except MonitorError:
        _command(domain, "blockdev-del", {"node-name": node})
        raise


@dataclass(frozen=True, slots=True)
class Strays:
    """What QEMU has of disks that libvirt knows nothing of: hyperd was killed before it had written them down."""

    devices: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.devices or self.nodes)


def find_strays(domain: libvirt.virDomain, aliases: Collection[str], indexes: Collection[str]) -> Strays:
    """``aliases`` of all devices and ``indexes`` of all sources, as libvirt's XML has them."""
    peripherals = _ask(domain, "qom-list", {"path": "/machine/peripheral"})
    devices = {
        str(found["name"])
        for found in (peripherals if isinstance(peripherals, list) else [])
        if str(found["type"]).startswith("child<virtio-blk-pci") and found["name"] not in aliases
    }
    known = _ask(domain, "query-named-block-nodes", {"flat": True})
    names = [str(found["node-name"]) for found in (known if isinstance(known, list) else [])]
    nodes = {
        name
        for name in names
        if (ours := _LIBVIRT_NODE.fullmatch(name)) is not None and ours[1] not in indexes
    }
    return Strays(frozenset(devices), frozenset(nodes))


def ask_for_strays(domain: libvirt.virDomain, strays: Strays) -> None:
    """The guest lets go of devices in its own time; being asked twice is no error."""
    for device in strays.devices:
        with contextlib.suppress(MonitorError):  # it was asked already, or has gone
            _command(domain, "device_del", {"id": device})


def close_strays(domain: libvirt.virDomain, strays: Strays) -> None:
    """Formats before the files beneath them. Raises MonitorError for what a device still has."""
    for node in sorted(strays.nodes):  # libvirt-N-format, libvirt-N-storage
        _command(domain, "blockdev-del", {"node-name": node})


def _command(domain: libvirt.virDomain, name: str, arguments: _Json) -> _Json:
    answer = _ask(domain, name, arguments)
    return answer if isinstance(answer, dict) else {}


def _ask(domain: libvirt.virDomain, name: str, arguments: _Json) -> object:
    request = json.dumps({"execute": name, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, request, 0))
    if "error" in answer:
        raise MonitorError(str(answer["error"].get("desc", answer["error"])))
    return answer.get("return")
