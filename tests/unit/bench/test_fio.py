# SPDX-License-Identifier: Apache-2.0
"""What fio says, and what it needs beside it."""

import json

import pytest

from bench.fio import libraries, microseconds

SAID = json.dumps({"jobs": [{"error": 0, "read": {"iops": 2000.0}, "write": {"iops": 0.0}}]})


def test_a_rate_becomes_the_time_of_an_operation():
    assert microseconds(f"fio: a warning\n{SAID}", "read") == 500


@pytest.mark.parametrize(
    "said",
    ["", "fio: not found", "{}", SAID.replace("2000.0", "0"), SAID.replace('"error": 0', '"error": 5')],
)
def test_what_failed_is_no_number(said):
    with pytest.raises(RuntimeError, match="fio"):
        microseconds(said, "read")


def test_the_loader_is_a_library_too():
    listed = "\tlinux-vdso.so.1 (0x1)\n\tlibaio.so.1 => /lib/libaio.so.1 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n"
    assert libraries(listed) == ["/lib/libaio.so.1", "/lib64/ld-linux-x86-64.so.2"]
