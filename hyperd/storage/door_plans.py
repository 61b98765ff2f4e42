# SPDX-License-Identifier: Apache-2.0
"""What the qemu-nbd of a door is told of its disk. The secret goes in memory, and never into its arguments.

https://www.qemu.org/docs/master/system/images.html and qapi/block-core.json: BlockdevOptionsIscsi, BlockdevOptionsRbd.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import InvalidError
from hyperd.host.files import file_errors
from hyperd.storage.remote_disks import IscsiDisk, RbdDisk

MAX_PASSWORD_BYTES = 255  # of CHAP
MAX_KEY_BYTES = 255  # of cephx; there are 40 in those that Ceph makes
SECRET_FD = 5  # after the socket, as systemd has it, and the lock
_SECRET = f"/proc/self/fd/{SECRET_FD}"
_KEY = re.compile(rb"[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class Plan:
    options: dict[str, str]  # of --image-opts
    objects: tuple[str, ...]  # arguments that come before
    secret: bytes | None  # what is at SECRET_FD


def hint_of(disk: IscsiDisk | RbdDisk) -> str:
    """For when it cannot be used."""
    if isinstance(disk, RbdDisk):
        return "are monitors, pool, image, user and key right, and may that user use it (`profile rbd`)?"
    return "are address, target, unit, user and password right, and does it let this host in?"


def plan(disk: IscsiDisk | RbdDisk) -> Plan:
    """Blocks. Raises InvalidError, NotFoundError, UnavailableError (the file with the secret)."""
    return _plan_rbd(disk) if isinstance(disk, RbdDisk) else _plan_iscsi(disk)


def _plan_iscsi(disk: IscsiDisk) -> Plan:
    options = {
        "driver": "raw",
        "file.driver": "iscsi",
        "file.transport": "tcp",
        "file.portal": disk.portal,
        "file.target": disk.target,
        "file.lun": str(disk.lun),
    }
    if not disk.user:
        return Plan(options, (), None)
    options |= {"file.user": disk.user, "file.password-secret": "password"}
    password = _read_line(Path(disk.password_file), MAX_PASSWORD_BYTES, "password")
    return Plan(options, ("--object", f"secret,id=password,file={_SECRET}"), password)


def _plan_rbd(disk: RbdDisk) -> Plan:
    """Monitors and key are a ceph.conf of its own: QEMU's options want a port of each, and Ceph has two."""
    options = {
        "driver": "raw",
        "file.driver": "rbd",
        "file.conf": _SECRET,
        "file.pool": disk.pool,
        "file.image": disk.image,
    }
    if disk.namespace:
        options["file.namespace"] = disk.namespace
    lines = [b"[global]", b"mon host = " + disk.monitor_addresses.encode()]
    if disk.user:
        options["file.user"] = disk.user
        path = Path(disk.key_file)
        key = _read_line(path, MAX_KEY_BYTES, "key")
        if not _KEY.fullmatch(key):
            raise InvalidError(
                "is no key", subject=str(path), hint=f"`ceph auth print-key client.{disk.user}` prints one"
            )
        lines.append(b"key = " + key)
    else:
        lines.append(b"auth client required = none")
    return Plan(options, (), b"\n".join([*lines, b""]))


def _read_line(path: Path, max_bytes: int, what: str) -> bytes:
    """Without its newline. Nobody waits for who would write to a pipe of that name."""
    with file_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidError(f"is no {what}: not a regular file", subject=str(path))
            line = file.read(max_bytes + 2).removesuffix(b"\n")
    if not 0 < len(line) <= max_bytes or b"\n" in line:
        raise InvalidError(f"is no {what}: one line of up to {max_bytes} bytes is wanted", subject=str(path))
    return line
