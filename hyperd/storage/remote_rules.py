# SPDX-License-Identifier: Apache-2.0
"""Which disk a remote volume is, from the options of its driver. Pure.

nbd     server=HOST[:PORT]  export=NAME
iscsi   server=HOST[:PORT]  target=IQN  lun=N  user=NAME  password-file=PATH
rbd     server=HOST[:PORT][,...]  pool=NAME  image=NAME  namespace=NAME  user=NAME  key-file=PATH
all     format=true|false
"""

import re
from collections.abc import Callable, Mapping

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.vm import NbdExport
from hyperd.model.volume import ISCSI, LOCAL, NBD, RBD
from hyperd.storage.remote_disks import IscsiDisk, RbdDisk, Server

DRIVERS = (NBD, ISCSI, RBD)
PORTS = 1 << 16
MAX_LUN = (1 << 14) - 1
MAX_MONITORS = 15
_DEFAULT_PORTS = {NBD: 10809, ISCSI: 3260, RBD: 0}  # of a monitor, Ceph tries both that it has
_OPTIONS = {
    NBD: ("server", "export", "format"),
    ISCSI: ("server", "target", "lun", "user", "password-file", "format"),
    RBD: ("server", "pool", "image", "namespace", "user", "key-file", "format"),
}
# Of drivers that there are elsewhere: what to do here.
_INSTEAD = {
    "nfs": "mount it on the host and give it as a directory: `-v /mnt/nfs/dir:/data`; many may write to it",
    "cifs": "mount it on the host and give it as a directory: `-v /mnt/share:/data`",
}
_SERVER = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:]{2,39}\])(?::(\d{1,5}))?")
_EXPORT = re.compile(r"[A-Za-z0-9_./-]{0,255}")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,222}")  # RFC 3720, 3.2.6.1; neither `,` nor `=`
_USER = re.compile(r"[A-Za-z0-9_.@:+-]{1,128}")
_RBD_USER = re.compile(r"(?!client\.)[A-Za-z0-9_.-]{1,96}")
_RBD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,96}")  # of those that Ceph takes: neither `/`, `@` nor `,`
_PATH = re.compile(r"/[^\0]{1,4095}")


def no_driver(driver: str, subject: str) -> UnsupportedError:
    known = f"known: {', '.join((LOCAL, *DRIVERS))}"
    return UnsupportedError(
        f"there is no driver {driver[:100]!r}", subject=subject, hint=_INSTEAD.get(driver, known)
    )


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
    if options.get("format", "false") not in ("true", "false"):
        raise InvalidError("format is neither true nor false", subject=subject)
    return Server(_PARSERS[driver](options, subject)), options.get("format") == "true"


def _parse_nbd(options: Mapping[str, str], subject: str) -> NbdExport:
    host, port = _parse_server(options.get("server", ""), _DEFAULT_PORTS[NBD], subject)
    export = options.get("export", "")
    _require(_EXPORT, export, "export's name", "letters, digits, `_`, `.`, `/` and `-`", subject)
    return NbdExport(host, port, export)


def _parse_iscsi(options: Mapping[str, str], subject: str) -> IscsiDisk:
    host, port = _parse_server(options.get("server", ""), _DEFAULT_PORTS[ISCSI], subject)
    target, lun = options.get("target", ""), options.get("lun", "0")
    _require(_TARGET, target, "target's name", "-o target=iqn.2026-01.org.example:disk", subject)
    if not (lun.isascii() and lun.isdigit() and len(lun) < 6 and int(lun) <= MAX_LUN):
        raise InvalidError(
            f"{lun[:100]!r} is no logical unit", subject=subject, hint=f"a number up to {MAX_LUN}"
        )
    user, password_file = _parse_user(options, "password", subject)
    if user:
        _require(_USER, user, "user's name", "letters, digits and `_.@:+-`", subject)
    return IscsiDisk(host, port, target, int(lun), user, password_file)


def _parse_rbd(options: Mapping[str, str], subject: str) -> RbdDisk:
    servers = options.get("server", "").split(",")
    if len(servers) > MAX_MONITORS:
        raise InvalidError(f"more than {MAX_MONITORS} monitors", subject=subject, hint="some of them will do")
    monitors = tuple(_parse_server(each, _DEFAULT_PORTS[RBD], subject) for each in servers)
    pool, image, namespace = (options.get(key, "") for key in ("pool", "image", "namespace"))
    for name, kind in ((pool, "pool"), (image, "image"), (namespace or "-", "namespace")):
        _require(_RBD_NAME, name, f"{kind}'s name", f"-o {kind}=NAME: letters, digits, `_.-`", subject)
    user, key_file = _parse_user(options, "key", subject)
    if user:
        _require(
            _RBD_USER, user, "user's name", "the NAME of client.NAME: letters, digits and `_.-`", subject
        )
    return RbdDisk(monitors, pool, image, namespace, user, key_file)


def _parse_server(text: str, default_port: int, subject: str) -> tuple[str, int]:
    server = _SERVER.fullmatch(text)
    if server is None or (server[2] and not 0 < int(server[2]) < PORTS):
        raise InvalidError(f"{text[:300]!r} is no server", subject=subject, hint="-o server=HOST[:PORT]")
    return server[1].strip("[]"), int(server[2] or default_port)


def _parse_user(options: Mapping[str, str], secret: str, subject: str) -> tuple[str, str]:
    """A name, and the path of the file with the ``secret``; both or neither."""
    user, path = options.get("user", ""), options.get(f"{secret}-file", "")
    if bool(user) != bool(path):
        raise InvalidError(
            f"a user and a {secret} belong together",
            subject=subject,
            hint=f"-o user=NAME -o {secret}-file=PATH",
        )
    if user:
        _require(_PATH, path, "absolute path", "a file of the host's that root can read", subject)
    return user, path


def _require(pattern: "re.Pattern[str]", text: str, what: str, hint: str, subject: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidError(f"{text[:100]!r} is no {what}", subject=subject, hint=hint)


_PARSERS: Mapping[str, Callable[[Mapping[str, str], str], NbdExport | IscsiDisk | RbdDisk]] = {
    NBD: _parse_nbd,
    ISCSI: _parse_iscsi,
    RBD: _parse_rbd,
}
