# SPDX-License-Identifier: Apache-2.0
"""What a volume may be. Pure."""

import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hyperd.errors import ExistsError, InvalidError, UnsupportedError
from hyperd.model.vm import NbdExport
from hyperd.model.volume import LOCAL, NBD, SHARED, VolumeRequest

if TYPE_CHECKING:  # the records ask for these rules, too
    from hyperd.storage.volume_records import Row

DEFAULT_VOLUME_BYTES = 10 << 30
MINIMUM_VOLUME_BYTES = 16 << 20
MAXIMUM_VOLUME_BYTES = 16 << 40  # what ext4 does with blocks of 4 KiB and 32-bit numbers
BLOCK_BYTES = 4096
FILESYSTEMS = ("ext4", SHARED)
NBD_PORT = 10809
PORTS = 1 << 16
_LOOPBACK = "localhost"
_LOOPBACK_NAMES = frozenset({_LOOPBACK, "ip6-localhost", "localhost.localdomain"})
_LOOPBACK_ADDRESSES = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
_SERVER = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:]{2,39}\])(?::(\d{1,5}))?")
_EXPORT = re.compile(r"[A-Za-z0-9_./-]{0,255}")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}")


def require_possible(request: VolumeRequest, default_bytes: int = DEFAULT_VOLUME_BYTES) -> None:
    """Raises InvalidError, UnsupportedError."""
    subject = f"volume {request.name!r}"
    require_name(request.name, "volume")
    if request.driver == NBD:
        _require_remote(request, subject)
        return
    if request.driver not in ("", LOCAL):
        raise UnsupportedError(
            f"there is no driver {request.driver!r}", subject=subject, hint=f"known: {LOCAL}, {NBD}"
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
    if request.filesystem != SHARED:
        require_size(request.size_bytes or default_bytes, subject)
    elif request.size_bytes or request.snapshot:
        raise InvalidError(
            "is a directory of the host's: it has no size of its own, and is made from no snapshot",
            subject=subject,
            hint="a file system of the host's with a quota bounds it",
        )


def _require_remote(request: VolumeRequest, subject: str) -> None:
    parse_export(request.options, subject)
    if request.size_bytes:
        raise InvalidError("is as large as its server says", subject=subject, hint="leave --size out")
    if request.snapshot:
        raise UnsupportedError(
            "a disk of a server's does not begin as a snapshot",
            subject=subject,
            hint="its server may make copies",
        )
    if request.filesystem and request.filesystem != FILESYSTEMS[0]:
        raise UnsupportedError(
            f"there is no file system {request.filesystem!r}",
            subject=subject,
            hint=f"known: {FILESYSTEMS[0]}",
        )


def parse_export(options: Mapping[str, str], subject: str) -> tuple[NbdExport, bool]:
    """And whether it is to be formatted. Raises InvalidError."""
    unknown = sorted(set(options) - {"server", "export", "format"})
    if unknown:
        raise InvalidError(
            f"the driver {NBD} has no option {unknown[0]!r}",
            subject=subject,
            hint="known: server, export, format",
        )
    server = _SERVER.fullmatch(options.get("server", ""))
    if server is None or not 0 < int(server[2] or NBD_PORT) < PORTS:
        raise InvalidError(
            f"{options.get('server', '')!r} is no server", subject=subject, hint="-o server=HOST[:PORT]"
        )
    export = options.get("export", "")
    if not _EXPORT.fullmatch(export):
        raise InvalidError(
            f"{export[:100]!r} is no export's name",
            subject=subject,
            hint="letters, digits, `_`, `.`, `/` and `-`",
        )
    if options.get("format", "false") not in ("true", "false"):
        raise InvalidError("format is neither true nor false", subject=subject)
    return NbdExport(server[1].strip("[]"), int(server[2] or NBD_PORT), export), options.get(
        "format"
    ) == "true"


def identity(export: NbdExport) -> NbdExport:
    """The same for all spellings of a server: `localhost`, `127.0.0.1` and `::1`, capitals, forms of an address.

    Names are not looked up: a server has as many as somebody gives it, and others tomorrow.
    """
    host = export.host.lower().removesuffix(".")
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host)
    except ValueError:
        return NbdExport(_LOOPBACK if host in _LOOPBACK_NAMES else host, export.port, export.name)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    # Whoever connects to no address in particular comes to this host, too.
    is_here = address.is_unspecified or address in _LOOPBACK_ADDRESSES
    return NbdExport(_LOOPBACK if is_here else str(address), export.port, export.name)


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
    if driver != there.driver or (driver == NBD and _export_of(request.options) != _export_of(there.options)):
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


def _export_of(options: Mapping[str, str]) -> NbdExport:
    return identity(parse_export(options, "")[0])


def whole_blocks(size_bytes: int) -> int:
    return size_bytes - size_bytes % BLOCK_BYTES
