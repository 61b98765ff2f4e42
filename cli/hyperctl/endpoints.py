# SPDX-License-Identifier: Apache-2.0
"""`--network` as Docker's run takes it: a name, or `name=NAME,ip=...`; and `NAME:ip=...` beside it. Several times."""

from collections.abc import Sequence

from hyper.v1 import container_pb2 as pb
from hyperctl import options
from hyperctl.errors import InvalidError

_FIELDS = ("name", "ip", "ip6", "alias", "mac-address", "gw-priority")


def parse_networks(
    texts: Sequence[str], *, ip: str = "", ip6: str = "", aliases: Sequence[str] = (), mac_address: str = ""
) -> list[pb.NetworkEndpoint]:
    """The flags beside it are of the first. Raises InvalidError."""
    endpoints = [parse_network(text) for text in texts] or [pb.NetworkEndpoint()]
    first = endpoints[0]
    for flag, field, given, own in (
        ("--ip", "ip", ip, first.address),
        ("--ip6", "ip6", ip6, first.address6),
        ("--network-alias", "alias", aliases, first.aliases),
        ("--mac-address", "mac-address", mac_address, first.mac_address),
    ):
        if given and own:  # docker/cli opts/network.go
            raise InvalidError(
                f"conflicting options: cannot specify both {flag} and per-network {field}",
                subject="--network",
            )
    first.address = first.address or ip
    first.address6 = first.address6 or ip6
    first.mac_address = first.mac_address or mac_address
    first.aliases.extend(aliases)
    return endpoints


def parse_network(text: str) -> pb.NetworkEndpoint:
    """Raises InvalidError."""
    head, colon, rest = text.partition(":")
    if "=" not in text:
        return pb.NetworkEndpoint(network=text)
    endpoint = pb.NetworkEndpoint(network=head if colon and "=" not in head else "")
    for field in (rest if endpoint.network else text).split(","):
        key, separator, value = field.partition("=")
        if not separator or not value or key not in _FIELDS:
            raise InvalidError(f"invalid field {field!r}: {', '.join(_FIELDS)}", subject=f"--network {text}")
        match key:
            case "name":
                endpoint.network = value
            case "ip":
                endpoint.address = value
            case "ip6":
                endpoint.address6 = value
            case "alias":
                endpoint.aliases.append(value)
            case "mac-address":
                endpoint.mac_address = value
            case "gw-priority":
                endpoint.gateway_priority = parse_priority(value)
    if not endpoint.network:
        raise InvalidError("network name is required", subject=f"--network {text}")
    return endpoint


def parse_priority(text: str) -> int:
    return options.parse_integer("gw-priority", text, minimum=-(2**31), maximum=2**31 - 1)
