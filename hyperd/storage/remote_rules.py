# SPDX-License-Identifier: Apache-2.0
"""Whose disk a remote volume is, from the options of its driver. Pure.

nbd     server=HOST[:PORT]  export=NAME  format=true|false
iscsi   server=HOST[:PORT]  target=IQN  lun=N  user=NAME  password-file=PATH  format=true|false
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.vm import NbdExport
from hyperd.model.volume import ISCSI, LOCAL, NBD

DRIVERS = (NBD, ISCSI)
PORTS = 1 << 16
MAX_LUN = (1 << 14) - 1
_DEFAULT_PORTS = {NBD: 10809, ISCSI: 3260}
_OPTIONS = {
    NBD: ("server", "export", "format"),
    ISCSI: ("server", "target", "lun", "user", "password-file", "format"),
}
# Of drivers that there are elsewhere: what to do here.
_INSTEAD = {
    "rbd": "`qemu-nbd -t -f raw -b 127.0.0.1 -x NAME rbd:POOL/IMAGE` where the cluster is known, and the driver nbd",
    "nfs": "mount it on the host and give it as a directory: `-v /mnt/nfs/dir:/data`; many may write to it",
    "cifs": "mount it on the host and give it as a directory: `-v /mnt/share:/data`",
}
_LOOPBACK = "localhost"
_LOOPBACK_NAMES = frozenset({_LOOPBACK, "ip6-localhost", "localhost.localdomain"})
_LOOPBACK_ADDRESSES = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
_SERVER = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:]{2,39}\])(?::(\d{1,5}))?")
_EXPORT = re.compile(r"[A-Za-z0-9_./-]{0,255}")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,222}")  # RFC 3720, 3.2.6.1; neither `,` nor `=`
_USER = re.compile(r"[A-Za-z0-9_.@:+-]{1,128}")
_PATH = re.compile(r"/[^\0]{1,4095}")


@dataclass(frozen=True, slots=True)
class IscsiDisk:
    """A logical unit of a target's, and who asks for it. The password is in a file of the host's."""

    host: str
    port: int
    target: str
    lun: int
    user: str = ""
    password_file: str = ""

    def __str__(self) -> str:
        return f"iscsi://{self.host}:{self.port}/{self.target}/{self.lun}"

    @property
    def portal(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Server:
    """A disk of a server's."""

    disk: NbdExport | IscsiDisk

    def __str__(self) -> str:
        return str(self.disk)

    @property
    def identity(self) -> str:
        """The same for all spellings of a server: `localhost`, `127.0.0.1` and `::1`, capitals, forms of an address.

        Names are not looked up: a server has as many as somebody gives it, and others tomorrow.
        """
        host, disk = canonical_host(self.disk.host), self.disk
        if isinstance(disk, IscsiDisk):
            return f"{ISCSI} {host} {disk.port} {disk.target.lower()} {disk.lun}"
        return f"{NBD} {host} {disk.port} {disk.name}"


def canonical_host(host: str) -> str:
    host = host.lower().removesuffix(".")
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host)
    except ValueError:
        return _LOOPBACK if host in _LOOPBACK_NAMES else host
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    # Whoever connects to no address in particular comes to this host, too.
    is_here = address.is_unspecified or address in _LOOPBACK_ADDRESSES
    return _LOOPBACK if is_here else str(address)


def no_driver(driver: str, subject: str) -> UnsupportedError:
    known = f"known: {', '.join((LOCAL, *DRIVERS))}"
    return UnsupportedError(
        f"there is no driver {driver[:100]!r}", subject=subject, hint=_INSTEAD.get(driver, known)
    )


def identity_of(driver: str, options: Mapping[str, str]) -> str:
    return parse(driver, options, "")[0].identity


def parse(driver: str, options: Mapping[str, str], subject: str) -> tuple[Server, bool]:
    """And whether it is to be formatted. Raises InvalidError, UnsupportedError."""
    if driver not in DRIVERS:
        raise no_driver(driver, subject)
    known = _OPTIONS[driver]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidError(
            f"the driver {driver} has no option {unknown[0]!r}",
            subject=subject,
            hint=f"known: {', '.join(known)}",
        )
    host, port = _parse_server(options.get("server", ""), _DEFAULT_PORTS[driver], subject)
    if options.get("format", "false") not in ("true", "false"):
        raise InvalidError("format is neither true nor false", subject=subject)
    disk = _parse_iscsi(host, port, options, subject) if driver == ISCSI else None
    if disk is None:
        export = options.get("export", "")
        _require(_EXPORT, export, "export's name", "letters, digits, `_`, `.`, `/` and `-`", subject)
        return Server(NbdExport(host, port, export)), options.get("format") == "true"
    return Server(disk), options.get("format") == "true"


def _parse_server(text: str, default_port: int, subject: str) -> tuple[str, int]:
    server = _SERVER.fullmatch(text)
    if server is None or not 0 < int(server[2] or default_port) < PORTS:
        raise InvalidError(f"{text[:300]!r} is no server", subject=subject, hint="-o server=HOST[:PORT]")
    return server[1].strip("[]"), int(server[2] or default_port)


def _parse_iscsi(host: str, port: int, options: Mapping[str, str], subject: str) -> IscsiDisk:
    target, lun = options.get("target", ""), options.get("lun", "0")
    user, password_file = options.get("user", ""), options.get("password-file", "")
    _require(_TARGET, target, "target's name", "-o target=iqn.2026-01.org.example:disk", subject)
    if not (lun.isascii() and lun.isdigit() and len(lun) < 6 and int(lun) <= MAX_LUN):
        raise InvalidError(
            f"{lun[:100]!r} is no logical unit", subject=subject, hint=f"a number up to {MAX_LUN}"
        )
    if bool(user) != bool(password_file):
        raise InvalidError(
            "a user and a password belong together",
            subject=subject,
            hint="-o user=NAME -o password-file=PATH",
        )
    if user:
        _require(_USER, user, "user's name", "letters, digits and `_.@:+-`", subject)
        _require(_PATH, password_file, "absolute path", "a file of the host's that root can read", subject)
    return IscsiDisk(host, port, target, int(lun), user, password_file)


def _require(pattern: "re.Pattern[str]", text: str, what: str, hint: str, subject: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidError(f"{text[:100]!r} is no {what}", subject=subject, hint=hint)
