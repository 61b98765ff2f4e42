# SPDX-License-Identifier: Apache-2.0
"""What a network's name server knows by itself: its containers. Pure.

Each name, of as many labels as it has, may have the network's name behind it; `host.hyper.internal` is the host. What
it does not know of a single label, of hyper.internal or of its own subnet, nobody else does either: those questions
leave the host never. All else may be somebody's, also what ends like the network's name: that may be `com`.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from hyperd.model.network import Named

Address = IPv4Address | IPv6Address
TTL_S = 1  # a container that starts again may have another address
HOST = "host.hyper.internal"
_OWN = "hyper.internal"
_MAX_ANSWERS = 32


@dataclass(frozen=True, slots=True)
class Zone:
    """Of one network."""

    name: str
    subnet: IPv4Network
    gateway: IPv4Address
    addresses: dict[str, tuple[Address, ...]] = field(default_factory=dict)  # by lower-case name
    names: dict[Address, str] = field(default_factory=dict)
    others: "tuple[Zone, ...]" = ()  # of further networks that whoever asks is on
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    links: dict[str, tuple[Address, ...]] = field(
        default_factory=dict
    )  # of whoever asks, by lower-case alias
    is_outward: bool = True  # what is not known here is asked of others


def zone_of(
    name: str,
    subnet: IPv4Network,
    gateway: IPv4Address,
    named: Iterable[Named],
    subnet6: IPv6Network | None = None,
    gateway6: IPv6Address | None = None,
) -> Zone:
    addresses: dict[str, tuple[Address, ...]] = {}
    names: dict[Address, str] = {}
    for entry in named:
        if entry.network != name:
            continue
        own = addresses_of(entry)
        names.update((address, entry.names[0]) for address in own)
        for label in dict.fromkeys(text.lower() for text in entry.names):
            addresses[label] = (*addresses.get(label, ()), *own)
    return Zone(name, subnet, gateway, addresses, names, subnet6=subnet6, gateway6=gateway6)


def addresses_of(entry: Named) -> tuple[Address, ...]:
    return (IPv4Address(entry.address), *([IPv6Address(entry.address6)] if entry.address6 else []))


def answer(zone: Zone, query: dns.message.Message) -> dns.message.Message | None:
    """None: others are to be asked."""
    question = query.question[0]
    if question.rdclass != dns.rdataclass.IN:
        return refusal(query, dns.rcode.REFUSED)
    text = question.name.to_text(omit_final_dot=True).lower()
    zones = (zone, *zone.others)
    reverse = _address_of(question.name)
    for each in zones:
        if reverse is not None and _is_within(reverse, each):
            found = HOST if reverse in (each.gateway, each.gateway6) else each.names.get(reverse)
            target = found if found == HOST or found is None else f"{found}.{each.name}"
            return _reply(query, dns.rdatatype.PTR, [f"{target}."] if target else None)
    if text == HOST:
        return _addresses(query, [zone.gateway, *([zone.gateway6] if zone.gateway6 else [])])
    known = list(zone.links.get(text, ())) or [
        address for each in zones for name in _meant(text, each) for address in each.addresses.get(name, ())
    ]
    if not known:
        is_ours = "." not in text or text.endswith(f".{_OWN}")
        return refusal(query, dns.rcode.NXDOMAIN) if is_ours or text == _OWN else None
    random.shuffle(known)
    return _addresses(query, known)


def _addresses(query: dns.message.Message, known: Sequence[Address]) -> dns.message.Message:
    """Of the kind that is asked for; a name that has only another is there all the same."""
    version = 6 if query.question[0].rdtype == dns.rdatatype.AAAA else 4
    kind = dns.rdatatype.AAAA if version == 6 else dns.rdatatype.A
    chosen = [str(address) for address in known if address.version == version]
    return _reply(query, kind, chosen[:_MAX_ANSWERS] if known else None)


def _is_within(address: Address, zone: Zone) -> bool:
    if isinstance(address, IPv4Address):
        return address in zone.subnet
    return zone.subnet6 is not None and address in zone.subnet6


def _meant(text: str, zone: Zone) -> Iterable[str]:
    """What it may be called in that network: so, or with the network's name behind it."""
    return dict.fromkeys((text, text.removesuffix(f".{zone.name.lower()}")))


def refusal(query: dns.message.Message, code: dns.rcode.Rcode) -> dns.message.Message:
    made = dns.message.make_response(query, recursion_available=True)
    made.set_rcode(code)
    return made


def _reply(
    query: dns.message.Message, kind: dns.rdatatype.RdataType, values: list[str] | None
) -> dns.message.Message:
    """None: there is no such name; another kind of record than ``kind`` it has none of."""
    if values is None:
        return refusal(query, dns.rcode.NXDOMAIN)
    made = dns.message.make_response(query, recursion_available=True)
    made.flags |= dns.flags.AA
    question = query.question[0]
    if question.rdtype in (kind, dns.rdatatype.ANY) and values:
        made.answer.append(dns.rrset.from_text(question.name, TTL_S, dns.rdataclass.IN, kind, *values))
    return made


def _address_of(name: dns.name.Name) -> Address | None:
    domains = (dns.reversename.ipv4_reverse_domain, dns.reversename.ipv6_reverse_domain)
    if not any(name.is_subdomain(domain) for domain in domains):
        return None
    try:
        return ip_address(dns.reversename.to_address(name))
    except (AddressValueError, ValueError, dns.exception.DNSException):
        return None
