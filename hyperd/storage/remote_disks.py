# SPDX-License-Identifier: Apache-2.0
"""Disks that servers have: where each is, who asks for it, and which spellings are one disk. Pure."""

import ipaddress
from dataclasses import dataclass

from hyperd.model.vm import NbdExport
from hyperd.model.volume import ISCSI, NBD, RBD

_LOOPBACK = "localhost"
_LOOPBACK_NAMES = frozenset({_LOOPBACK, "ip6-localhost", "localhost.localdomain"})
_LOOPBACK_ADDRESSES = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))


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
        return f"iscsi://{_address(self.host, self.port)}/{self.target}/{self.lun}"

    @property
    def portal(self) -> str:
        return _address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class RbdDisk:
    """An image of a Ceph cluster's, and who asks for it. The key is in a file of the host's."""

    monitors: tuple[tuple[str, int], ...]  # host and port; port 0: Ceph's own two
    pool: str
    image: str
    namespace: str = ""
    user: str = ""
    key_file: str = ""

    def __str__(self) -> str:
        return f"rbd://{self.monitor_addresses}/{self.path}"

    @property
    def path(self) -> str:
        return "/".join(part for part in (self.pool, self.namespace, self.image) if part)

    @property
    def monitor_addresses(self) -> str:
        """As `mon host` of a ceph.conf has them."""
        return ",".join(_address(host, port) for host, port in self.monitors)


@dataclass(frozen=True, slots=True)
class Server:
    """A disk of a server's."""

    disk: NbdExport | IscsiDisk | RbdDisk

    def __str__(self) -> str:
        return str(self.disk)

    @property
    def identities(self) -> frozenset[str]:
        """Two that have one in common are one disk: of a cluster, any of its monitors says which it is.

        The same for all spellings of a server: `localhost`, `127.0.0.1` and `::1`, capitals, forms of an address.
        Names are not looked up: a server has as many as somebody gives it, and others tomorrow.
        """
        disk = self.disk
        if isinstance(disk, RbdDisk):
            hosts = {canonical_host(host) for host, _port in disk.monitors}
            return frozenset(f"{RBD} {host} {disk.path}" for host in hosts)
        host = canonical_host(disk.host)
        if isinstance(disk, IscsiDisk):
            return frozenset({f"{ISCSI} {host} {disk.port} {disk.target.lower()} {disk.lun}"})
        return frozenset({f"{NBD} {host} {disk.port} {disk.name}"})

    def is_same(self, other: "Server") -> bool:
        return not self.identities.isdisjoint(other.identities)


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


def _address(host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host
