# SPDX-License-Identifier: Apache-2.0
"""Disks that a server has: asked for within a deadline, before a VM waits for them, and formatted on request."""

from pathlib import Path

from hyperd.errors import (
    DeniedError,
    InvalidError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.host import process
from hyperd.model.vm import NbdExport
from hyperd.model.volume import EXT4, XFS
from hyperd.storage import nbd
from hyperd.storage.volume_rules import require_size, whole_blocks

SEND_TIMEOUT_S = 300.0
SLOWEST_BYTES_PER_S = 8 << 20  # some servers take zeros as they take data: all of the disk goes there
# Of the superblock: s_magic, sb_magicnum.
_MAGICS = {EXT4: (1024 + 0x38, b"\x53\xef"), XFS: (0, b"XFSB")}


async def size_of(export: NbdExport, subject: str, *, readonly: bool = False, filesystem: str = EXT4) -> int:
    """Of what errors name as ``subject``. Raises as ``nbd.describe``; InvalidError (too small).

    To be written to: DeniedError where nobody may, UnsupportedError where the server never flushes.
    """
    found = await nbd.describe(export)
    if found.readonly and not readonly:
        raise DeniedError("the server lets nobody write to it", subject=subject)
    if not found.flushes and not readonly:
        raise UnsupportedError(
            "the server does not flush: what a container has synced would not outlive a power cut",
            subject=subject,
            hint="another server, or its option for that; read-only it can be used as it is",
        )
    require_size(found.size_bytes, subject, filesystem)
    return whole_blocks(found.size_bytes)


async def require_filesystem(export: NbdExport, filesystem: str, subject: str) -> None:
    """Raises InvalidError where there is another or none, and as ``nbd.read_start``."""
    start = await nbd.read_start(export)
    at, magic = _MAGICS[filesystem]
    if start[at : at + len(magic)] != magic:
        raise InvalidError(
            f"holds no {filesystem}",
            subject=subject,
            hint="`-o format=true` formats it, `--fs` says what it holds",
        )


def require_whole(size_bytes: int, known_bytes: int, subject: str) -> None:
    """Raises WrongStateError: its file system goes beyond the end of the server's disk."""
    if size_bytes < known_bytes:
        raise WrongStateError(
            f"the server's disk has become smaller: {size_bytes} bytes, and there were {known_bytes}",
            subject=subject,
            hint="let it have its size again; or `hyper volume rm`, and make it anew with `-o format=true`",
        )


async def send(disk: Path, export: NbdExport, size_bytes: int, subject: str) -> None:
    """All of ``disk`` becomes what the server has: holes are zeros. Raises UnavailableError, TimeoutExpiredError."""
    timeout_s = SEND_TIMEOUT_S + size_bytes / SLOWEST_BYTES_PER_S
    argv = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(disk), str(export)]
    try:
        finished = await process.run(argv, timeout_s=timeout_s)
    except TimeoutExpiredError as error:
        raise TimeoutExpiredError(
            f"the server has not taken a file system within {timeout_s:.0f} s: what is on it is overwritten in part",
            subject=subject,
            hint="format it where the server is, with a directory `data`; or a server that takes zeros quickly",
        ) from error
    if finished.returncode != 0:
        raise UnavailableError(
            "the server does not take a file system", subject=subject, evidence=finished.stderr_tail
        )
