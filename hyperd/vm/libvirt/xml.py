# SPDX-License-Identifier: Apache-2.0
"""VmDefinition -> libvirt's domain XML. Pure: no file is looked at, golden files in tests/golden/vm hold the result.

Every device has its PCI address written down, so that the layout depends on the definition alone: a guest that was
saved under one version of libvirt finds its devices where they were under the next.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from hyperd.model.vm import (
    Accelerator,
    Channel,
    Disk,
    NbdExport,
    Nic,
    SandboxId,
    SharePort,
    VmDefinition,
    own_uid,
)
from hyperd.vm.libvirt.limits import require_disk, require_nic, require_possible, require_share
from hyperd.vm.libvirt.settings import LibvirtSettings

RECONNECT_S = 10
METADATA_URI = "urn:hyper:vm:1"
RAM_BACKEND = "hyper.ram"  # its name is in every saved state: it must not change
_QEMU_URI = "http://libvirt.org/schemas/domain/qemu/1.0"
_NAME_PREFIX = "hyper-"
_UUID_SPACE = uuid.UUID("6f1d9a52-8c0b-5f0e-9a53-68797065723a")

ET.register_namespace("qemu", _QEMU_URI)
ET.register_namespace("hyper", METADATA_URI)


def domain_name(sandbox_id: SandboxId) -> str:
    return _NAME_PREFIX + sandbox_id


def find_sandbox_id(name: str) -> SandboxId | None:
    """None when a domain of that name is not ours."""
    return SandboxId(name.removeprefix(_NAME_PREFIX)) if name.startswith(_NAME_PREFIX) else None


def domain_uuid(sandbox_id: SandboxId) -> uuid.UUID:
    """The same for the same sandbox, always: a second VM of one sandbox is refused by libvirt itself."""
    return uuid.uuid5(_UUID_SPACE, sandbox_id)


def render_domain(definition: VmDefinition, settings: LibvirtSettings) -> str:
    """Raises InvalidError for what no hypervisor could do, naming the value."""
    require_possible(definition)
    domain = ET.Element("domain", type=settings.driver(definition.accelerator))
    _render_identity(domain, definition)
    _render_machine(domain, definition, settings)
    devices = ET.SubElement(domain, "devices")
    _add(devices, "emulator", text=str(settings.platform.emulator))
    _render_controllers(devices, settings)
    slots = _slots()
    for target, disk in zip(disk_names(), definition.disks, strict=False):
        _render_disk(devices, target, disk, next(slots))
    for nic in definition.nics:
        _render_nic(devices, nic, next(slots))
    _render_serial(devices, definition.channels, next(slots))
    _render_console(devices, definition.console_log, settings)
    _render_small_devices(devices, definition, slots, settings)
    for share in definition.shares:
        _render_share(devices, share, next(slots))
    _render_arguments(domain, definition)
    # Saves 200 ms of every start: without it libvirt asks QEMU for each of some 480 CPU properties, one by one.
    capabilities = ET.SubElement(domain, f"{{{_QEMU_URI}}}capabilities")
    ET.SubElement(capabilities, f"{{{_QEMU_URI}}}del", capability="cpu-unavailable-features")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _render_identity(domain: ET.Element, definition: VmDefinition) -> None:
    _add(domain, "name", text=domain_name(definition.sandbox_id))
    _add(domain, "uuid", text=str(domain_uuid(definition.sandbox_id)))
    metadata = ET.SubElement(domain, "metadata")
    ET.SubElement(metadata, f"{{{METADATA_URI}}}sandbox", id=definition.sandbox_id)


def _render_machine(domain: ET.Element, definition: VmDefinition, settings: LibvirtSettings) -> None:
    platform = settings.platform
    _add(domain, "memory", text=str(definition.memory_mib), unit="MiB")
    if definition.shared_memory:
        # libvirt's own RAM backend stays empty, as ever, but it has no shares without this.
        backing = ET.SubElement(domain, "memoryBacking")
        ET.SubElement(backing, "source", type="memfd")
        ET.SubElement(backing, "access", mode="shared")
    _add(domain, "vcpu", text=str(definition.vcpus), placement="static")
    os = ET.SubElement(domain, "os")
    _add(os, "type", text="hvm", arch=platform.arch, machine=platform.machine)
    _add(os, "loader", text=str(platform.firmware), type="rom", readonly="yes")
    _add(os, "kernel", text=str(definition.kernel))
    _add(os, "initrd", text=str(definition.initramfs))
    _add(os, "cmdline", text=definition.cmdline)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if definition.accelerator is Accelerator.KVM:
        ET.SubElement(domain, "cpu", mode="host-passthrough", check="none", migratable="on")
    else:
        if settings.translation_cache_mib:
            tcg = ET.SubElement(features, "tcg")
            _add(tcg, "tb-cache", text=str(settings.translation_cache_mib), unit="MiB")
        # Not qemu64: distributions built for x86-64-v2 (RHEL 9 and its kin) do not run on it.
        ET.SubElement(domain, "cpu", mode="maximum", check="none")
    clock = ET.SubElement(domain, "clock", offset="utc")
    ET.SubElement(clock, "timer", name=platform.absent_timer, present="no")
    # The user is named here whatever qemu.conf says, and no file of ours is ever relabelled for a VM.
    label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
    user = f"+{own_uid(definition.sandbox_id)}" if settings.own_uids else settings.qemu_user
    _add(label, "label", text=f"{user}:{settings.qemu_group}")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _add(domain, event, text="destroy")


def _render_controllers(devices: ET.Element, settings: LibvirtSettings) -> None:
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for port in range(settings.spare_ports):
        controller = ET.SubElement(
            devices, "controller", type="pci", index=str(port + 1), model="pcie-root-port"
        )
        address = _address(controller, slot=1, function=port)
        if port == 0 and settings.spare_ports > 1:
            address.set("multifunction", "on")


def _render_disk(devices: ET.Element, target: str, disk: Disk, slot: int | None = None) -> None:
    kind = "file" if disk.export is None else "network"
    element = ET.SubElement(devices, "disk", type=kind, device="disk", model="virtio-non-transitional")
    # writeback: reads share the host's page cache between VMs of one image; a guest's flush reaches the host's disk.
    driver = ET.SubElement(element, "driver", name="qemu", type=str(disk.format), cache="writeback")
    # The guest is told of an error. QEMU's default pauses the whole VM when the host's disk is full, and for good.
    driver.set("error_policy", "report")
    driver.set("rerror_policy", "report")
    if not disk.readonly:
        driver.set("discard", "unmap")
    if disk.export is None:
        ET.SubElement(element, "source", file=str(disk.path))
    else:
        _render_export(element, disk.export)
    ET.SubElement(element, "backingStore")  # nothing below it to look for
    ET.SubElement(element, "target", dev=target, bus="virtio")
    if disk.readonly:
        ET.SubElement(element, "readonly")
    _add(element, "serial", text=disk.serial)
    if slot is not None:
        _address(element, slot=slot)


def _render_export(element: ET.Element, export: NbdExport) -> None:
    source = ET.SubElement(element, "source", protocol="nbd", name=export.name)
    if export.socket is not None:
        ET.SubElement(source, "host", transport="unix", socket=str(export.socket))
    else:
        ET.SubElement(source, "host", name=export.host, port=str(export.port))
    # A server that comes back within that time was never away; then the guest is told of errors.
    ET.SubElement(source, "reconnect", delay=str(RECONNECT_S))


def render_hot_disk(disk: Disk, target: str) -> str:
    """For a VM that runs: libvirt finds a root port for it. Raises InvalidError."""
    require_disk(disk)
    devices = ET.Element("devices")
    _render_disk(devices, target, disk)
    (element,) = devices
    return ET.tostring(element, encoding="unicode")


def _render_share(devices: ET.Element, share: SharePort, slot: int | None = None) -> None:
    element = ET.SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
    ET.SubElement(element, "driver", type="virtiofs")
    ET.SubElement(element, "source", socket=str(share.socket))
    ET.SubElement(element, "target", dir=share.tag)
    if slot is not None:
        _address(element, slot=slot)


def render_hot_share(share: SharePort) -> str:
    """As ``render_hot_disk``."""
    require_share(share)
    devices = ET.Element("devices")
    _render_share(devices, share)
    (element,) = devices
    return ET.tostring(element, encoding="unicode")


def _render_nic(devices: ET.Element, nic: Nic, slot: int | None = None) -> None:
    element = ET.SubElement(devices, "interface", type="ethernet")
    ET.SubElement(element, "mac", address=nic.mac)
    ET.SubElement(element, "target", dev=nic.tap, managed="no")
    ET.SubElement(element, "model", type="virtio-non-transitional")
    ET.SubElement(element, "rom", enabled="no")
    if slot is not None:
        _address(element, slot=slot)


def render_hot_nic(nic: Nic) -> str:
    """For a VM that runs, as ``render_hot_disk``. Raises InvalidError."""
    require_nic(nic)
    devices = ET.Element("devices")
    _render_nic(devices, nic)
    (element,) = devices
    return ET.tostring(element, encoding="unicode")


def _render_serial(devices: ET.Element, channels: tuple[Channel, ...], slot: int) -> None:
    controller = ET.SubElement(
        devices, "controller", type="virtio-serial", index="0", model="virtio-non-transitional"
    )
    _address(controller, slot=slot)
    for port, channel in enumerate(channels, start=1):
        element = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(element, "source", mode="bind", path=str(channel.path))
        ET.SubElement(element, "target", type="virtio", name=channel.name)
        ET.SubElement(element, "address", type="virtio-serial", controller="0", bus="0", port=str(port))


def _render_console(devices: ET.Element, path: Path, settings: LibvirtSettings) -> None:
    console = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(console, "source", path=str(path), append="on")
    ET.SubElement(console, "target", type=settings.platform.serial_target, port="0")


def _render_small_devices(
    devices: ET.Element, definition: VmDefinition, slots: Iterator[int], settings: LibvirtSettings
) -> None:
    balloon = ET.SubElement(devices, "memballoon", model="virtio-non-transitional", autodeflate="on")
    if definition.free_page_reporting:
        balloon.set("freePageReporting", "on")
    _address(balloon, slot=next(slots))
    rng = ET.SubElement(devices, "rng", model="virtio-non-transitional")
    ET.SubElement(rng, "backend", model="builtin")  # QEMU's own getrandom(2): no file to open
    _address(rng, slot=next(slots))
    panic = ET.SubElement(devices, "panic", model=settings.platform.panic_model)
    _address(panic, slot=next(slots))


def _render_arguments(domain: ET.Element, definition: VmDefinition) -> None:
    """What libvirt has no word for. Its own RAM backend stays empty: the last ``-machine`` counts.

    Every VM has its RAM under one name, that of the RAM block in a saved state, whatever is behind it.
    """
    arguments = [
        "-object",
        _ram_backend(definition),
        "-machine",
        f"memory-backend={RAM_BACKEND}",
    ]
    if definition.restore_from is not None:
        arguments += ["-incoming", "defer"]
    commandline = ET.SubElement(domain, f"{{{_QEMU_URI}}}commandline")
    for argument in arguments:
        ET.SubElement(commandline, f"{{{_QEMU_URI}}}arg", value=argument)


def _ram_backend(definition: VmDefinition) -> str:
    size, file = f"id={RAM_BACKEND},size={definition.memory_mib}M", definition.memory_file
    if definition.shared_memory:
        # By its seals it is told from libvirt's own, which has the same name (``memory.fill_ram``).
        return f"memory-backend-memfd,{size},share=on,seal=off"
    if file is None:
        return f"memory-backend-ram,{size}"
    # In QEMU's options a comma within a value is written twice.
    backend = f"memory-backend-file,{size},mem-path={str(file.path).replace(',', ',,')}"
    # A QEMU that a guest has taken over must not find a descriptor through which it can write a template.
    return f"{backend},share=on" if file.shared else f"{backend},share=off,readonly=on,rom=off"


def _add(parent: ET.Element, tag: str, *, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


# Slot 0 is the host bridge, 1 has the root ports, those above 0x1a belong to the chipset. Room for limits.MAX_DEVICES.
_FIRST_SLOT, _LAST_SLOT = 0x02, 0x1A


def _slots() -> Iterator[int]:
    return iter(range(_FIRST_SLOT, _LAST_SLOT + 1))


def disk_names() -> Iterator[str]:
    return (f"vd{chr(ord('a') + number)}" for number in range(26))


def _address(parent: ET.Element, *, slot: int, function: int = 0) -> ET.Element:
    return ET.SubElement(
        parent,
        "address",
        type="pci",
        domain="0x0000",
        bus="0x00",
        slot=f"0x{slot:02x}",
        function=f"0x{function:x}",
    )
