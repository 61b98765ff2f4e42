# SPDX-License-Identifier: Apache-2.0
"""An ext4 for a volume, made on the host before any guest has seen the disk."""

from pathlib import Path

from hyperd.errors import ExhaustedError, UnavailableError
from hyperd.host import process

MKFS_TIMEOUT_S = 120.0
# With room to grow (resize_inode) and spare superblocks: unlike a writable disk it is not thrown away.
MKFS_OPTIONS = (
    *("-q", "-F", "-t", "ext4", "-b", "4096"),
    *("-m", "0"),  # nothing reserved for root: every process in the guest may be root
    # As in local.py: the file is new and reads as zeros, so neither mkfs nor the guest has to write them.
    *("-E", "assume_storage_prezeroed=1,lazy_journal_init=1,nodiscard,root_owner=0:0"),
)


async def format_ext4(disk: Path, seed: Path, *, subject: str) -> None:
    """``seed``: the directory whose content it begins with. Raises ExhaustedError, UnavailableError."""
    finished = await process.run(
        ["mkfs.ext4", *MKFS_OPTIONS, "-d", str(seed), str(disk)], timeout_s=MKFS_TIMEOUT_S
    )
    if finished.returncode != 0:
        kind = ExhaustedError if "No space left" in finished.stderr_tail else UnavailableError
        brief = f"cannot be formatted: mkfs.ext4 ended with status {finished.returncode}"
        raise kind(brief, subject=subject, evidence=finished.stderr_tail)
