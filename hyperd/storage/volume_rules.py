# SPDX-License-Identifier: Apache-2.0
"""What a volume may be. Pure."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from hyperd.errors import ExistsError, InvalidError, UnsupportedError
from hyperd.model.volume import EXT4, LOCAL, SHARED, XFS, VolumeRequest
from hyperd.storage import remote_rules
from hyperd.storage.remote_disks import Server

if TYPE_CHECKING:  # the records ask for these rules, too
    from hyperd.storage.volume_records import Row

DEFAULT_VOLUME_BYTES = 10 << 30
MINIMUM_VOLUME_BYTES = 16 << 20
MINIMUM_XFS_BYTES = 300 << 20  # what mkfs.xfs makes
MAXIMUM_VOLUME_BYTES = 16 << 40  # what ext4 does with blocks of 4 KiB and 32-bit numbers
BLOCK_BYTES = 4096
DISK_FILESYSTEMS = (EXT4, XFS)  # the first is made unless another is asked for
FILESYSTEMS = (*DISK_FILESYSTEMS, SHARED)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}")


def require_possible(request: VolumeRequest, default_bytes: int = DEFAULT_VOLUME_BYTES) -> None:
    """Raises InvalidError, UnsupportedError."""
    subject = f"volume {request.name!r}"
    require_name(request.name, "volume")
    if request.driver in remote_rules.DRIVERS:
        _require_remote(request, subject)
        return
    if request.driver not in ("", LOCAL):
        raise remote_rules.no_driver(request.driver, subject)
    if request.filesystem and request.filesystem not in FILESYSTEMS:
        raise UnsupportedError(
            f"there is no file system {request.filesystem!r}",
            subject=subject,
            hint=f"known: {', '.join(FILESYSTEMS)}",
        )
    _require_no_options(request, subject)
    if request.filesystem != SHARED:
        if not request.snapshot or request.size_bytes:  # else it is as large as that
            require_size(request.size_bytes or default_bytes, subject, request.filesystem)
    elif request.size_bytes or request.snapshot:
        raise InvalidError(
            "is a directory of the host's: it has no size of its own, and is made from no snapshot",
            subject=subject,
            hint="a file system of the host's with a quota bounds it",
        )


def _require_no_options(request: VolumeRequest, subject: str) -> None:
    if request.options:
        raise InvalidError(
            f"the driver {LOCAL} has no option {sorted(request.options)[0]!r}",
            subject=subject,
            hint="it has none",
        )


def _require_remote(request: VolumeRequest, subject: str) -> None:
    remote_rules.parse(request.driver, request.options, subject)
    if request.size_bytes:
        raise InvalidError("is as large as its server says", subject=subject, hint="leave --size out")
    if request.snapshot:
        raise UnsupportedError(
            "a disk of a server's does not begin as a snapshot",
            subject=subject,
            hint="its server may make copies",
        )
    if request.filesystem and request.filesystem not in DISK_FILESYSTEMS:
        raise UnsupportedError(
            f"there is no file system {request.filesystem!r}",
            subject=subject,
            hint=f"known: {', '.join(DISK_FILESYSTEMS)}",
        )


def require_name(name: str, kind: str) -> None:
    """Raises InvalidError."""
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"is not a {kind}'s name",
            subject=repr(name)[:200],
            hint="2 to 128 letters, digits, `_`, `.` and `-`, the first a letter or a digit",
        )


def require_size(size_bytes: int, subject: str, filesystem: str = EXT4) -> None:
    """Raises InvalidError."""
    minimum_bytes = MINIMUM_XFS_BYTES if filesystem == XFS else MINIMUM_VOLUME_BYTES
    if not minimum_bytes <= size_bytes <= MAXIMUM_VOLUME_BYTES:
        raise InvalidError(
            f"{size_bytes} bytes are not between {minimum_bytes >> 20} MiB and"
            f" {MAXIMUM_VOLUME_BYTES >> 40} TiB",
            subject=subject,
            hint=f"{XFS} has no smaller ones; {EXT4} has" if filesystem == XFS else "",
        )


def require_filesystem(request: VolumeRequest, has: str) -> None:
    """Of what it is to begin as. Raises InvalidError."""
    if request.filesystem and request.filesystem != has:
        raise InvalidError(
            f"the snapshot holds {has}, not {request.filesystem}",
            subject=f"volume {request.name}",
            hint="leave --fs out: a copy has the file system of what it is a copy of",
        )


def require_growth(name: str, size_bytes: int, wanted_bytes: int) -> int:
    """Of what there is; the size it gets. Raises InvalidError: what lies beyond a smaller one would be lost."""
    subject = f"volume {name}"
    if not size_bytes:
        raise InvalidError("is a directory of the host's and has no size", subject=subject)
    require_size(wanted_bytes, subject)
    wanted_bytes = whole_blocks(wanted_bytes)
    if wanted_bytes < whole_blocks(size_bytes):
        raise InvalidError(
            f"does not become smaller: {wanted_bytes} bytes are less than the {size_bytes} it has",
            subject=subject,
            hint="make a smaller one and copy what is in it: `hyper run -v OLD:/old:ro -v NEW:/new ... cp -a`",
        )
    return wanted_bytes


def require_same(request: VolumeRequest, there: "Row") -> None:
    """As Docker: creating what is there is no error, creating something else of that name is."""
    size_bytes = whole_blocks(request.size_bytes)
    other_size = size_bytes and size_bytes != there.size_bytes
    other_kind = request.filesystem and request.filesystem != there.filesystem
    driver = request.driver or LOCAL
    if driver != there.driver or (
        driver in remote_rules.DRIVERS
        and not _server(driver, request.options).is_same(_server(driver, there.options))
    ):
        raise ExistsError(
            "there is one of that name that lies elsewhere",
            subject=f"volume {there.name}",
            hint=f"`hyper volume inspect {there.name}` shows it",
        )
    if other_size or other_kind or (request.labels and request.labels != there.labels):
        raise ExistsError(
            "there is one of that name with another size, file system or other labels",
            subject=f"volume {there.name}",
            hint=f"`hyper volume inspect {there.name}` shows it",
        )
    if request.snapshot:
        raise ExistsError(
            "there is one of that name",
            subject=f"volume {there.name}",
            hint="another name, or remove it first",
        )


def require_as_asked(request: VolumeRequest, there: "Row") -> None:
    """Of one that is there, for who mounts it: what was asked for, and as Docker no label.

    Raises ExistsError, InvalidError.
    """
    driver = request.driver or there.driver
    if driver == LOCAL:
        _require_no_options(request, f"volume {request.name!r}")
    options = request.options or (there.options if driver == there.driver else {})
    require_same(replace(request, driver=driver, options=options, labels={}), there)


def _server(driver: str, options: Mapping[str, str]) -> Server:
    return remote_rules.parse(driver, options, "")[0]


def whole_blocks(size_bytes: int) -> int:
    return size_bytes - size_bytes % BLOCK_BYTES
