# SPDX-License-Identifier: Apache-2.0
"""At which addresses of the host a port is published, as asked for. Pure.

Where nothing is said, at all of the host's: of both families where the network has IPv6, as with Docker.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.network import PortRequest, requests_of
from hyperd.network.forwards import Forward, Inside
from hyperd.network.settings import ANY, ANY6, Address

_BROADCAST = IPv4Address("255.255.255.255")


def places(request: PortRequest, default: IPv4Address, inside: Inside) -> tuple[Address, ...]:
    """One, or one of each family, then with one port. Raises InvalidError, UnsupportedError."""
    if not request.host_ip:
        return (ANY, ANY6) if default == ANY and inside.address6 else (default,)
    try:
        host_ip = ip_address(request.host_ip)
    except ValueError as error:
        raise InvalidError("is not an IP address", subject=repr(request.host_ip)) from error
    if host_ip.is_multicast or host_ip == _BROADCAST:
        raise InvalidError("is not an address of this host", subject=str(host_ip))
    if isinstance(host_ip, IPv6Address):
        _require_led(host_ip, inside)
    return (host_ip,)


def _require_led(host_ip: IPv6Address, inside: Inside) -> None:
    if host_ip.ipv4_mapped or host_ip.is_link_local or host_ip.scope_id:
        raise InvalidError(
            "is no address that leads to a container",
            subject=f"host address {host_ip}",
            hint="give an address of this host that is not of one link alone, or an IPv4 address as such",
        )
    if inside.address6 is None:
        raise UnsupportedError(
            "the container has no IPv6 on its network, so nothing is published at an IPv6 address",
            subject=f"host address {host_ip}",
            hint="make a network with `hyper network create --ipv6`",
        )


def requests_again(forwards: Iterable[Forward], *, has_ipv6: bool) -> list[PortRequest]:
    """What publishes these for one that is on another network by now: at the same addresses, of families it has."""
    forwards = tuple(forwards)
    anywhere = dict.fromkeys(
        PortRequest(one.container_port, one.protocol, "", one.host_port)
        for one in forwards
        if one.is_anywhere
    )
    somewhere = requests_of(one.published for one in forwards if not one.is_anywhere)
    return [*anywhere, *(one for one in somewhere if has_ipv6 or ":" not in one.host_ip)]


def are_as_asked(
    forwards: Iterable[Forward], requests: Sequence[PortRequest], inside: Inside, default: IPv4Address
) -> bool:
    """Whether ``forwards``, all of a sandbox's, are what publishing ``requests`` for ``inside`` might have made."""
    left = dict.fromkeys(forwards)
    # Those that leave no choice first: they must not find theirs given to one that would take any.
    for request in sorted(requests, key=lambda request: (not request.host_port, request.host_port_end)):
        host_ips = places(request, default, inside)
        first, last = request.host_port or 1, max(request.host_port, request.host_port_end) or 65535
        numbers = [first] if first == last else [f.host_port for f in left if first <= f.host_port <= last]
        for number in numbers:
            wanted = [inside.forward(request, host_ip, number) for host_ip in host_ips]
            if all(forward in left for forward in wanted):
                for forward in wanted:
                    del left[forward]
                break
        else:
            return False
    return not left
