# SPDX-License-Identifier: Apache-2.0
"""The initramfs: an uncompressed newc archive with the agent as /init and the few directories it mounts on.

Written here, not by cpio(1): the same agent gives the same bytes, with no owner, time or inode of the building machine.
The format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

DIRECTORIES = ("dev", "proc", "run", "sys", "tmp")
CONSOLE = (5, 1)


@dataclass(frozen=True)
class Entry:
    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def agent_entries(agent: bytes) -> list[Entry]:
    """What the guest's first root file system holds."""
    directories = [Entry(name, stat.S_IFDIR | 0o755) for name in DIRECTORIES]
    console = Entry("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE)
    return [*directories, console, Entry("init", stat.S_IFREG | 0o755, agent)]


def render_newc(entries: list[Entry]) -> bytes:
    """The archive's bytes."""
    archive = bytearray()
    trailer = Entry("TRAILER!!!", 0)
    for inode, entry in enumerate([*entries, trailer], start=1):
        name = entry.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (
            *(
                inode if entry is not trailer else 0,
                entry.mode,
                0,
                0,
                links,
                0,
            ),  # ino mode uid gid nlink mtime
            *(len(entry.data), 0, 0, *entry.device, len(name), 0),  # filesize dev rdev namesize check
        )
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        archive += b"\0" * (-len(archive) % 4)
        archive += entry.data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)
