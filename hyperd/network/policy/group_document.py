# SPDX-License-Identifier: Apache-2.0
"""A security group as hyper.sh had it. Pure; every error names the line.

name: web                      # may be left out; else it is the one that the command says
description: what it is for
rules:
  - direction: ingress         # or egress
    protocol: tcp              # tcp, udp, icmp (with types: of IPv4), icmpv6; left out or "": any
    port_range_min: 22         # of icmp and icmpv6: types; left out: all
    port_range_max: 22         # left out: as the first
    remote_ip_prefix: 0.0.0.0/0
    remote_group_name: lb      # instead of the prefix; neither: from anywhere
"""

from hyperd.model.policy import Direction, GroupRule, PortRange, SecurityGroup, Service
from hyperd.network.policy.document import parse_group, parse_network
from hyperd.network.policy.nodes import Node, Reader

MAX_RULES = 256  # of one group
MAX_DESCRIPTION = 1024
_TOP = ("name", "description", "rules")
_KEYS = (
    "direction",
    "protocol",
    "port_range_min",
    "port_range_max",
    "remote_ip_prefix",
    "remote_group_name",
)


def parse_security_group(text: str, name: str = "", subject: str = "security group") -> SecurityGroup:
    """Raises InvalidError, also when the document is another's than ``name``."""
    reader = Reader(subject)
    root = reader.compose(text)
    top = reader.mapping(root, _TOP)
    own = reader.one(top, "name")
    if name and own and own != name:
        raise reader.wrong(top["name"], f"it is of {own!r}, not of {name!r}")
    named = reader.parsed(top.get("name", root), own or name, parse_group)
    description = reader.one(top, "description").strip()
    if len(description) > MAX_DESCRIPTION or not description.isprintable():
        raise reader.wrong(
            top["description"], f"the description is no line of at most {MAX_DESCRIPTION} characters"
        )
    listed = reader.sequence(top["rules"], root, "`rules` is no list", MAX_RULES) if "rules" in top else []
    return SecurityGroup(named, description, tuple(_rule(reader, node) for node in listed))


def _rule(reader: Reader, node: Node) -> GroupRule:
    keys = reader.mapping(node, _KEYS)
    direction = reader.one(keys, "direction").lower()
    if direction not in ("ingress", "egress"):
        raise reader.wrong(keys.get("direction", node), f"direction {direction!r} is not ingress or egress")
    if "remote_ip_prefix" in keys and "remote_group_name" in keys:
        raise reader.wrong(keys["remote_group_name"], "a rule has a prefix or a group, not both")
    networks = reader.many(keys, "remote_ip_prefix", parse_network)
    groups = reader.many(keys, "remote_group_name", parse_group)
    if len(networks) > 1 or len(groups) > 1:
        raise reader.wrong(node, "a rule has one prefix or group")
    return GroupRule(
        Direction(direction),
        _service(reader, node, keys),
        networks[0] if networks else None,
        groups[0] if groups else "",
    )


def _service(reader: Reader, node: Node, keys: dict[str, Node]) -> Service:
    protocol = reader.one(keys, "protocol").lower()
    if protocol not in ("", "tcp", "udp", "icmp", "icmpv6"):
        raise reader.wrong(keys["protocol"], f"{protocol!r} is not tcp, udp, icmp, icmpv6 or empty")
    first, last = reader.one(keys, "port_range_min"), reader.one(keys, "port_range_max")
    if not first and not last:
        return Service(protocol)
    least, most = (0, 255) if protocol.startswith("icmp") else (1, 65535)

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 6 and least <= int(text) <= most):
            raise ValueError(f"{text!r} is not between {least} and {most}")
        return int(text)

    if not first:
        raise reader.wrong(node, "port_range_max has no port_range_min")
    lowest = reader.parsed(keys["port_range_min"], first, parse)
    highest = reader.parsed(keys["port_range_max"], last, parse) if last else lowest
    if highest < lowest:
        raise reader.wrong(keys["port_range_max"], f"{highest} is before {lowest}")
    return Service(protocol, (PortRange(lowest, highest),))
