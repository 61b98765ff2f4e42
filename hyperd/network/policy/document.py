# SPDX-License-Identifier: Apache-2.0
"""An egress policy as people write it. Pure; every error names the line.

allow:
  - domain: pypi.org              # or a list of them
    ports: 443                    # or a list: [80, 443, 8000-8100]; left out: all
  - domain: "*.pythonhosted.org"  # what is beneath it, not itself; "*": any
    protocol: tcp                 # tcp, udp or icmp; left out: any
  - cidr: [192.0.2.0/24, 198.51.100.7, "2001:db8::/32"]
  - group: db                     # the sandboxes of a security group, on the same network
"""

import re
from collections.abc import Iterable
from ipaddress import ip_network

from hyperd.errors import InvalidError
from hyperd.model.policy import AnyNetwork, EgressMode, EgressPolicy, EgressRule, PortRange, Service
from hyperd.network.policy.nodes import Node, Reader

MAX_RULES = 256  # of one policy
_KEYS = ("domain", "cidr", "group", "protocol", "ports")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_GROUP = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


def parse_egress(text: str, subject: str = "egress policy") -> EgressPolicy:
    """``text``: none, allow-all, or a document. Raises InvalidError."""
    reader = Reader(subject)
    root = reader.compose(text)
    word = reader.word(root)
    if word in (EgressMode.NONE, EgressMode.ALLOW_ALL):
        return EgressPolicy(EgressMode(word))
    if word is not None:
        raise reader.wrong(root, f"{word!r} is not none, allow-all or a list of rules")
    top = reader.mapping(root, ("allow",))
    missing = "there is no list of rules under `allow:`"
    listed = reader.sequence(top.get("allow"), root, missing, MAX_RULES)
    return EgressPolicy(EgressMode.LISTED, tuple(_rule(reader, node) for node in listed))


def parse_ports(text: str) -> PortRange:
    """Raises ValueError."""
    match = _PORTS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{text!r} is not a port, or FIRST-LAST")
    return PortRange(first, last)


def merged(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The same ports, in order, no two ranges that touch."""
    found: list[PortRange] = []
    for port in sorted(ranges):
        if found and port.first <= found[-1].last + 1:
            found[-1] = PortRange(found[-1].first, max(found[-1].last, port.last))
        else:
            found.append(port)
    return tuple(found)


def parse_domain(text: str) -> str:
    """Raises ValueError."""
    name = text.lower().removesuffix(".")
    beneath = name.removeprefix("*.")
    if name == "*":
        return name
    if len(beneath) > 253 or not all(_LABEL.fullmatch(label) for label in beneath.split(".")):
        hint = "" if text.isascii() else "; write it as it is on the wire: xn--..."
        raise ValueError(f"{text!r} is not a domain name, *.NAME or *{hint}")
    return name


def parse_network(text: str) -> AnyNetwork:
    """Raises ValueError."""
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no network: {error}") from error
    if network.version == 6 and "%" in text:
        raise ValueError(f"{text!r} is of one interface alone")
    return network


def parse_group(text: str) -> str:
    """Raises ValueError."""
    if not _GROUP.fullmatch(text):
        raise ValueError(f"{text!r} is not a name for a security group")
    return text


def _rule(reader: Reader, node: Node) -> EgressRule:
    keys = reader.mapping(node, _KEYS)
    if not {"domain", "cidr", "group"} & keys.keys():
        raise reader.wrong(node, "a rule needs a domain, a cidr or a group")
    protocol = reader.one(keys, "protocol").lower()
    if protocol not in ("", "tcp", "udp", "icmp"):
        raise reader.wrong(keys["protocol"], f"{protocol!r} is not tcp, udp or icmp")
    if protocol == "icmp" and "ports" in keys:
        raise reader.wrong(keys["ports"], "icmp has no ports")
    return EgressRule(
        domains=tuple(dict.fromkeys(reader.many(keys, "domain", parse_domain))),
        networks=tuple(dict.fromkeys(reader.many(keys, "cidr", parse_network))),
        groups=tuple(dict.fromkeys(reader.many(keys, "group", parse_group))),
        service=Service(protocol, merged(reader.many(keys, "ports", parse_ports))),
    )


def require_egress(text: str) -> None:
    """Raises InvalidError; `` "" `` is none."""
    if text:
        parse_egress(text)
    else:
        raise InvalidError("is empty", subject="egress policy", hint="`none` lets nothing out")
