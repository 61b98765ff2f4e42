# SPDX-License-Identifier: Apache-2.0
"""What depends on the machine's architecture, all of it, for the hypervisor room."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Platform:
    arch: str
    machine: str
    emulator: Path
    firmware: Path  # boots an ELF kernel by its PVH note, without a BIOS's second
    serial_target: str
    panic_model: str  # libvirt's name; on q35 it becomes pvpanic-pci
    absent_timer: str


X86_64 = Platform(
    arch="x86_64",
    machine="q35",
    emulator=Path("/usr/bin/qemu-system-x86_64"),
    firmware=Path("/usr/share/qemu/qboot.rom"),
    serial_target="isa-serial",
    panic_model="pvpanic",
    # Linux ticks with it for an instant at boot, then it is off; but QEMU's emulation goes on, 250 times a second:
    # 15 to 20 ms of CPU time a second for each idle guest, instead of 2.
    absent_timer="hpet",
)
