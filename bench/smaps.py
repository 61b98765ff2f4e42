# SPDX-License-Identifier: Apache-2.0
"""Where the memory of a QEMU process is: /proc/PID/smaps, every mapping under one name. Pure but for `read`.

PSS: a page that several processes map counts for each with its share.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RAM_SHARED = "guest RAM, pages that are still the template's"
RAM_OWN = "guest RAM, pages of its own"
CODE = "translated code (TCG)"
PROGRAM = "QEMU and libraries"
ASSETS = "kernel, initramfs and firmware files"
HEAP = "heap"
STACKS = "stacks"
LARGE = "large allocations beside the heap (tables of the emulation)"
OTHER = "the kernel's own (vdso and the like)"
NAMES = (RAM_SHARED, RAM_OWN, CODE, PROGRAM, ASSETS, HEAP, LARGE, STACKS, OTHER)

_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")
_ARENA_BYTES = 64 << 20  # glibc: where a thread's heap starts, and its most
_STACK_BYTES = range(1 << 16, (8 << 20) + 1)  # of threads: glibc's default at the most


@dataclass(frozen=True, slots=True)
class Mapping:
    start: int
    end: int
    permissions: str
    path: str  # "" of an anonymous one
    pss_kib: int
    anonymous_kib: int  # of a private file mapping: what was written to

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


def parse(text: str) -> list[Mapping]:
    mappings: list[Mapping] = []
    header: re.Match[str] | None = None
    values: dict[str, int] = {}

    def finish() -> None:
        if header is not None:
            start, end = int(header[1], 16), int(header[2], 16)
            mappings.append(
                Mapping(start, end, header[3], header[4], values.get("Pss", 0), values.get("Anonymous", 0))
            )

    for line in text.splitlines():
        if found := _HEADER.fullmatch(line):
            finish()
            header, values = found, {}
        else:
            key, _, rest = line.partition(":")
            number = rest.split()
            if number and number[0].isdecimal():
                values[key] = int(number[0])
    finish()
    return mappings


def read(pid: int) -> list[Mapping]:
    return parse(Path(f"/proc/{pid}/smaps").read_text())


def sum_by_name(mappings: Iterable[Mapping], memory_mib: int) -> dict[str, float]:
    """MiB of PSS under each of NAMES."""
    totals = dict.fromkeys(NAMES, 0.0)
    before: Mapping | None = None
    for mapping in mappings:
        name = _name(mapping, before, memory_mib)
        before = mapping
        pss_kib = mapping.pss_kib
        if name == RAM_OWN:  # copies that the guest wrote to are its own, the rest of the file is everyone's
            own_kib = min(mapping.anonymous_kib, pss_kib)
            totals[RAM_SHARED] += (pss_kib - own_kib) / 1024
            pss_kib = own_kib
        totals[name] += pss_kib / 1024
    return totals


def _name(mapping: Mapping, before: Mapping | None, memory_mib: int) -> str:
    if mapping.size_bytes == memory_mib << 20:
        return RAM_OWN
    if mapping.path.startswith("/"):
        file = Path(mapping.path.removesuffix(" (deleted)"))
        is_asset = file.name in {"vmlinux", "initramfs.cpio"} or file.suffix in {".rom", ".bin", ".cpio"}
        return ASSETS if is_asset else PROGRAM
    if mapping.path.startswith("[stack"):
        return STACKS
    if mapping.path == "[heap]" or _is_arena(mapping):
        return HEAP
    if mapping.path.startswith("["):
        return OTHER
    if "x" in mapping.permissions:
        return CODE
    guarded = before is not None and before.permissions.startswith("---") and before.end == mapping.start
    if guarded and mapping.size_bytes in _STACK_BYTES:
        return STACKS
    return LARGE


def _is_arena(mapping: Mapping) -> bool:
    """A heap of glibc's for a thread: at a multiple of 64 MiB, the rest of which is reserved behind it."""
    return not mapping.path and mapping.start % _ARENA_BYTES == 0 and mapping.size_bytes <= _ARENA_BYTES
