# SPDX-License-Identifier: Apache-2.0
"""From a network as asked for to one that can be made: its subnet chosen, its settings filled in. Pure."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

from hyperd.errors import ExhaustedError, HyperError, InvalidError
from hyperd.model.network import NetworkSpec
from hyperd.network.bridge import HostRoute, require_free
from hyperd.network.settings import BridgeSettings

POOL = IPv4Network("10.214.0.0/16")  # of which networks that name no subnet get a /24 each


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


def filled(spec: NetworkSpec, subnet: IPv4Network, base: BridgeSettings) -> BridgeSettings:
    """With all but the bridge's name. Raises InvalidError for what does not fit together."""
    gateway, ip_range = None, None
    with _as_invalid("gateway", spec.gateway):
        gateway = IPv4Address(spec.gateway) if spec.gateway else None
    with _as_invalid("range", spec.ip_range):
        ip_range = IPv4Network(spec.ip_range) if spec.ip_range else None
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
    )


def spec_of(asked: NetworkSpec, settings: BridgeSettings) -> NetworkSpec:
    """With what was chosen."""
    return dataclasses.replace(asked, subnet=str(settings.subnet), gateway=str(settings.gateway))


def parse_subnet(text: str) -> IPv4Network:
    """Raises InvalidError."""
    with _as_invalid("subnet", text):
        return IPv4Network(text)


@contextlib.contextmanager
def _as_invalid(what: str, text: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        hint = "IPv6 is not there yet" if ":" in text else ""
        raise InvalidError(f"is no IPv4 {what}: {error}", subject=repr(text), hint=hint) from error
