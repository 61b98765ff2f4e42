# SPDX-License-Identifier: Apache-2.0
"""Who may open a file: one user who writes, or many who read, each by uid. Blocks.

Linux keeps an access control list as the extended attribute system.posix_acl_access (acl(5), linux/posix_acl_xattr.h).
"""

import contextlib
import errno
import os
import struct
from collections.abc import Collection
from pathlib import Path

from hyperd.errors import ExhaustedError

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY_IN_PARTICULAR = 0xFFFF_FFFF
_READ, _WRITE = 4, 2
_TOO_LONG = frozenset({errno.ENOSPC, errno.E2BIG, errno.ERANGE})  # by which file system it is


def close_to_all(path: Path) -> None:
    """But to the daemon's own user."""
    _clear(path)
    os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
    path.chmod(0o600)


def open_to_writer(path: Path, owner: tuple[int, int]) -> None:
    _clear(path)
    path.chmod(0o600)
    os.chown(path, *owner, follow_symlinks=False)


def open_to_readers(path: Path, uids: Collection[int], gid: int) -> None:
    """``gid`` reads instead where the file system has no such lists. Raises ExhaustedError: too many for its list.

    Those that read it go on doing so: the list is replaced at once. (`chmod` would set its mask, and shut out all.)
    """
    if path.stat().st_uid != os.geteuid():
        close_to_all(path)
    try:
        os.setxattr(path, _ATTRIBUTE, render(uids))
    except OSError as error:
        if error.errno in _TOO_LONG:
            raise ExhaustedError(
                f"cannot be read by {len(set(uids))} at once: its file system keeps no list of so many",
                subject=str(path),
                evidence=error.strerror or "",
                hint="stop one that reads it; XFS keeps longer lists than ext4",
            ) from error
        if error.errno != errno.ENOTSUP:
            raise
        os.chown(path, -1, gid, follow_symlinks=False)
        path.chmod(0o640)


def render(readers: Collection[int]) -> bytes:
    """Sorted as the kernel demands it."""
    entries = [
        (_USER_OBJ, _READ | _WRITE, _NOBODY_IN_PARTICULAR),
        *((_USER, _READ, uid) for uid in sorted(set(readers))),
        (_GROUP_OBJ, 0, _NOBODY_IN_PARTICULAR),
        (_MASK, _READ, _NOBODY_IN_PARTICULAR),
        (_OTHER, 0, _NOBODY_IN_PARTICULAR),
    ]
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _clear(path: Path) -> None:
    with contextlib.suppress(OSError):  # it has none, or there are none here
        os.removexattr(path, _ATTRIBUTE)
