# SPDX-License-Identifier: Apache-2.0
"""What tests ask of directories, and a filesystem that is soon full (needs root)."""

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
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


@contextlib.contextmanager
def xfs_filesystem(target: Path, *, size_mib: int, reflink: bool) -> Iterator[Path]:
    """In a file beside it, by a loop device that goes with the mount. ``reflink``: files may share blocks."""
    image = target.with_name(f"{target.name}.xfs")
    target.mkdir(exist_ok=True)
    image.touch(0o600)
    os.truncate(image, size_mib << 20)
    argv = ["mkfs.xfs", "-q", "-m", f"crc=1,reflink={int(reflink)}", str(image)]
    subprocess.run(argv, check=True)
    subprocess.run(["mount", "-t", "xfs", "-o", "loop", image, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
        image.unlink()


def used_bytes(place: Path) -> int:
    """Of its file system, when all that was written is on it. Blocks that files share count once."""
    subprocess.run(["sync", "--file-system", place], check=True)
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


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
