# SPDX-License-Identifier: Apache-2.0
"""Disks that a server has: asked for within a deadline, before a VM waits for them, and formatted on request."""

from pathlib import Path

from hyperd.errors import DeniedError, InvalidError, UnavailableError, UnsupportedError
from hyperd.host import process
from hyperd.model.vm import NbdExport
from hyperd.storage import nbd
from hyperd.storage.volume_rules import require_size, whole_blocks

SEND_TIMEOUT_S = 300.0
_MAGIC_AT, _EXT4_MAGIC = 1024 + 0x38, b"\x53\xef"  # s_magic of the superblock


async def size_of(export: NbdExport, *, readonly: bool = False) -> int:
    """Raises as ``nbd.describe``; InvalidError (too small).

    To be written to: DeniedError where nobody may, UnsupportedError where the server never flushes.
    """
    found = await nbd.describe(export.host, export.port, export.name)
    if found.readonly and not readonly:
        raise DeniedError("the server lets nobody write to it", subject=str(export))
    if not found.flushes and not readonly:
        raise UnsupportedError(
            "the server does not flush: what a container has synced would not outlive a power cut",
            subject=str(export),
            hint="another server, or its option for that; read-only it can be used as it is",
        )
    require_size(found.size_bytes, str(export))
    return whole_blocks(found.size_bytes)


async def require_ext4(export: NbdExport) -> None:
    """Raises InvalidError where there is none, and as ``nbd.read_start``."""
    start = await nbd.read_start(export.host, export.port, export.name)
    if start[_MAGIC_AT : _MAGIC_AT + 2] != _EXT4_MAGIC:
        raise InvalidError("holds no ext4", subject=str(export), hint="`-o format=true` formats it")


async def send(disk: Path, export: NbdExport) -> None:
    """All of ``disk`` becomes what the server has: holes are zeros. Raises UnavailableError."""
    finished = await process.run(
        ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(disk), str(export)],
        timeout_s=SEND_TIMEOUT_S,
    )
    if finished.returncode != 0:
        raise UnavailableError(
            "the server does not take a file system", subject=str(export), evidence=finished.stderr_tail
        )
