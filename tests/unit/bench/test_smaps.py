# SPDX-License-Identifier: Apache-2.0
"""Mappings as a QEMU of ours has them (TCG, Debian's QEMU 10), shortened."""

import os

import pytest

from bench import smaps

KIB = 1024


def mapping(start, size_kib, permissions, path="", *, pss=0, anonymous=0):
    """As Linux 6 writes it, with fields beside those that we want."""
    head = f"{start:x}-{start + size_kib * KIB:x} {permissions} 00000000 fe:01 131 "
    fields = {"Size": size_kib, "Rss": pss, "Pss": pss, "Pss_Dirty": 0, "Anonymous": anonymous, "Swap": 0}
    lines = [f"{head:<73}{path}" if path else head]
    lines += [f"{name + ':':<16}{value:>8} kB" for name, value in fields.items()]
    return "\n".join([*lines, "THPeligible:           0", "VmFlags: rd wr mr mw me ac sd"]) + "\n"


TEMPLATE_RAM = mapping(
    0x7F7633E00000, 256 * KIB, "rw-p", "/s/snapshots/0a/ram (deleted)", pss=11 * KIB, anonymous=3 * KIB
)
CASES = {
    smaps.CODE: mapping(0x7F7644000000, KIB * KIB - 4, "rwxp", pss=2 * KIB),
    smaps.PROGRAM: mapping(0x55FDDF96E000, 6628, "r-xp", "/usr/bin/qemu-system-x86_64", pss=2 * KIB),
    smaps.ASSETS: mapping(0x7F7632800000, 20924, "rw-p", "/c/vmlinux", pss=2 * KIB),
    smaps.HEAP: mapping(0x55FDE2069000, 38248, "rw-p", "[heap]", pss=2 * KIB),
    smaps.LARGE: mapping(0x7F76882B6000, 1320, "rw-p", pss=2 * KIB),
    smaps.OTHER: mapping(0x7FFD1C1F2000, 8, "r-xp", "[vdso]", pss=2 * KIB),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_mapping_has_its_name(name):
    found = smaps.sum_by_name(smaps.parse(CASES[name]), 256)
    assert found == {**dict.fromkeys(smaps.NAMES, 0.0), name: 2.0}


def test_ram_that_was_written_to_is_apart_from_what_is_still_the_templates():
    found = smaps.sum_by_name(smaps.parse(TEMPLATE_RAM), 256)
    assert (found[smaps.RAM_SHARED], found[smaps.RAM_OWN]) == (8, 3)


def test_anonymous_ram_is_all_the_guests_own():
    text = mapping(0x7F7633E00000, 256 * KIB, "rw-p", pss=50 * KIB, anonymous=50 * KIB)
    found = smaps.sum_by_name(smaps.parse(text), 256)
    assert (found[smaps.RAM_SHARED], found[smaps.RAM_OWN]) == (0, 50)


def test_a_thread_has_its_stack_above_a_guard_and_its_heap_at_64_mib():
    text = (
        mapping(0x7F76_2000_0000, 132, "rw-p", pss=KIB)
        + mapping(0x7F76_2002_1000, 65404, "---p")
        + mapping(0x7F76_3081_F000, 4, "---p")
        + mapping(0x7F76_3082_0000, 8192, "rw-p", pss=2 * KIB)
        + mapping(0x7F76_3102_0000, 8192, "rw-p", pss=4 * KIB)
        + mapping(0x7FFD_1C10_0000, 132, "rw-p", "[stack]", pss=8 * KIB)
    )
    found = smaps.sum_by_name(smaps.parse(text), 256)
    assert (found[smaps.HEAP], found[smaps.STACKS], found[smaps.LARGE]) == (1, 10, 4)


def test_no_mib_is_lost():
    text = TEMPLATE_RAM + "".join(CASES.values())
    mappings = smaps.parse(text)
    total_mib = sum(found.pss_kib for found in mappings) / KIB
    assert sum(smaps.sum_by_name(mappings, 256).values()) == total_mib == 11 + 2 * len(CASES)


def test_a_process_of_this_kernel_is_read():
    mappings = smaps.read(os.getpid())
    assert any(found.path == "[heap]" for found in mappings)
    assert sum(smaps.sum_by_name(mappings, 256).values()) > 1
