# SPDX-License-Identifier: Apache-2.0
"""What a guest kernel's file says of itself."""

from pathlib import Path

import pytest

from hyperd.sandbox.facts import kernel_release


@pytest.mark.parametrize(
    ("content", "release"),
    [
        (bytes(5000) + b"Linux version 6.12.117 (hyper@hyper) #1 SMP", "6.12.117"),
        (b"Linux version %s (builder)\0Linux version 6.12.0-rc1+ (x)", "6.12.0-rc1+"),
        (b"no kernel", ""),
        (b"", ""),
    ],
)
def test_the_release_is_that_of_the_banner(tmp_path: Path, content: bytes, release: str) -> None:
    (tmp_path / "vmlinux").write_bytes(content)
    assert kernel_release(tmp_path / "vmlinux") == release
    assert kernel_release(tmp_path / "absent") == ""
