# SPDX-License-Identifier: Apache-2.0
"""An egress policy as people write it: YAML or JSON. Pure; every error names the line.

allow:
  - domain: pypi.org              # or a list of them
    ports: 443                    # or a list: [80, 443, 8000-8100]; left out: all
  - domain: "*.pythonhosted.org"  # what is beneath it, not itself; "*": any
    protocol: tcp                 # tcp, udp or icmp; left out: any
  - cidr: [192.0.2.0/24, 198.51.100.7]
"""

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network
from typing import TypeVar

import yaml

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.policy import EgressMode, EgressPolicy, EgressRule, PortRange, Service

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_RULES, MAX_VALUES = 256, 4096  # of one policy
_KEYS = ("domain", "cidr", "protocol", "ports")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
T = TypeVar("T")


def parse_egress(text: str, subject: str = "egress policy") -> EgressPolicy:
    """``text``: none, allow-all, or a document. Raises InvalidError, UnsupportedError (IPv6)."""
    if len(text.encode()) > MAX_DOCUMENT_BYTES:
        raise InvalidError(f"is larger than {MAX_DOCUMENT_BYTES >> 10} KiB", subject=subject)
    root = _composed(text, subject)
    if isinstance(root, yaml.ScalarNode):
        if root.value in (EgressMode.NONE, EgressMode.ALLOW_ALL):
            return EgressPolicy(EgressMode(root.value))
        raise _wrong(subject, root, f"{root.value!r} is not none, allow-all or a list of rules")
    return _Reader(subject).read(root)


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


class _Reader:
    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._left = MAX_VALUES

    def read(self, root: yaml.Node) -> EgressPolicy:
        top = self._mapping(root, ("allow",))
        listed = top.get("allow")
        if not isinstance(listed, yaml.SequenceNode):
            raise _wrong(self._subject, listed or root, "there is no list of rules under `allow:`")
        if len(listed.value) > MAX_RULES:
            raise _wrong(self._subject, listed, f"there are more than {MAX_RULES} rules")
        return EgressPolicy(EgressMode.LISTED, tuple(self._rule(node) for node in listed.value))

    def _rule(self, node: yaml.Node) -> EgressRule:
        keys = self._mapping(node, _KEYS)
        if "domain" not in keys and "cidr" not in keys:
            raise _wrong(self._subject, node, "a rule needs a domain or a cidr")
        protocol = self._one(keys, "protocol")
        if protocol not in ("", "tcp", "udp", "icmp"):
            raise _wrong(self._subject, keys["protocol"], f"{protocol!r} is not tcp, udp or icmp")
        if protocol == "icmp" and "ports" in keys:
            raise _wrong(self._subject, keys["ports"], "icmp has no ports")
        return EgressRule(
            domains=tuple(dict.fromkeys(self._many(keys, "domain", parse_domain))),
            networks=tuple(dict.fromkeys(self._many(keys, "cidr", self._network))),
            service=Service(protocol, merged(self._many(keys, "ports", parse_ports))),
        )

    def _network(self, text: str) -> IPv4Network:
        if ":" in text:
            raise UnsupportedError(
                "a sandbox with a policy has IPv4 only", subject=f"{self._subject}: cidr {text!r}"
            )
        try:
            return IPv4Network(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is no IPv4 network: {error}") from error

    def _one(self, keys: dict[str, yaml.Node], key: str) -> str:
        node = keys.get(key)
        return self._scalar(node, key).lower() if node is not None else ""

    def _many(self, keys: dict[str, yaml.Node], key: str, parse: Callable[[str], T]) -> list[T]:
        """A value, or a list of them that is not empty."""
        node = keys.get(key)
        if node is None:
            return []
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not nodes:
            raise _wrong(self._subject, node, f"`{key}` is empty")
        self._left -= len(nodes)
        if self._left < 0:
            raise _wrong(self._subject, node, f"there are more than {MAX_VALUES} domains, networks and ports")
        found = []
        for each in nodes:
            text = self._scalar(each, key)
            try:
                found.append(parse(text))
            except ValueError as error:
                raise _wrong(self._subject, each, str(error)) from error
        return found

    def _scalar(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise _wrong(self._subject, node, f"`{key}` is no plain value")
        return str(node.value)

    def _mapping(self, node: yaml.Node, known: tuple[str, ...]) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(self._subject, node, f"here should be keys: {', '.join(known)}")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value not in known:
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "this"
                raise _wrong(self._subject, key, f"{shown} is none of the keys: {', '.join(known)}")
            if key.value in found:
                raise _wrong(self._subject, key, f"`{key.value}` stands here twice")
            found[key.value] = value
        return found


def _composed(text: str, subject: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        evidence = getattr(error, "problem", None) or str(error)
        raise InvalidError("is neither YAML nor JSON", subject=subject + where, evidence=evidence) from error
    if root is None:
        raise InvalidError("is empty", subject=subject, hint="`none` lets nothing out")
    return root


def _wrong(subject: str, node: yaml.Node, brief: str) -> InvalidError:
    return InvalidError(brief, subject=f"{subject}, line {node.start_mark.line + 1}")
