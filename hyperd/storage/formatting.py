# SPDX-License-Identifier: Apache-2.0
"""A file system for a volume, made on the host before any guest has seen the disk.

ROOT/.seed/data      what a new one has in it: an empty directory
ROOT/.seed.proto     the same, in mkfs.xfs's words
"""

import shutil
from pathlib import Path

from hyperd.errors import ExhaustedError, UnavailableError
from hyperd.host import files, process
from hyperd.host.workers import Workers
from hyperd.model.volume import XFS
from hyperd.storage.base import DATA_DIRECTORY

MKFS_TIMEOUT_S = 120.0
SEED, PROTO = ".seed", ".seed.proto"
# With room to grow (resize_inode) and spare superblocks: unlike a writable disk it is not thrown away.
_EXT4_OPTIONS = (
    *("-q", "-F", "-t", "ext4", "-b", "4096"),
    *("-m", "0"),  # nothing reserved for root: every process in the guest may be root
    # As in local.py: the file is new and reads as zeros, so neither mkfs nor the guest has to write them.
    *("-E", "assume_storage_prezeroed=1,lazy_journal_init=1,nodiscard,root_owner=0:0"),
)
_XFS_OPTIONS = ("-q", "-f", "-K")  # no discard: the file is new
_PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs"}
# A boot block, sizes that are not used; the root, and what is in it.
_PROTO = f"/dev/null\n0 0\nd--755 0 0\n{DATA_DIRECTORY} d--755 0 0\n$\n$\n"


def make_seed(root: Path) -> None:
    """Blocks."""
    with files.file_errors(root):
        files.make_directory(root / SEED, 0o755)
        files.make_directory(root / SEED / DATA_DIRECTORY, 0o755)
        files.write_atomic(root / PROTO, _PROTO.encode())


def require_program(filesystem: str, subject: str) -> None:
    """Raises UnavailableError: the host cannot make one. Blocks."""
    program = f"mkfs.{filesystem}"
    if shutil.which(program) is None:
        raise UnavailableError(
            f"cannot be formatted: there is no {program} on the host",
            subject=subject,
            hint=f"install {_PACKAGES[program]} (`make setup` does)",
        )


async def format_disk(disk: Path, filesystem: str, root: Path, workers: Workers, *, subject: str) -> None:
    """``root``: where ``make_seed`` was. Raises ExhaustedError, UnavailableError."""
    await workers.call(require_program, filesystem, subject)
    options = (
        (*_XFS_OPTIONS, "-p", str(root / PROTO))
        if filesystem == XFS
        else (*_EXT4_OPTIONS, "-d", str(root / SEED))
    )
    argv = [f"mkfs.{filesystem}", *options, str(disk)]
    finished = await process.run(argv, timeout_s=MKFS_TIMEOUT_S)
    if finished.returncode != 0:
        kind = ExhaustedError if "No space left" in finished.stderr_tail else UnavailableError
        brief = f"cannot be formatted: {argv[0]} ended with status {finished.returncode}"
        raise kind(brief, subject=subject, evidence=finished.stderr_tail)
    if filesystem == XFS:
        # mkfs.xfs reserves its log, 64 MiB and more, which nobody has written to: a hole does as well.
        await workers.call(_drop_reserved, disk)


def _drop_reserved(disk: Path) -> None:
    with files.file_errors(disk):
        files.copy_sparse(disk, disk)
