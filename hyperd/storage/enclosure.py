# SPDX-License-Identifier: Apache-2.0
"""The mount namespace that a share is served from. A program of its own, which becomes virtiofsd in the end:

    python3 -I -S enclosure.py LOCK_FD PLAN          PLAN: JSON, see ``Plan``

Whatever virtiofsd can be made to do, what it must not write to is mounted read-only beneath it, and of a file that is
shared it finds that file alone. Nothing of this is a mount of the host's. Imports nothing of hyperd: that would take
longer than all the rest.
"""

import ctypes
import json
import os
import stat
import sys
from typing import TypedDict

_CLONE_NEWNS = 0x0002_0000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_SYS_OPENAT2, _SYS_MOUNT_SETATTR = 437, 442
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 0x02, 0x04
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_RECURSIVE = 0x8000
FIRST_FREE_FD = 5  # after those that hyperd gives: the lock, and the socket
_libc = ctypes.CDLL(None, use_errno=True)


class Plan(TypedDict):
    source: str  # without a link in it
    place: str  # a directory of hyperd's own: covered here, with what is served below it
    entry: str  # of a file: the name that it has there; "" for a directory
    readonly: bool
    argv: list[str]  # of virtiofsd, but for the directory


def main() -> None:
    lock_fd, plan = int(sys.argv[1]), _plan(sys.argv[2])
    try:
        os.closerange(FIRST_FREE_FD, os.sysconf("SC_OPEN_MAX"))  # whatever hyperd was born with
        # Who holds the lock. virtiofsd inherits it, for reading: it cannot name somebody else to be killed.
        pid_fd = os.open(f"/proc/self/fd/{lock_fd}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        os.write(pid_fd, b"%d" % os.getpid())
        served = enclose(plan)
        os.chdir("/")
        os.execv(plan["argv"][0], [*plan["argv"], "--shared-dir", served])  # noqa: S606 - that is what it is for
    except OSError as error:
        sys.exit(f"{error.filename or plan['source']}: {error.strerror}")


def enclose(plan: Plan) -> str:
    """Build what is to be served, in a namespace of our own; returns its path there."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    source = open_without_links(plan["source"])
    place = plan["place"]
    _mount("none", place, "tmpfs", _MS_NOSUID_NODEV_NOEXEC, "size=64k,mode=755")
    target = served = os.path.join(place, "served")  # noqa: PTH118 - a bare Python
    os.mkdir(served, 0o755)  # noqa: PTH102
    if plan["entry"]:
        target = os.path.join(served, plan["entry"])  # noqa: PTH118
        os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
    is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
    if is_directory == bool(plan["entry"]):
        sys.exit(f"{plan['source']}: is {'a' if is_directory else 'no'} directory by now")
    _mount(f"/proc/self/fd/{source}", target, "", _MS_BIND | _MS_REC)
    os.close(source)
    # A device of the host's is never opened, whatever a guest made in the share.
    attributes = _ATTR_NOSUID | _ATTR_NODEV | (_ATTR_RDONLY if plan["readonly"] else 0)
    _set_attributes(target, attributes, _AT_RECURSIVE)
    _set_attributes(place, _ATTR_RDONLY, 0)
    return served


def _plan(text: str) -> Plan:
    plan: Plan = json.loads(text)
    return plan


def open_without_links(path: str) -> int:
    """hyperd resolved them when it looked whether the path is allowed: whoever made one since must not lead us on.

    A place, to look at and to mount. Raises OSError: ELOOP where there is a link.
    """
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    call = (_SYS_OPENAT2, -100, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    fd: int = _libc.syscall(*call)
    _check(min(fd, 0), path)
    return fd


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = (source.encode(), os.fsencode(target), kind.encode() or None)
    _check(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), target)


def _set_attributes(path: str, attributes: int, flags: int) -> None:
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    call = (_SYS_MOUNT_SETATTR, -100, os.fsencode(path), flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
    _check(_libc.syscall(*call), path)


def _check(result: int, subject: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)


if __name__ == "__main__":
    main()
