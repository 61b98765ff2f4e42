# SPDX-License-Identifier: Apache-2.0
"""What tests ask of directories, and a filesystem that is soon full (needs root)."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from hyperd.host import process


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextlib.asynccontextmanager
async def small_filesystem(target: Path, *, size_mib: int) -> AsyncIterator[Path]:
    await process.run_checked(
        ["mount", "--mkdir", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(target)], timeout_s=10
    )
    try:
        yield target
    finally:
        await process.run_checked(["umount", "--lazy", str(target)], timeout_s=10)


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def dig(directory: Path, levels: int) -> None:
    """Deeper than any path may be long."""
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("a", dir_fd=descriptor)
        below = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
