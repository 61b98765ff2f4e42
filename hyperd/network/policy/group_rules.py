# SPDX-License-Identifier: Apache-2.0
"""What nftables is told of security groups: whom a wire hears, and whom it may speak to. Pure.

Whoever has a group hears what its groups let in, and nothing else. It may begin what they let out, once one of them
says anything of that; what its egress policy says holds besides.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hyperd.model.policy import AnyNetwork, Direction, EgressPolicy, GroupRule, SecurityGroup, Service
from hyperd.network.elements import Element
from hyperd.network.settings import Address

ROUTED = "routed"  # the set of taps with a policy
PORTED = "ported"  # and that of protocols with ports: one for all, for the kernel goes through a list to find a set
WORDS = {4: "ip", 6: "ip6"}  # nft's for a family


def suffix(version: int) -> str:
    """Of the names of what there is one of for each family."""
    return "6" if version == 6 else ""


def digest(text: str) -> str:
    """Of what is too long for the name of a set: one that nobody finds another text of."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def members_set(group: str, version: int = 4) -> str:
    """The addresses of those who have it, in one network."""
    return f"members{suffix(version)}_{digest(group)}"


def render_members(table: str, groups: Iterable[str], versions: Sequence[int] = (4,)) -> str:
    """The sets, there from now on."""
    return "".join(
        f"add set {table} {members_set(group, version)} {{ type ipv{version}_addr; }}\n"
        for group in sorted(groups)
        for version in versions
    )


def members_of(groups: Mapping[str, Iterable[Address]]) -> list[Element]:
    return [
        Element(members_set(group, address.version), address.packed)
        for group, known in groups.items()
        for address in known
    ]


def referred(groups: Iterable[SecurityGroup], egress: EgressPolicy) -> set[str]:
    """Groups whose members somebody's rules speak of."""
    found = {rule.group for group in groups for rule in group.rules if rule.group}
    return found | {name for rule in egress.rules for name in rule.groups}


def heard(groups: Iterable[SecurityGroup], bridge: str, subnets: Sequence[AnyNetwork]) -> Iterator[str]:
    """Of what others begin. An address of the network's counts only where it comes from the network.

    Whoever else begins comes by what is published, or not at all: nothing behind these rules would stop him.
    ``subnets``: of each family that the wire has.
    """
    published, places = "ct status dnat ", (f'iifname "{bridge}" ', f"iifname @{ROUTED} ")
    within = {
        subnet.version: [f"{place}{WORDS[subnet.version]} saddr {subnet} " for place in places]
        for subnet in subnets
    }
    groups = tuple(groups)
    if not groups:
        yield f"{published}accept"
        yield from (f"{where}accept" for told in within.values() for where in told)
        yield "counter drop"
        return
    for rule in _of(groups, Direction.INGRESS):
        yield from dict.fromkeys(
            f"{where}{whom}{service}accept"
            for version, told in within.items()
            for whom, service in _matches("saddr", rule, version)
            for where in (told if rule.group else (published, *told))
        )
    yield "meta l4proto tcp counter reject with tcp reset"
    yield "counter reject with icmpx admin-prohibited"


def begun(groups: Iterable[SecurityGroup], refusing: str, versions: Sequence[int] = (4,)) -> Iterator[str]:
    """Of what it begins itself. ``refusing``: the chain that refuses it."""
    rules = list(_of(groups, Direction.EGRESS))
    for rule in rules:
        yield from dict.fromkeys(
            f"{whom}{service}accept"
            for version in versions
            for whom, service in _matches("daddr", rule, version)
        )
    yield f"goto {refusing}" if rules else "accept"


def render_service(service: Service, version: int) -> str | None:
    """None: there is no such thing in this family."""
    if service.protocol in ("icmp", "icmpv6"):
        return _render_icmp(service, version)
    if service.ports:
        protocol = service.protocol or f"@{PORTED}"
        return f"meta l4proto {protocol} th dport {{ {', '.join(map(str, service.ports))} }} "
    return f"meta l4proto {service.protocol} " if service.protocol else ""


def _render_icmp(service: Service, version: int) -> str | None:
    """Types are numbers of one family's own."""
    if version != 6 and service.protocol == "icmpv6":
        return None
    if version == 6 and service.protocol == "icmp" and service.ports:
        return None
    l4proto, word = ("ipv6-icmp", "icmpv6") if version == 6 else ("icmp", "icmp")
    types = f"{word} type {{ {', '.join(map(str, service.ports))} }} " if service.ports else ""
    return f"meta l4proto {l4proto} {types}"


def _of(groups: Iterable[SecurityGroup], direction: Direction) -> Iterator[GroupRule]:
    for group in groups:
        for rule in group.rules:
            if rule.direction is direction:
                yield rule


def _matches(side: str, rule: GroupRule, version: int) -> Iterator[tuple[str, str]]:
    """Whom and what, in this family; nothing for a rule of the other."""
    service = render_service(rule.service, version)
    if service is None or (rule.network is not None and rule.network.version != version):
        return
    if rule.group:
        yield f"{WORDS[version]} {side} @{members_set(rule.group, version)} ", service
    elif rule.network is not None:
        yield f"{WORDS[version]} {side} {rule.network} ", service
    else:
        yield "", service
