# SPDX-License-Identifier: Apache-2.0
"""From a network as asked for to one that can be made: its name looked at, its subnet chosen, its settings filled in;
and how users find one. Pure.
"""

import contextlib
import dataclasses
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hyperd.errors import ExhaustedError, HyperError, InvalidError, NotFoundError
from hyperd.model.network import DEFAULT_NETWORK, NetworkSpec, NetworkView, parse_address6
from hyperd.network.bridge import HostRoute, require_free
from hyperd.network.settings import MOST_MTU, BridgeSettings

_AMAZON = IPv6Network("fd00:ec2::/32")  # its machines ask there for credentials
POOL = IPv4Network("10.214.0.0/16")  # of which networks that name no subnet get a /24 each
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_RESERVED = (DEFAULT_NETWORK, "none", "host", "default", "container")


def require_name(name: str) -> None:
    """Raises InvalidError for what no network that users make can be called."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise InvalidError(
            "is not a name for a network",
            subject=repr(name),
            hint="a name is a letter or digit, then letters, digits, `_`, `.` and `-`, 63 at the most; "
            f"{', '.join(sorted(_RESERVED))} are taken",
        )


def find_view(views: Sequence[NetworkView], reference: str) -> NetworkView:
    """By name, id or the unique beginning of one. Raises NotFoundError, InvalidError."""
    for view in views:
        if reference in (view.spec.name, view.network_id):
            return view
    matching = [view for view in views if reference and view.network_id.startswith(reference)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise InvalidError(f"{len(matching)} networks begin with it", subject=repr(reference))
    raise no_such(reference)


def no_such(name: str) -> NotFoundError:
    return NotFoundError("no such network", subject=f"network {name}", hint="`hyper network ls` lists all")


def choose_subnet(
    spec: NetworkSpec, others: Collection[BridgeSettings], routes: Sequence[HostRoute]
) -> IPv4Network:
    """Raises InvalidError, ExhaustedError."""
    if spec.subnet:
        subnet = parse_subnet(spec.subnet)
        for other in others:
            if subnet.overlaps(other.subnet):
                raise InvalidError(
                    f"overlaps {other.subnet} of network {other.name}", subject=f"subnet {subnet}"
                )
        return subnet
    for candidate in POOL.subnets(new_prefix=24):
        if any(candidate.overlaps(other.subnet) for other in others):
            continue
        with contextlib.suppress(HyperError):
            require_free(candidate, routes, "")
            return candidate
    raise ExhaustedError(f"no part of {POOL} is free", hint="give a --subnet")


def choose_subnet6(
    spec: NetworkSpec, others: Collection[BridgeSettings], routes: Sequence[IPv6Network]
) -> IPv6Network | None:
    """None: without IPv6. Else as asked for, or a /64 of a prefix of our own (RFC 4193, 3.2). Raises InvalidError."""
    if not spec.ipv6 and not spec.subnet6:
        return None
    taken = [other.subnet6 for other in others if other.subnet6 is not None]
    if not spec.subnet6:
        while True:  # one in 2^40 is taken
            chosen = IPv6Network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64))
            if not any(chosen.overlaps(other) for other in (*taken, *routes)) and not chosen.overlaps(
                _AMAZON
            ):
                return chosen
    subnet6 = parse_subnet6(spec.subnet6)
    for network in taken:
        if subnet6.overlaps(network):
            raise InvalidError(f"overlaps {network} of another network", subject=f"subnet {subnet6}")
    for route in routes:
        if subnet6.overlaps(route):
            raise InvalidError(f"the host has a route to {route}", subject=f"subnet {subnet6}")
    return subnet6


def filled(
    spec: NetworkSpec, subnet: IPv4Network, subnet6: IPv6Network | None, base: BridgeSettings
) -> BridgeSettings:
    """With all but the bridge's name. Raises InvalidError for what does not fit together."""
    gateway, ip_range = None, None
    with _as_invalid("gateway", spec.gateway):
        gateway = IPv4Address(spec.gateway) if spec.gateway else None
    with _as_invalid("range", spec.ip_range):
        ip_range = IPv4Network(spec.ip_range) if spec.ip_range else None
    with _as_invalid("gateway", spec.gateway6, version=6):
        gateway6 = parse_address6(spec.gateway6) if spec.gateway6 else None
    return dataclasses.replace(
        base,
        name=spec.name,
        bridge="hyb",
        subnet=subnet,
        mtu=spec.mtu,
        gateway_address=gateway,
        ip_range=ip_range,
        internal=spec.internal,
        has_names=True,
        subnet6=subnet6,
        gateway_address6=gateway6,
    )


def settings_of(view: NetworkView, base: BridgeSettings) -> BridgeSettings:
    """Of one that users made."""
    spec = view.spec
    subnet6 = parse_subnet6(spec.subnet6) if spec.subnet6 else None
    spec = dataclasses.replace(spec, mtu=min(spec.mtu, MOST_MTU))  # an earlier hyperd made more of them
    made = filled(spec, parse_subnet(spec.subnet), subnet6, base)
    return dataclasses.replace(made, bridge=view.bridge)


def view_of(settings: BridgeSettings) -> NetworkView:
    """Of the default one."""
    spec = NetworkSpec(settings.name, str(settings.subnet), str(settings.gateway), mtu=settings.mtu)
    return NetworkView(spec, "0" * 64, settings.bridge, None)


def spec_of(asked: NetworkSpec, settings: BridgeSettings) -> NetworkSpec:
    """With what was chosen."""
    return dataclasses.replace(
        asked,
        subnet=str(settings.subnet),
        gateway=str(settings.gateway),
        ipv6=settings.subnet6 is not None,
        subnet6=str(settings.subnet6 or ""),
        gateway6=str(settings.gateway6 or ""),
    )


def parse_subnet(text: str) -> IPv4Network:
    """Raises InvalidError."""
    with _as_invalid("subnet", text):
        return IPv4Network(text)


def parse_subnet6(text: str) -> IPv6Network:
    """Raises InvalidError."""
    with _as_invalid("subnet", text, version=6):
        parse_address6(text.partition("/")[0])
        return IPv6Network(text)


@contextlib.contextmanager
def _as_invalid(what: str, text: str, *, version: int = 4) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidError(f"is no IPv{version} {what}: {error}", subject=repr(text)) from error
