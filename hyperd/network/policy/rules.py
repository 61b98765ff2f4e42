# SPDX-License-Identifier: Apache-2.0
"""What nftables is told of a wire's policy: chains and sets of its own, in its network's table (``hooks``). Pure.

Text is made so that it can be told over and over: what a table has learned, and counted, stays.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from hyperd.model.policy import AnyNetwork, EgressMode, EgressPolicy, SecurityGroup, Service
from hyperd.network.elements import Element, padded
from hyperd.network.policy import group_rules
from hyperd.network.policy.group_rules import PORTED, ROUTED, WORDS, render_service, suffix
from hyperd.network.policy.hooks import (
    BEGUN,
    DROPPED,
    HEARD,
    NAMING,
    OUTWARD,
    RATES,
    REFUSING,
    SPEAKERS,
    SPEAKERS6,
    TARGETS6,
    table_of,
)
from hyperd.network.policy.wire import Wire
from hyperd.network.settings import Address

_METADATA = (IPv4Network("169.254.0.0/16"), IPv6Network("fd00:ec2::/32"))
_LEAST_BURST_BYTES = 128 << 10  # a guest sends up to 64 KiB in one piece
MAX_LEARNED = 4096  # addresses of one sandbox and service
MAX_BLOCKED = 1024  # destinations of one sandbox that are counted
KEPT_S = 7 * 24 * 3600  # since the last attempt
Learned = Mapping[Service, Mapping[Address, int]]  # for how many seconds yet


@dataclass(frozen=True, slots=True)
class Judged:
    """A wire, and what holds for it."""

    wire: Wire
    egress: EgressPolicy
    groups: tuple[SecurityGroup, ...] = ()

    @property
    def versions(self) -> tuple[int, ...]:
        """Families that the wire has."""
        return (4, 6) if self.wire.ipv6 else (4,)


def render_wire(base: str, judged: Judged, *, forgets: bool = False) -> str:
    """A wire's own chains and sets, made anew from its policy; what is counted stays.

    ``forgets``: what its names stood for does not.
    """
    table, tap, versions = f"inet {table_of(base)}", judged.wire.name, judged.versions
    chains = {
        _outward(tap): [*_egress(tap, judged.egress, versions), f"goto {_refusing(tap)}"],
        _begun(tap): group_rules.begun(judged.groups, _refusing(tap), versions),
        _heard(tap): group_rules.heard(judged.groups, judged.wire.bridge, judged.wire.subnets),
        _refusing(tap): _refusal(tap, versions),
    }
    names = [
        (learned_set(tap, service, version), version)
        for service in services_of(judged.egress)
        for version in versions
    ]
    return "\n".join(
        [
            *_counted(table, tap, versions),
            *(_learned(table, name, version) for name, version in names),
            *(f"flush set {table} {name}" for name, _ in names if forgets),
            *(f"add chain {table} {chain}" for chain in chains),
            *(f"flush chain {table} {chain}" for chain in chains),
            *(f"add rule {table} {chain} {rule}" for chain, rules in chains.items() for rule in rules),
            *_rate(table, judged.wire),
            "",
        ]
    )


def render_gone(base: str, judged: Judged, earlier: Iterable[EgressPolicy] = ()) -> str:
    """A wire's chains and sets taken out, whatever of them is there, when its elements are. The table has to be."""
    table, tap = f"inet {table_of(base)}", judged.wire.name
    chains = (_outward(tap), _begun(tap), _heard(tap), _refusing(tap))
    return render_wire(base, judged) + "\n".join(
        [
            *(f"flush chain {table} {chain}" for chain in chains),
            *(f"delete chain {table} {chain}" for chain in chains),
            *_no_rate(table, judged.wire),
            *(
                f"delete set {table} {name}"
                for version in judged.versions
                for name in (
                    blocked_set(tap, version),
                    other_set(tap, version),
                    *(learned_set(tap, service, version) for service in services_of(judged.egress)),
                )
            ),
            render_stale(base, judged, earlier),
        ]
    )


def render_stale(base: str, judged: Judged, earlier: Iterable[EgressPolicy]) -> str:
    """Sets that policies before this one had, taken out, whatever of them is there."""
    table, tap, now = f"inet {table_of(base)}", judged.wire.name, set(services_of(judged.egress))
    stale = {service for policy in earlier for service in services_of(policy)} - now
    lines = []
    for service in sorted(stale, key=str):
        for version in judged.versions:
            name = learned_set(tap, service, version)
            lines += [_learned(table, name, version), f"delete set {table} {name}"]
    return "\n".join([*lines, ""])


def services_of(policy: EgressPolicy) -> list[Service]:
    """Those that names are allowed for."""
    return sorted({rule.service for rule in policy.rules if rule.domains}, key=str)


def elements_of(wire: Wire) -> list[Element]:
    """What leads a wire's packets to its chains. Messages of our own put them in: nft would read every set before."""
    name = wire.name.encode().ljust(16, b"\0")
    chains = {
        OUTWARD: _outward(wire.name),
        BEGUN: _begun(wire.name),
        HEARD: _heard(wire.name),
        REFUSING: _refusing(wire.name),
    }
    own6 = (wire.ipv6.address, wire.ipv6.of_link) if wire.ipv6 else ()
    return [
        *(Element(where, name, goto=chain) for where, chain in chains.items()),
        Element(SPEAKERS, padded(name, wire.address.packed)),
        *(Element(where, padded(name, each.packed)) for where in (SPEAKERS6, TARGETS6) for each in own6),
        Element(ROUTED, name),
    ]


def blocked_set(tap: str, version: int = 4) -> str:
    """Of TCP and UDP: address, protocol, port."""
    return f"blocked{suffix(version)}_{tap}"


def other_set(tap: str, version: int = 4) -> str:
    """Of the rest: address, protocol."""
    return f"others{suffix(version)}_{tap}"


def learned_set(tap: str, service: Service, version: int = 4) -> str:
    """The addresses that names allowed for this service stand for."""
    return f"named{suffix(version)}_{tap}_{group_rules.digest(str(service))}"


def _learned(table: str, name: str, version: int) -> str:
    return f"add set {table} {name} {{ type ipv{version}_addr; flags timeout; size {MAX_LEARNED}; }}"


def _counted(table: str, tap: str, versions: Iterable[int]) -> Iterator[str]:
    how = f"size {MAX_BLOCKED}; flags dynamic,timeout; timeout {KEPT_S}s; counter;"
    for version in versions:
        address = f"ipv{version}_addr"
        ported, other = blocked_set(tap, version), other_set(tap, version)
        yield f"add set {table} {ported} {{ type {address} . inet_proto . inet_service; {how} }}"
        yield f"add set {table} {other} {{ type {address} . inet_proto; {how} }}"


def _rate(table: str, wire: Wire) -> Iterator[str]:
    if wire.rate_out:
        burst_bytes = max(_LEAST_BURST_BYTES, wire.rate_out // 8)
        rate = f"rate over {wire.rate_out} bytes/second burst {burst_bytes} bytes"
        yield f"add limit {table} rate_{wire.name} {{ {rate} ; }}"
        yield f'add element {table} {RATES} {{ "{wire.name}" : "rate_{wire.name}" }}'


def _no_rate(table: str, wire: Wire) -> Iterator[str]:
    if wire.rate_out:
        yield f'delete element {table} {RATES} {{ "{wire.name}" }}'
        yield f"delete limit {table} rate_{wire.name}"
        yield f'add element {table} {DROPPED} {{ "{wire.name}" }}'
        yield f'delete element {table} {DROPPED} {{ "{wire.name}" }}'


def _begun(tap: str) -> str:
    return f"begun_{tap}"


def _heard(tap: str) -> str:
    return f"heard_{tap}"


def _outward(tap: str) -> str:
    return f"from_{tap}"


def _refusing(tap: str) -> str:
    return f"refuse_{tap}"


def _refusal(tap: str, versions: Iterable[int]) -> Iterator[str]:
    for version in versions:
        key = f"{WORDS[version]} daddr . meta l4proto"
        yield f"meta l4proto @{PORTED} update @{blocked_set(tap, version)} {{ {key} . th dport counter }}"
        yield f"meta l4proto != @{PORTED} update @{other_set(tap, version)} {{ {key} counter }}"
    yield "meta l4proto tcp reject with tcp reset"
    yield "reject with icmpx admin-prohibited"


def _egress(tap: str, policy: EgressPolicy, versions: Iterable[int]) -> Iterator[str]:
    """What is let through, of what begins here."""
    if policy.mode is EgressMode.NONE:
        return
    nowhere = {version: f"{WORDS[version]} daddr {{}}@nowhere{suffix(version)}" for version in versions}
    if policy.mode is EgressMode.ALLOW_ALL:
        yield from (f"{there.format('!= ')} accept" for there in nowhere.values())
        return
    yield f"meta l4proto @{PORTED} th dport @{NAMING} goto {_refusing(tap)}"
    yield from _to_networks(policy, versions, only_metadata=True)
    yield from (f"{there.format('')} goto {_refusing(tap)}" for there in nowhere.values())
    yield from _to_networks(policy, versions)
    for rule in policy.rules:
        for group in rule.groups:
            members = {version: group_rules.members_set(group, version) for version in versions}
            yield from _to_sets(rule.service, members)
    for service in services_of(policy):
        yield from _to_sets(service, {version: learned_set(tap, service, version) for version in versions})


def _to_networks(
    policy: EgressPolicy, versions: Iterable[int], *, only_metadata: bool = False
) -> Iterator[str]:
    """``only_metadata``: ranges within that of a cloud's metadata, which a wider one does not open."""
    for rule in policy.rules:
        for version in versions:
            service = render_service(rule.service, version)
            networks = [network for network in rule.networks if network.version == version]
            if only_metadata:
                networks = [network for network in networks if _is_metadata(network)]
            if networks and service is not None:
                yield f"{WORDS[version]} daddr {_addresses(networks)} {service}accept"


def _to_sets(service: Service, sets: Mapping[int, str]) -> Iterator[str]:
    """``sets``: one of each family."""
    for version, name in sets.items():
        told = render_service(service, version)
        if told is not None:
            yield f"{WORDS[version]} daddr @{name} {told}accept"


def _is_metadata(network: AnyNetwork) -> bool:
    if isinstance(network, IPv4Network):
        return network.subnet_of(_METADATA[0])
    return network.subnet_of(_METADATA[1])


def _addresses(networks: Iterable[AnyNetwork]) -> str:
    """Apart from each other, which a set of ranges has to be. Of one family."""
    apart: list[AnyNetwork] = []
    for network in sorted(networks, key=lambda network: network.prefixlen):
        if not any(network.network_address in wider for wider in apart):
            apart.append(network)
    apart.sort(key=lambda network: int(network.network_address))
    return f"{{ {', '.join(map(str, apart))} }}"
