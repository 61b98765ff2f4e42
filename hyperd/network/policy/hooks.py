# SPDX-License-Identifier: Apache-2.0
"""The table of a network that has sandboxes with policies: its hooks, and what the rules of all look up. Pure.

A packet finds its sandbox's rules (``rules``) by the tap, in a map; of a connection that is known nothing more is
asked. So its way grows neither with the sandboxes nor, but for its first packet, with the length of a policy.
"""

from collections.abc import Iterator

from hyperd.network.policy.group_rules import PORTED, ROUTED, WORDS
from hyperd.network.policy.wire import Ipv6, Wire
from hyperd.network.settings import Address
from hyperd.network.speakers import TARGET
from hyperd.network.tap import JUDGED

SPEAKERS, RATES, DROPPED = "speakers", "rate_of", "dropped"
SPEAKERS6, TARGETS6 = "speakers6", "targets6"
SENT = "sent"  # the chain that everything from a tap with a policy passes
HOOKS = {  # the chains that the kernel begins with
    "names": "nat hook prerouting priority -101",
    SENT: "filter hook prerouting priority -300",
    "begun": "filter hook forward priority -3",
    "outward": "filter hook forward priority -2",
    "inward": "filter hook forward priority -1",
    "host": "filter hook input priority -1",
}
OUTWARD, REFUSING, BEGUN, HEARD = "outward_of", "refusing_of", "begun_of", "heard_of"
MAX_DROPPING = 65535  # taps: more than a bridge takes, for one that is not counted is not dropped
# Sets that the rules of all look up. Elements that are added again stay as they are.
NOWHERE, NOWHERE6, NAMING = "nowhere", "nowhere6", "naming"
_SHARED = {
    PORTED: ("type inet_proto;", "tcp, udp"),
    NAMING: ("type inet_service;", "53, 853"),
    NOWHERE: (
        "type ipv4_addr; flags interval;",
        "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4",
    ),
}
# IPv4 in disguise as well: mapped, compatible, and as NAT64 (RFC 6052) would lead it to what is nowhere in IPv4.
_DISGUISED = (
    "::/32, 64:ff9b::/104, 64:ff9b::7f00:0/104, 64:ff9b::a9fe:0/112, 64:ff9b::e000:0/99, 64:ff9b:1::/48"
)
_SHARED6 = {
    NOWHERE6: (
        "type ipv6_addr; flags interval;",
        f"{_DISGUISED}, fd00:ec2::/32, fe80::/10, fec0::/10, ff00::/8",
    ),
}


def table_of(base: str) -> str:
    """``base``: the network's own table."""
    return f"{base}_policy"


def render_base(base: str, wires_of: Wire, *, internal: bool) -> str:
    """The table with its hooks, as it has to be before the first wire. ``wires_of``: any of the network."""
    table, six = f"inet {table_of(base)}", wires_of.ipv6
    shared = _SHARED | (_SHARED6 if six else {})
    lines = [
        f"add table {table}",
        f"add set {table} {ROUTED} {{ type ifname; }}",
        *(f"add set {table} {name} {{ {kind} }}" for name, (kind, _) in shared.items()),
        *(f"add element {table} {name} {{ {found} }}" for name, (_, found) in shared.items()),
        f"add set {table} {SPEAKERS} {{ type ifname . ipv4_addr; }}",
        *(_speakers6(table) if six else ()),
        f"add map {table} {RATES} {{ type ifname : limit; }}",
        f"add set {table} {DROPPED} {{ type ifname; size {MAX_DROPPING}; flags dynamic; counter; }}",
        *(
            f"add map {table} {name} {{ type ifname : verdict; }}"
            for name in (OUTWARD, REFUSING, BEGUN, HEARD)
        ),
        *(f"add chain {table} {name} {{ type {hook}; policy accept; }}" for name, hook in HOOKS.items()),
        *(f"flush chain {table} {name}" for name in HOOKS),
    ]
    refuse = ["meta l4proto tcp counter reject with tcp reset", "counter reject with icmpx admin-prohibited"]
    known = "ct state established,related accept"
    rules = {
        SENT: [
            *(_sent6(six) if six else [f"iifname @{ROUTED} meta nfproto != ipv4 counter drop"]),
            f"iifname @{ROUTED} iifname . ip saddr != @{SPEAKERS} counter drop",
            f"iifname @{ROUTED} ip daddr 127.0.0.0/8 counter drop",
            f"limit name iifname map @{RATES} update @{DROPPED} {{ iifname counter }} drop",
            f"iifname @{ROUTED} meta mark set meta mark | {JUDGED:#x}",  # nothing goes on without; see nat
        ],
        "names": [  # whomever it asks
            f"iifname @{ROUTED} {of}meta l4proto {{ tcp, udp }} th dport 53 dnat {word} to {gateway}"
            for of, word, gateway in _gateways(wires_of)
        ],
        "begun": [f"iifname != @{ROUTED} accept", known, f"iifname vmap @{BEGUN}", *refuse],
        "outward": [
            f"iifname != @{ROUTED} accept",
            known,
            *(
                f"{WORDS[each.version]} daddr != {each} iifname vmap @{REFUSING}"
                for each in wires_of.subnets
                if internal
            ),
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
            *(
                ["icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept"]
                if six
                else []
            ),
            *(
                f"{word} daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept"
                for _, word, gateway in _gateways(wires_of)
            ),
            f"iifname vmap @{REFUSING}",
            *refuse,
        ],
    }
    lines += [f"add rule {table} {chain} {rule}" for chain, told in rules.items() for rule in told]
    return "\n".join(lines) + "\n"


def render_none(base: str) -> str:
    """The table taken out, there or not."""
    return f"add table inet {table_of(base)}\ndelete table inet {table_of(base)}\n"


def _speakers6(table: str) -> Iterator[str]:
    yield f"add set {table} {SPEAKERS6} {{ type ifname . ipv6_addr; }}"
    yield f"add set {table} {TARGETS6} {{ typeof iifname . {TARGET}; }}"


def _sent6(own: Ipv6) -> Iterator[str]:
    """What a guest says at all, in IPv6: as itself; of its link what neighbours ask and answer, of itself alone."""
    routed = f"iifname @{ROUTED}"
    spoken = "{ nd-neighbor-solicit, nd-neighbor-advert }"
    yield f"{routed} meta nfproto != {{ ipv4, ipv6 }} counter drop"
    yield f"{routed} iifname . ip6 saddr != @{SPEAKERS6} counter drop"
    yield f"{routed} icmpv6 type {{ nd-router-advert, nd-redirect, mld-listener-query }} counter drop"
    yield f"{routed} icmpv6 type nd-neighbor-advert iifname . {TARGET} != @{TARGETS6} counter drop"
    yield f"{routed} ip6 saddr != {own.subnet} meta l4proto != ipv6-icmp counter drop"
    yield f"{routed} ip6 saddr != {own.subnet} icmpv6 type != {spoken} counter drop"


def _gateways(wires_of: Wire) -> Iterator[tuple[str, str, Address]]:
    """A match of the family, its word, and the gateway in it."""
    if wires_of.ipv6 is None:
        yield "", "ip", wires_of.gateway
        return
    yield "meta nfproto ipv4 ", "ip", wires_of.gateway
    yield "meta nfproto ipv6 ", "ip6", wires_of.ipv6.gateway
