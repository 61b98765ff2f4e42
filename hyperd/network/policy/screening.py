# SPDX-License-Identifier: Apache-2.0
"""Which names a sandbox with a policy may look up, and which of their addresses it is told. Pure.

An allowed name may stand for any public address, and is let through to it for as long as the answer holds. One that
stands for an address of a private range, of this host or of its neighbours would turn a rule about a name into a way
inside (DNS rebinding): such an address is left out, unless the policy names it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from hyperd.model.policy import EgressMode, EgressPolicy, Service
from hyperd.network.settings import Address
from hyperd.network.zone import refusal

LEAST_S, MOST_S, GRACE_S = (
    60,
    300,
    60,
)  # an address is held to for longer than its answer, which is cut to MOST_S
MAX_ADDRESSES = 64  # of one answer
_ASSIGNED = IPv6Network("2000::/3")  # what is given out at all
# Of it: what leads to an IPv4 address, by whatever relay, and what is for documents.
_NOT_ITSELF = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_KINDS = (dns.rdatatype.A, dns.rdatatype.AAAA)


@dataclass(frozen=True, slots=True)
class Sifted:
    """An answer as it is passed on. ``told``: its addresses, and for how many seconds they may be reached."""

    message: dns.message.Message
    told: tuple[tuple[Address, int], ...] = ()
    left_out: tuple[Address, ...] = ()


def services_for(policy: EgressPolicy, name: str) -> tuple[Service, ...]:
    """Those that an allowed name may be reached for; () when it is not allowed. ``name``: as in ``text_of``."""
    return tuple(
        dict.fromkeys(
            rule.service for rule in policy.rules if any(_matches(domain, name) for domain in rule.domains)
        )
    )


def may_look_up(policy: EgressPolicy, name: str) -> bool:
    return policy.mode is EgressMode.ALLOW_ALL or bool(services_for(policy, name))


def is_named(policy: EgressPolicy, address: Address) -> bool:
    """Whether it is in a range that the policy allows by itself."""
    return any(address in network for rule in policy.rules for network in rule.networks)


def is_public(address: Address) -> bool:
    """One of IPv6 that stands for one of IPv4 is as that is, where a translator may lead to it."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(address.packed[12:]))
        return address in _ASSIGNED and not any(address in network for network in _NOT_ITSELF)
    return address.is_global and not address.is_multicast


def sift(
    policy: EgressPolicy,
    answer: dns.message.Message,
    own: Collection[Address] = (),
    *,
    has_ipv6: bool = False,
) -> Sifted:
    """``own``: addresses that are no trap, since they come from our own zone."""
    if policy.mode is EgressMode.ALLOW_ALL:
        return Sifted(answer)
    told: dict[Address, int] = {}
    left_out: list[Address] = []
    kept = []
    for rrset in answer.answer:
        if rrset.rdtype == dns.rdatatype.AAAA and not has_ipv6:
            continue
        ttl = min(rrset.ttl, MOST_S)
        passed = dns.rrset.RRset(rrset.name, rrset.rdclass, rrset.rdtype)
        for rdata in rrset:
            if rrset.rdtype in _KINDS:
                address = ip_address(rdata.address)
                if address not in own and not is_public(address) and not is_named(policy, address):
                    left_out.append(address)
                    continue
                if len(told) >= MAX_ADDRESSES:
                    continue
                told[address] = max(ttl, LEAST_S) + GRACE_S
            passed.add(rdata, ttl)
        if len(passed):
            kept.append(passed)
    answer.answer, answer.additional = kept, []
    return Sifted(answer, tuple(told.items()), tuple(left_out))


def prohibited(query: dns.message.Message) -> dns.message.Message:
    """There is no such name, and to whoever speaks EDNS: why. REFUSED some resolvers take for no answer, and wait."""
    made = refusal(query, dns.rcode.NXDOMAIN)
    if query.edns >= 0:
        made.use_edns(0, payload=query.payload, options=[dns.edns.EDEOption(dns.edns.EDECode.PROHIBITED)])
    return made


def text_of(query: dns.message.Message) -> str:
    """The name that is asked for: lower case, without the last dot."""
    return query.question[0].name.to_text(omit_final_dot=True).lower()


def _matches(domain: str, name: str) -> bool:
    if domain == "*":
        return True
    if domain.startswith("*."):
        return name.endswith(domain[1:])
    return name == domain
