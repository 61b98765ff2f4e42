# SPDX-License-Identifier: Apache-2.0
"""What nftables is told of policies: for each network that has a sandbox with one, a table of its own. Pure.

A packet finds its sandbox's rules by the tap, in a map; of a connection that is known nothing more is asked. So its way
grows neither with the sandboxes nor, but for its first packet, with the length of a policy.

Text is made so that it can be told over and over: what a table has learned, and counted, stays.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from hyperd.model.policy import EgressMode, EgressPolicy, SecurityGroup, Service
from hyperd.network.elements import Element, padded
from hyperd.network.policy import group_rules
from hyperd.network.policy.group_rules import PORTED, ROUTED, render_service
from hyperd.network.policy.wire import Wire
from hyperd.network.tap import JUDGED

SPEAKERS, RATES, DROPPED = "speakers", "rate_of", "dropped"
SENT = "sent"  # the chain that everything from a tap with a policy passes
OUTWARD, REFUSING, BEGUN, HEARD = "outward_of", "refusing_of", "begun_of", "heard_of"
_LEAST_BURST_BYTES = 128 << 10  # a guest sends up to 64 KiB in one piece
MAX_DROPPING = 65535  # taps: more than a bridge takes, for one that is not counted is not dropped
MAX_LEARNED = 4096  # addresses of one sandbox and service
MAX_BLOCKED = 1024  # destinations of one sandbox that are counted
KEPT_S = 7 * 24 * 3600  # since the last attempt
Learned = Mapping[Service, Mapping[IPv4Address, int]]  # for how many seconds yet
_LINK_LOCAL = IPv4Network("169.254.0.0/16")
# Sets that the rules of all look up. Elements that are added again stay as they are.
NOWHERE, NAMING = "nowhere", "naming"
_SHARED = {
    PORTED: ("type inet_proto;", "tcp, udp"),
    NAMING: ("type inet_service;", "53, 853"),
    NOWHERE: (
        "type ipv4_addr; flags interval;",
        "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4",
    ),
}


@dataclass(frozen=True, slots=True)
class Judged:
    """A wire, and what holds for it."""

    wire: Wire
    egress: EgressPolicy
    groups: tuple[SecurityGroup, ...] = ()


def table_of(base: str) -> str:
    """``base``: the network's own table."""
    return f"{base}_policy"


def render_base(base: str, wires_of: Wire, *, internal: bool) -> str:
    """The table with its hooks, as it has to be before the first wire. ``wires_of``: any of the network."""
    table, subnet = f"inet {table_of(base)}", wires_of.subnet
    hooks = {
        "names": "nat hook prerouting priority -101",
        SENT: "filter hook prerouting priority -300",
        "begun": "filter hook forward priority -3",
        "outward": "filter hook forward priority -2",
        "inward": "filter hook forward priority -1",
        "host": "filter hook input priority -1",
    }
    lines = [
        f"add table {table}",
        f"add set {table} {ROUTED} {{ type ifname; }}",
        *(f"add set {table} {name} {{ {kind} }}" for name, (kind, _) in _SHARED.items()),
        *(f"add element {table} {name} {{ {found} }}" for name, (_, found) in _SHARED.items()),
        f"add set {table} {SPEAKERS} {{ type ifname . ipv4_addr; }}",
        f"add map {table} {RATES} {{ type ifname : limit; }}",
        f"add set {table} {DROPPED} {{ type ifname; size {MAX_DROPPING}; flags dynamic; counter; }}",
        *(
            f"add map {table} {name} {{ type ifname : verdict; }}"
            for name in (OUTWARD, REFUSING, BEGUN, HEARD)
        ),
        *(f"add chain {table} {name} {{ type {hook}; policy accept; }}" for name, hook in hooks.items()),
        *(f"flush chain {table} {name}" for name in hooks),
    ]
    refuse = ["meta l4proto tcp counter reject with tcp reset", "counter reject with icmpx admin-prohibited"]
    known = "ct state established,related accept"
    rules = {
        SENT: [
            f"iifname @{ROUTED} meta nfproto != ipv4 counter drop",
            f"iifname @{ROUTED} iifname . ip saddr != @{SPEAKERS} counter drop",
            f"iifname @{ROUTED} ip daddr 127.0.0.0/8 counter drop",
            f"limit name iifname map @{RATES} update @{DROPPED} {{ iifname counter }} drop",
            f"iifname @{ROUTED} meta mark set meta mark | {JUDGED:#x}",  # nothing goes on without; see nat
        ],
        "names": [  # whomever it asks
            f"iifname @{ROUTED} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {wires_of.gateway}"
        ],
        "begun": [f"iifname != @{ROUTED} accept", known, f"iifname vmap @{BEGUN}", *refuse],
        "outward": [
            f"iifname != @{ROUTED} accept",
            known,
            *([f"ip daddr != {subnet} iifname vmap @{REFUSING}"] if internal else []),
            f"iifname vmap @{OUTWARD}",
            *refuse,  # a wire without its rules
        ],
        "inward": [
            f"oifname != @{ROUTED} accept",
            known,
            f"oifname vmap @{HEARD}",
            "counter drop",
        ],
        "host": [
            f"iifname != @{ROUTED} accept",
            known,
            "icmp type echo-request accept",
            f"ip daddr {wires_of.gateway} meta l4proto {{ tcp, udp }} th dport 53 accept",
            f"iifname vmap @{REFUSING}",
            *refuse,
        ],
    }
    lines += [f"add rule {table} {chain} {rule}" for chain, told in rules.items() for rule in told]
    return "\n".join(lines) + "\n"


def render_wire(base: str, judged: Judged, *, forgets: bool = False) -> str:
    """A wire's own chains and sets, made anew from its policy; what is counted stays.

    ``forgets``: what its names stood for does not.
    """
    table, tap = f"inet {table_of(base)}", judged.wire.name
    counted = f"size {MAX_BLOCKED}; flags dynamic,timeout; timeout {KEPT_S}s; counter;"
    chains = {
        _outward(tap): [*_egress(tap, judged.egress), f"goto {_refusing(tap)}"],
        _begun(tap): group_rules.begun(judged.groups, _refusing(tap)),
        _heard(tap): group_rules.heard(judged.groups, judged.wire.bridge, judged.wire.subnet),
        _refusing(tap): _refusal(tap),
    }
    names = [learned_set(tap, service) for service in services_of(judged.egress)]
    return "\n".join(
        [
            f"add set {table} {blocked_set(tap)} {{ type ipv4_addr . inet_proto . inet_service; {counted} }}",
            f"add set {table} {other_set(tap)} {{ type ipv4_addr . inet_proto; {counted} }}",
            *(_learned(table, name) for name in names),
            *(f"flush set {table} {name}" for name in names if forgets),
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
            f"delete set {table} {blocked_set(tap)}",
            f"delete set {table} {other_set(tap)}",
            *(f"delete set {table} {learned_set(tap, service)}" for service in services_of(judged.egress)),
            render_stale(base, judged, earlier),
        ]
    )


def render_stale(base: str, judged: Judged, earlier: Iterable[EgressPolicy]) -> str:
    """Sets that policies before this one had, taken out, whatever of them is there."""
    table, tap, now = f"inet {table_of(base)}", judged.wire.name, set(services_of(judged.egress))
    stale = {service for policy in earlier for service in services_of(policy)} - now
    lines = []
    for name in sorted({learned_set(tap, service) for service in stale}):
        lines += [_learned(table, name), f"delete set {table} {name}"]
    return "\n".join([*lines, ""])


def render_none(base: str) -> str:
    """The table taken out, there or not."""
    return f"add table inet {table_of(base)}\ndelete table inet {table_of(base)}\n"


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
    return [
        *(Element(where, name, goto=chain) for where, chain in chains.items()),
        Element(SPEAKERS, padded(name, wire.address.packed)),
        Element(ROUTED, name),
    ]


def blocked_set(tap: str) -> str:
    """Of TCP and UDP: address, protocol, port."""
    return f"blocked_{tap}"


def other_set(tap: str) -> str:
    """Of the rest: address, protocol."""
    return f"others_{tap}"


def learned_set(tap: str, service: Service) -> str:
    """The addresses that names allowed for this service stand for."""
    return f"named_{tap}_{group_rules.digest(str(service))}"


def _learned(table: str, name: str) -> str:
    return f"add set {table} {name} {{ type ipv4_addr; flags timeout; size {MAX_LEARNED}; }}"


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


def _refusal(tap: str) -> Iterator[str]:
    key = "ip daddr . meta l4proto"
    yield f"meta l4proto @{PORTED} update @{blocked_set(tap)} {{ {key} . th dport counter }}"
    yield f"meta l4proto != @{PORTED} update @{other_set(tap)} {{ {key} counter }}"
    yield "meta l4proto tcp reject with tcp reset"
    yield "reject with icmpx admin-prohibited"


def _egress(tap: str, policy: EgressPolicy) -> Iterator[str]:
    """What is let through, of what begins here."""
    if policy.mode is EgressMode.NONE:
        return
    if policy.mode is EgressMode.ALLOW_ALL:
        yield f"ip daddr != @{NOWHERE} accept"
        return
    yield f"meta l4proto @{PORTED} th dport @{NAMING} goto {_refusing(tap)}"
    for rule in policy.rules:
        beside = [network for network in rule.networks if network.subnet_of(_LINK_LOCAL)]
        if beside:
            yield f"ip daddr {_addresses(beside)} {render_service(rule.service)}accept"
    yield f"ip daddr @{NOWHERE} goto {_refusing(tap)}"
    for rule in policy.rules:
        if rule.networks:
            yield f"ip daddr {_addresses(rule.networks)} {render_service(rule.service)}accept"
    for rule in policy.rules:
        for group in rule.groups:
            yield f"ip daddr @{group_rules.members_set(group)} {render_service(rule.service)}accept"
    for service in services_of(policy):
        yield f"ip daddr @{learned_set(tap, service)} {render_service(service)}accept"


def _addresses(networks: Iterable[IPv4Network]) -> str:
    """Apart from each other, which a set of ranges has to be."""
    apart: list[IPv4Network] = []
    for network in sorted(networks, key=lambda network: network.prefixlen):
        if not any(network.subnet_of(wider) for wider in apart):
            apart.append(network)
    return f"{{ {', '.join(map(str, sorted(apart)))} }}"
