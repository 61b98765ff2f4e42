# SPDX-License-Identifier: Apache-2.0
"""Which name servers a guest gets: those of the host that a guest can reach. Pure but for ``read_resolver``.

A guest cannot reach the host's loopback, so a stub there (systemd-resolved's 127.0.0.53) is replaced by the servers
that the stub itself asks. Guests are given servers of IPv4 only. What hyperd asks for them it asks as the host does.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, ip_address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
SYSTEMD_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")  # systemd-resolved.service(8)
_MAX_SERVERS = 3  # resolv.conf(5): MAXNS
_MAX_SEARCHES = 32
_BY_DEFAULT = ("127.0.0.1",)  # resolv.conf(5)
_MAX_FILE_BYTES = 64 * 1024
_DOMAIN = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_OPTION = re.compile(r"[A-Za-z0-9:_-]{1,64}")
_STUB_OPTIONS = frozenset({"edns0", "trust-ad"})  # what systemd-resolved's stub promises, and others may not


@dataclass(frozen=True, slots=True)
class Resolver:
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> Resolver:
    """resolv.conf(5), keeping the servers that a guest can reach; what is not understood is left out."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values and _is_reachable(values[0]):
            servers.append(values[0])
        elif keyword in ("search", "domain"):  # the last one counts
            searches = [value for value in values if _DOMAIN.fullmatch(value)]
        elif keyword == "options":
            options += [value for value in values if _OPTION.fullmatch(value)]
    unique = tuple(dict.fromkeys(servers))
    return Resolver(unique[:_MAX_SERVERS], tuple(searches[:_MAX_SEARCHES]), tuple(dict.fromkeys(options)))


def choose_resolver(main: str, behind_stub: str) -> Resolver:
    """``main``: /etc/resolv.conf; ``behind_stub``: systemd-resolved's own list, "" when it does not run."""
    chosen = parse_resolv_conf(main)
    if chosen.servers:
        return chosen
    behind = parse_resolv_conf(behind_stub)
    options = tuple(option for option in chosen.options if option not in _STUB_OPTIONS)
    return Resolver(behind.servers, chosen.searches or behind.searches, options)


def host_servers(text: str) -> tuple[str, ...]:
    """Those that the host itself asks, of whatever family, by its resolv.conf(5)."""
    found = [
        values[0]
        for keyword, *values in (line.split() or [""] for line in text.splitlines())
        if keyword == "nameserver" and values and _is_address(values[0])
    ]
    return tuple(dict.fromkeys(found))[:_MAX_SERVERS] or _BY_DEFAULT


def read_host_servers() -> tuple[str, ...]:
    """As the host is now."""
    return host_servers(_read(RESOLV_CONF))


def read_resolver() -> Resolver:
    """As the host is now: it may have moved to another network since the last time."""
    return choose_resolver(_read(RESOLV_CONF), _read(SYSTEMD_RESOLV_CONF))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _is_address(server: str) -> bool:
    try:
        address = ip_address(server)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast)


def _is_reachable(server: str) -> bool:
    try:
        address = IPv4Address(server)
    except AddressValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)
