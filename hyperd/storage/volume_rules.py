# SPDX-License-Identifier: Apache-2.0
"""What a volume may be. Pure."""

import re

from hyperd.errors import ExistsError, InvalidError, UnsupportedError
from hyperd.model.volume import LOCAL, VolumeRequest
from hyperd.storage.volume_records import Row

DEFAULT_VOLUME_BYTES = 10 << 30
MINIMUM_VOLUME_BYTES = 16 << 20
MAXIMUM_VOLUME_BYTES = 16 << 40  # what ext4 does with blocks of 4 KiB and 32-bit numbers
BLOCK_BYTES = 4096
FILESYSTEMS = ("ext4",)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}")


def require_possible(request: VolumeRequest, default_bytes: int = DEFAULT_VOLUME_BYTES) -> None:
    """Raises InvalidError, UnsupportedError."""
    subject = f"volume {request.name!r}"
    require_name(request.name, "volume")
    if request.driver not in ("", LOCAL):
        raise UnsupportedError(
            f"there is no driver {request.driver!r}", subject=subject, hint=f"known: {LOCAL}"
        )
    if request.filesystem and request.filesystem not in FILESYSTEMS:
        raise UnsupportedError(
            f"there is no file system {request.filesystem!r}",
            subject=subject,
            hint=f"known: {', '.join(FILESYSTEMS)}",
        )
    if request.options:
        raise InvalidError(
            f"the driver {LOCAL} has no option {sorted(request.options)[0]!r}",
            subject=subject,
            hint="it has none",
        )
    require_size(request.size_bytes or default_bytes, subject)


def require_name(name: str, kind: str) -> None:
    """Raises InvalidError."""
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"is not a {kind}'s name",
            subject=repr(name)[:200],
            hint="2 to 128 letters, digits, `_`, `.` and `-`, the first a letter or a digit",
        )


def require_size(size_bytes: int, subject: str) -> None:
    """Raises InvalidError."""
    if not MINIMUM_VOLUME_BYTES <= size_bytes <= MAXIMUM_VOLUME_BYTES:
        raise InvalidError(
            f"{size_bytes} bytes are not between {MINIMUM_VOLUME_BYTES >> 20} MiB and"
            f" {MAXIMUM_VOLUME_BYTES >> 40} TiB",
            subject=subject,
        )


def require_growth(name: str, size_bytes: int, wanted_bytes: int) -> int:
    """Of what there is; the size it gets. Raises InvalidError: what lies beyond a smaller one would be lost."""
    subject = f"volume {name}"
    require_size(wanted_bytes, subject)
    wanted_bytes = whole_blocks(wanted_bytes)
    if wanted_bytes < whole_blocks(size_bytes):
        raise InvalidError(
            f"does not become smaller: {wanted_bytes} bytes are less than the {size_bytes} it has",
            subject=subject,
            hint="make a smaller one and copy what is in it: `hyper run -v OLD:/old:ro -v NEW:/new ... cp -a`",
        )
    return wanted_bytes


def require_same(request: VolumeRequest, there: Row) -> None:
    """As Docker: creating what is there is no error, creating something else of that name is."""
    size_bytes = whole_blocks(request.size_bytes)
    other_size = size_bytes and size_bytes != there.size_bytes
    if other_size or (request.labels and request.labels != there.labels):
        raise ExistsError(
            "there is one of that name with another size or other labels",
            subject=f"volume {there.name}",
            hint=f"`hyper volume inspect {there.name}` shows it",
        )
    if request.snapshot:
        raise ExistsError(
            "there is one of that name",
            subject=f"volume {there.name}",
            hint="another name, or remove it first",
        )


def whole_blocks(size_bytes: int) -> int:
    return size_bytes - size_bytes % BLOCK_BYTES
