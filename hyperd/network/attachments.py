# SPDX-License-Identifier: Apache-2.0
"""What a sandbox asks of a network, and what it is told that it has, in the model's words."""

from ipaddress import IPv4Address

from hyperd.errors import InvalidError
from hyperd.model.network import Attachment, Endpoint, parse_address6
from hyperd.network.leases import Lease, Wish
from hyperd.network.plugs import address6_in
from hyperd.network.resolver import read_resolver
from hyperd.network.settings import BridgeSettings


def wish_of(endpoint: Endpoint, slot: int) -> Wish:
    """Raises InvalidError."""
    address = IPv4Address(endpoint.address) if endpoint.address else None
    try:
        address6 = parse_address6(endpoint.address6) if endpoint.address6 else None
    except ValueError as error:  # an earlier hyperd recorded one with a scope
        raise InvalidError(f"is no IPv6 address: {error}", subject=f"network {endpoint.network}") from error
    return Wish(address, endpoint.mac_address.lower(), slot, address6, endpoint.gateway_priority)


def attachment_of(
    lease: Lease, settings: BridgeSettings, mtu: int, gateway_priority: int, *, asks_here: bool
) -> Attachment:
    """``asks_here``: the gateway answers its questions for names."""
    resolver = read_resolver()
    return Attachment(
        sandbox_id=lease.sandbox_id,
        network=settings.name,
        tap=lease.tap,
        mac=lease.mac,
        address=str(lease.address),
        prefix_length=settings.subnet.prefixlen,
        gateway=str(settings.gateway),
        mtu=mtu,
        dns_servers=(str(settings.gateway),) if asks_here else resolver.servers,
        dns_searches=resolver.searches,
        dns_options=resolver.options,
        slot=lease.slot,
        internal=settings.internal,
        gateway_priority=gateway_priority,
        address6=str(address6_in(lease, settings) or ""),
        prefix_length6=settings.subnet6.prefixlen if settings.subnet6 else 0,
        gateway6=str(settings.gateway6 or ""),
    )
