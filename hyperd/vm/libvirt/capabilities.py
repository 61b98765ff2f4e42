# SPDX-License-Identifier: Apache-2.0
"""What this host's libvirt and QEMU are. Asking fills libvirt's capability cache: 4-8 s once, then nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import libvirt

from hyperd.model.vm import Accelerator
from hyperd.vm.libvirt.settings import LibvirtSettings


@dataclass(frozen=True, slots=True)
class HypervisorCapabilities:
    libvirt_version: str
    qemu_version: str
    machine: str  # the versioned name, and what we leave out of it: pc-q35-10.0 without hpet
    max_vcpus: int
    asked_anew: bool = (
        False  # since hyperd began, though libvirt had kept QEMU's answers: it took them for old
    )


def read_capabilities(connection: libvirt.virConnect, settings: LibvirtSettings) -> HypervisorCapabilities:
    """Blocks. libvirtError passes."""
    platform = settings.platform
    described = connection.getDomainCapabilities(
        str(settings.platform.emulator), platform.arch, platform.machine, settings.driver(Accelerator.TCG), 0
    )
    root = ET.fromstring(described)  # noqa: S314 - libvirt's own words about itself
    vcpu = root.find("vcpu")
    return HypervisorCapabilities(
        libvirt_version=render_version(connection.getLibVersion()),
        qemu_version=render_version(connection.getVersion()),
        machine=f"{root.findtext('machine', platform.machine)} without {platform.absent_timer}",
        max_vcpus=int(vcpu.get("max", "1")) if vcpu is not None else 1,
    )


def kept_answers(settings: LibvirtSettings) -> dict[str, int]:
    """When each was written, of the embedded driver's cache: one for each QEMU that it has asked."""
    directory = settings.root / "cache/qemu/capabilities"
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.xml")}


def were_old(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Whether an answer that was there has been written again."""
    return any(after.get(name, written) != written for name, written in before.items())


def render_version(number: int) -> str:
    """libvirt's 1,000,000 * major + 1,000 * minor + release."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
