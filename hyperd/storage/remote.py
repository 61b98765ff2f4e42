# SPDX-License-Identifier: Apache-2.0
"""Disks that a server has: asked for within a deadline, before a VM waits for them, and formatted on request."""

from pathlib import Path

from hyperd.errors import DeniedError, UnavailableError, UnsupportedError
from hyperd.host import process
from hyperd.model.vm import NbdExport
from hyperd.storage import nbd
from hyperd.storage.volume_rules import require_size, whole_blocks

SEND_TIMEOUT_S = 300.0


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
