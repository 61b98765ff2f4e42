# SPDX-License-Identifier: Apache-2.0
"""Calls on libvirt's domains, made on a bridge's thread. They block and let libvirtError pass."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt

from hyperd.errors import ExistsError, NotFoundError
from hyperd.model.vm import Disk, Nic, SandboxId, SharePort
from hyperd.vm.libvirt import monitor
from hyperd.vm.libvirt.errors import is_gone
from hyperd.vm.libvirt.xml import (
    disk_names,
    domain_name,
    domain_uuid,
    find_sandbox_id,
    render_hot_disk,
    render_hot_nic,
    render_hot_share,
)


@dataclass(frozen=True, slots=True)
class OurDomain:
    sandbox_id: SandboxId
    paused: bool
    console: Path | None = None


def create(
    connection: libvirt.virConnect, sandbox_id: SandboxId, described: str, *, paused: bool = False
) -> bool:
    """False when libvirt still removes an earlier one of that name: to be tried again soon.

    Raises ExistsError when there is one that lives.
    """
    try:
        connection.createXML(described, libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
    except libvirt.libvirtError as error:
        if "already being removed" in (error.get_error_message() or ""):
            return False
        if _exists(connection, sandbox_id):
            raise ExistsError("the VM exists", subject=domain_name(sandbox_id)) from error
        raise
    return True


def destroy(connection: libvirt.virConnect, sandbox_id: SandboxId) -> None:
    """Idempotent; returns when libvirt has tidied up."""
    try:
        look_up(connection, sandbox_id).destroy()
    except libvirt.libvirtError as error:
        if not is_gone(error):
            raise


def attach_disk(connection: libvirt.virConnect, sandbox_id: SandboxId, disk: Disk) -> None:
    domain = look_up(connection, sandbox_id)
    devices = _devices(domain).findall("disk/target")
    taken = {device.get("dev") for device in devices}
    target = next(name for name in disk_names() if name not in taken)
    domain.attachDeviceFlags(render_hot_disk(disk, target), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def attach_share(connection: libvirt.virConnect, sandbox_id: SandboxId, share: SharePort) -> None:
    domain = look_up(connection, sandbox_id)
    domain.attachDeviceFlags(render_hot_share(share), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def resize_disk(connection: libvirt.virConnect, sandbox_id: SandboxId, path: Path, size_bytes: int) -> None:
    """Raises NotFoundError for a disk that the VM has not."""
    domain = look_up(connection, sandbox_id)
    for disk in _devices(domain).findall("disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and source.get("file") == str(path):
            domain.blockResize(target.get("dev", ""), size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            return
    raise NotFoundError("has no such disk", subject=domain_name(sandbox_id), evidence=str(path))


def attach_nic(connection: libvirt.virConnect, sandbox_id: SandboxId, nic: Nic) -> None:
    domain = look_up(connection, sandbox_id)
    if _find_nic(domain, nic.tap) is None:
        domain.attachDeviceFlags(render_hot_nic(nic), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def ask_for_nic(connection: libvirt.virConnect, sandbox_id: SandboxId, tap: str) -> bool:
    """Whether the guest was asked to let go of it: it is there, and can be unplugged. Returns at once."""
    domain = look_up(connection, sandbox_id)
    return _ask_for(domain, _find_nic(domain, tap))


def ask_for_disk(connection: libvirt.virConnect, sandbox_id: SandboxId, serial: str) -> bool:
    """As ``ask_for_nic``."""
    domain = look_up(connection, sandbox_id)
    return _ask_for(domain, _find_disk(domain, serial))


def has_disk(connection: libvirt.virConnect, sandbox_id: SandboxId, serial: str) -> bool:
    return _find_disk(look_up(connection, sandbox_id), serial) is not None


def list_plugged(connection: libvirt.virConnect, sandbox_id: SandboxId) -> list[str]:
    """By what each is told from others: serial, tag, tap."""
    devices = _devices(look_up(connection, sandbox_id))
    found = []
    for kind, place in (("disk", "serial"), ("filesystem", "target@dir"), ("interface", "target@dev")):
        path, _, attribute = place.partition("@")
        for device in devices.findall(kind):
            told = device.find(path)
            if _is_plugged(device) and told is not None:
                found.append((told.get(attribute) if attribute else told.text) or "")
    return found


def _ask_for(domain: libvirt.virDomain, device: ET.Element | None) -> bool:
    alias = device.find("alias") if device is not None else None
    if device is None or alias is None or not _is_plugged(device):
        return False
    domain.detachDeviceAlias(alias.get("name", ""), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return True


def _is_plugged(device: ET.Element) -> bool:
    """Those of the root bus are there for good."""
    address = device.find("address")
    return address is not None and int(address.get("bus", "0"), 16) != 0


def _devices(domain: libvirt.virDomain) -> ET.Element:
    found = ET.fromstring(domain.XMLDesc()).find("devices")  # noqa: S314 - libvirt's own
    return found if found is not None else ET.Element("devices")


def _find_disk(domain: libvirt.virDomain, serial: str) -> ET.Element | None:
    return next(
        (disk for disk in _devices(domain).findall("disk") if disk.findtext("serial") == serial), None
    )


def has_nic(connection: libvirt.virConnect, sandbox_id: SandboxId, tap: str) -> bool:
    return _find_nic(look_up(connection, sandbox_id), tap) is not None


def _find_nic(domain: libvirt.virDomain, tap: str) -> ET.Element | None:
    for nic in _devices(domain).findall("interface"):
        target = nic.find("target")
        if target is not None and target.get("dev") == tap:
            return nic
    return None


def replace_disk(connection: libvirt.virConnect, sandbox_id: SandboxId, disk: Disk) -> None:
    """libvirt goes on believing in the file that was there: it needs neither to save nor to end the VM."""
    domain = look_up(connection, sandbox_id)
    device = _find_disk(domain, disk.serial)
    alias = device.find("alias") if device is not None else None
    if alias is not None:
        monitor.replace_disk(domain, alias.get("name", ""), disk)
        return
    raise NotFoundError(f"has no disk {disk.serial}", subject=domain_name(sandbox_id))


def block_bytes(connection: libvirt.virConnect, sandbox_id: SandboxId) -> tuple[int, int]:
    """Read and written, by all of its disks. Waits for no other call on this domain."""
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    found = connection.domainListGetStats(
        [look_up(connection, sandbox_id)], libvirt.VIR_DOMAIN_STATS_BLOCK, flags
    )
    counts = found[0][1] if found else {}
    disks = range(counts.get("block.count", 0))
    read, written = (
        sum(counts.get(f"block.{disk}.{way}.bytes", 0) for disk in disks) for way in ("rd", "wr")
    )
    return read, written


def list_ours(connection: libvirt.virConnect) -> list[OurDomain]:
    found = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        sandbox_id = find_sandbox_id(domain.name())
        # The name may be anybody's on a shared libvirt, the UUID follows from it only for us.
        if sandbox_id is None or domain.UUIDString() != str(domain_uuid(sandbox_id)):
            continue
        with contextlib.suppress(libvirt.libvirtError):  # ended since the list was made
            found.append(OurDomain(sandbox_id, is_paused(domain)))
    return found


def find_ours(connection: libvirt.virConnect, sandbox_id: SandboxId) -> OurDomain | None:
    try:
        return OurDomain(sandbox_id, is_paused(look_up(connection, sandbox_id)))
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise


def is_paused(domain: libvirt.virDomain) -> bool:
    return int(domain.state()[0]) == libvirt.VIR_DOMAIN_PAUSED


def _exists(connection: libvirt.virConnect, sandbox_id: SandboxId) -> bool:
    try:
        look_up(connection, sandbox_id)
    except libvirt.libvirtError:
        return False
    return True


def look_up(connection: libvirt.virConnect, sandbox_id: SandboxId) -> libvirt.virDomain:
    """NO_DOMAIN when there is none."""
    return connection.lookupByUUIDString(str(domain_uuid(sandbox_id)))
