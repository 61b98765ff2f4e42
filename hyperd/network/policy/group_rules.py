# SPDX-License-Identifier: Apache-2.0
"""What nftables is told of security groups: whom a wire hears, and whom it may speak to. Pure.

Whoever has a group hears what its groups let in, and nothing else. It may begin what they let out, once one of them
says anything of that; what its egress policy says holds besides.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from hyperd.model.policy import Direction, EgressPolicy, GroupRule, SecurityGroup, Service
from hyperd.network.elements import Element

ROUTED = "routed"  # the set of taps with a policy
PORTED = "ported"  # and that of protocols with ports: one for all, for the kernel goes through a list to find a set


def digest(text: str) -> str:
    """Of what is too long for the name of a set: one that nobody finds another text of."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def members_set(group: str) -> str:
    """The addresses of those who have it, in one network."""
    return f"members_{digest(group)}"


def render_members(table: str, groups: Iterable[str]) -> str:
    """The sets, there from now on."""
    return "".join(
        f"add set {table} {members_set(group)} {{ type ipv4_addr; }}\n" for group in sorted(groups)
    )


def members_of(groups: Mapping[str, Iterable[IPv4Address]]) -> list[Element]:
    return [
        Element(members_set(group), address.packed) for group, known in groups.items() for address in known
    ]


def referred(groups: Iterable[SecurityGroup], egress: EgressPolicy) -> set[str]:
    """Groups whose members somebody's rules speak of."""
    found = {rule.group for group in groups for rule in group.rules if rule.group}
    return found | {name for rule in egress.rules for name in rule.groups}


def heard(groups: Iterable[SecurityGroup], bridge: str, subnet: IPv4Network) -> Iterator[str]:
    """Of what others begin. An address of the network's counts only where it comes from the network.

    Whoever else begins comes by what is published, or not at all: nothing behind these rules would stop him.
    """
    published = "ct status dnat"
    within = tuple(f"{where} ip saddr {subnet}" for where in (f'iifname "{bridge}"', f"iifname @{ROUTED}"))
    groups = tuple(groups)
    if not groups:
        yield from (f"{where} accept" for where in (published, *within))
        yield "counter drop"
        return
    for rule in _of(groups, Direction.INGRESS):
        for where in within if rule.group else (published, *within):
            yield f"{where} {_whom('saddr', rule)}{render_service(rule.service)}accept"
    yield "meta l4proto tcp counter reject with tcp reset"
    yield "counter reject with icmpx admin-prohibited"


def begun(groups: Iterable[SecurityGroup], refusing: str) -> Iterator[str]:
    """Of what it begins itself. ``refusing``: the chain that refuses it."""
    rules = list(_of(groups, Direction.EGRESS))
    for rule in rules:
        yield f"{_whom('daddr', rule)}{render_service(rule.service)}accept"
    yield f"goto {refusing}" if rules else "accept"


def render_service(service: Service) -> str:
    if service.ports and service.protocol == "icmp":
        return f"meta l4proto icmp icmp type {{ {', '.join(map(str, service.ports))} }} "
    if service.ports:
        protocol = service.protocol or f"@{PORTED}"
        return f"meta l4proto {protocol} th dport {{ {', '.join(map(str, service.ports))} }} "
    return f"meta l4proto {service.protocol} " if service.protocol else ""


def _of(groups: Iterable[SecurityGroup], direction: Direction) -> Iterator[GroupRule]:
    for group in groups:
        for rule in group.rules:
            if rule.direction is direction:
                yield rule


def _whom(side: str, rule: GroupRule) -> str:
    if rule.group:
        return f"ip {side} @{members_set(rule.group)} "
    return f"ip {side} {rule.network} " if rule.network is not None else ""
