# SPDX-License-Identifier: Apache-2.0
"""A rule's words into the expressions that the kernel runs, as linux/netfilter/nf_tables.h has them. Pure.

Each match loads a register and compares it; lists of more than one value become sets of the rule's own.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network

from hyperd.network.elements import attribute, text_attribute

_NESTED = 0x8000
_REGISTER, _WORDS = 1, 8  # of 16 bytes; the first of its four words
_EQUAL, _DIFFERENT = 0, 1
_ANONYMOUS, _INTERVAL = 1 | 2, 4  # and constant
_DROP, _ACCEPT, _GOTO = 0, 1, -4
_NETWORK, _TRANSPORT = 1, 2
_META_IIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 15, 16
_CT_STATUS, _DNAT = 2, 1 << 5
_FAMILIES = {"ip": 2, "ip6": 10}  # NFPROTO_IPV4, NFPROTO_IPV6
_UNNAMED = "__set%d"  # the kernel puts a number of its own there
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58}
_RESET, _ICMPX, _ADMIN_PROHIBITED = 1, 2, 3
_UPDATE = 1


@dataclass(frozen=True, slots=True)
class Type:
    """As nft numbers it, for its lists."""

    code: int
    size: int


ADDRESS, ADDRESS6, PROTOCOL, PORT = Type(7, 4), Type(8, 16), Type(12, 1), Type(13, 2)
ICMP, ICMP6 = Type(14, 1), Type(29, 1)
TYPES = {"ipv4_addr": ADDRESS, "ipv6_addr": ADDRESS6, "inet_proto": PROTOCOL, "inet_service": PORT}
_ADDRESSES = {"ip": (ADDRESS, {"saddr": 12, "daddr": 16}), "ip6": (ADDRESS6, {"saddr": 8, "daddr": 24})}
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sought:
    """A set of a rule's own. ``elements``: keys, and whether an interval ends before that one."""

    name: str
    number: int
    flags: int
    key_type: int
    key_bytes: int
    elements: tuple[tuple[bytes, bool], ...]


@dataclass
class Table:
    """``numbered``: sets of this transaction so far."""

    numbered: int
    sets: list[Sought] = field(default_factory=list)

    def add(self, ranges: Sequence[Range], type_: Type) -> Sought:
        number = self.numbered + len(self.sets) + 1
        is_interval = any(first != last for first, last in ranges)
        keys: list[tuple[bytes, bool]] = []
        for first, last in ranges:
            keys.append((first.to_bytes(type_.size, "big"), False))
            if is_interval and last + 1 < 1 << 8 * type_.size:
                keys.append(((last + 1).to_bytes(type_.size, "big"), True))
        flags = _ANONYMOUS | (_INTERVAL if is_interval else 0)
        made = Sought(_UNNAMED, number, flags, type_.code, type_.size, tuple(keys))
        self.sets.append(made)
        return made


class Words:
    """Of a command, taken one after the other. Raises IndexError at their end, ValueError for another than wanted."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)

    def __bool__(self) -> bool:
        return bool(self._words)

    def take(self) -> str:
        return self._words.pop(0)

    def want(self, *wanted: str) -> None:
        for word in wanted:
            if (found := self.take()) != word:
                raise ValueError(found)

    def has(self, word: str) -> bool:
        """Taken, when it is next."""
        if self._words and self._words[0] == word:
            del self._words[0]
            return True
        return False

    def braced(self) -> list[str]:
        self.want("{")
        end = self._words.index("}")
        found, self._words = self._words[:end], self._words[end + 1 :]
        return found

    def family(self, word: str) -> str:
        """Of which that word, taken before, takes a packet to be; "" of none."""
        if word == "update":
            return next((each for each in self._words if each in _FAMILIES), "")
        return word if word in _FAMILIES else ""

    def require_end(self) -> None:
        if self._words:
            raise ValueError(self._words)


def parse(words: Words, table: Table) -> Iterator[bytes]:
    """A rule. Raises ValueError, KeyError, IndexError for words that are none of these."""
    is_family_known = False
    while words:
        word = words.take()
        family = words.family(word)
        if family and not is_family_known:
            is_family_known = True
            yield _meta(_META_NFPROTO)
            yield _compared(bytes([_FAMILIES[family]]), _EQUAL)
        match word:
            case "ip" | "ip6":
                type_, offsets = _ADDRESSES[word]
                yield _payload(_NETWORK, offsets[words.take()], type_.size)
                yield from _matched(words, table, type_, _network)
            case "meta":
                words.want("l4proto")
                yield _meta(_META_L4PROTO)
                yield from _matched(words, table, PROTOCOL, _protocol)
            case "th":
                words.want("dport")
                yield _payload(_TRANSPORT, 2, 2)
                yield from _matched(words, table, PORT, _range)
            case "icmp" | "icmpv6":
                words.want("type")
                yield _payload(_TRANSPORT, 0, 1)
                yield from _matched(words, table, ICMP if word == "icmp" else ICMP6, _range)
            case "iifname":
                yield _meta(_META_IIFNAME)
                yield _interface(words.take())
            case "ct":
                words.want("status", "dnat")
                yield from _is_dnat()
            case "update":
                yield from _updated(words)
            case _:
                yield _statement(word, words)


def _statement(word: str, words: Words) -> bytes:
    match word:
        case "counter":
            return counter()
        case "accept":
            return _verdict(_ACCEPT)
        case "drop":
            return _verdict(_DROP)
        case "goto":
            return _verdict(_GOTO, words.take())
        case "reject":
            words.want("with")
            return _reject(words)
    raise ValueError(word)


def counter() -> bytes:
    return _expression("counter", attribute(1, bytes(8)) + attribute(2, bytes(8)))


def _matched(words: Words, table: Table, type_: Type, read: Callable[[str], Range]) -> Iterator[bytes]:
    operator = _DIFFERENT if words.has("!=") else _EQUAL
    word = words.take()
    if word.startswith("@"):
        yield _looked_up(word[1:], operator=operator)
        return
    if word != "{":
        ranges = [read(word)]
    else:
        ranges = []
        while True:
            ranges.append(read(words.take()))
            if words.has("}"):
                break
            words.want(",")
    ranges = _merged(ranges)
    if len(ranges) > 1:
        sought = table.add(ranges, type_)
        yield _looked_up(sought.name, sought.number, operator=operator)
        return
    first, last = (number.to_bytes(type_.size, "big") for number in ranges[0])
    if first == last:
        yield _compared(first, operator)
    elif type_ in (ADDRESS, ADDRESS6) and (mask := _mask(*ranges[0], type_.size)):
        parts = _u32(1, _REGISTER) + _u32(2, _REGISTER) + _u32(3, type_.size)
        parts += _value(4, mask) + _value(5, bytes(type_.size))
        yield _expression("bitwise", parts)
        yield _compared(first, operator)
    else:
        yield _expression(
            "range", _u32(1, _REGISTER) + _u32(2, operator) + _value(3, first) + _value(4, last)
        )


def _mask(first: int, last: int, size_bytes: int) -> bytes:
    """Of the prefix that this range is; b"" when it is none."""
    size = last - first + 1
    if size & (size - 1) or first % size:
        return b""
    return ((1 << 8 * size_bytes) - size).to_bytes(size_bytes, "big")


def _merged(ranges: Sequence[Range]) -> list[Range]:
    """In order, and apart from each other."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _network(word: str) -> Range:
    network = ip_network(word)
    return int(network.network_address), int(network.broadcast_address)


def _protocol(word: str) -> Range:
    return (_PROTOCOLS[word],) * 2


def _range(word: str) -> Range:
    first, _, last = word.partition("-")
    return int(first), int(last or first)


def _interface(word: str) -> bytes:
    if word.startswith("@"):
        return _looked_up(word[1:])
    if word[0] != '"' or "*" in word:
        raise ValueError(word)
    return _compared(word.strip('"').encode().ljust(16, b"\0"), _EQUAL)


def _is_dnat() -> Iterator[bytes]:
    """A bit of the host's order, as the register has it."""
    mask, nothing = struct.pack("=I", _DNAT), bytes(4)
    yield _expression("ct", _u32(1, _REGISTER) + _u32(2, _CT_STATUS))
    parts = _u32(1, _REGISTER) + _u32(2, _REGISTER) + _u32(3, 4) + _value(4, mask) + _value(5, nothing)
    yield _expression("bitwise", parts)
    yield _compared(nothing, _DIFFERENT)


def _updated(words: Words) -> Iterator[bytes]:
    """`@SET { ip daddr . meta l4proto [. th dport] counter }`, or with `ip6`"""
    name = words.take()
    told = " ".join(words.braced())
    if not name.startswith("@"):
        raise ValueError(name)
    family, _, key = told.partition(" ")
    if key not in ("daddr . meta l4proto counter", "daddr . meta l4proto . th dport counter"):
        raise ValueError(told)
    type_, offsets = _ADDRESSES[family]
    yield _payload(_NETWORK, offsets["daddr"], type_.size, _WORDS)
    protocol = _WORDS + type_.size // 4
    yield _meta(_META_L4PROTO, protocol)
    if "dport" in told:
        yield _payload(_TRANSPORT, 2, 2, protocol + 1)
    parts = text_attribute(1, name[1:]) + _u32(3, _UPDATE) + _u32(4, _WORDS)
    yield _expression("dynset", parts + attribute(7 | _NESTED, counter()))


def _reject(words: Words) -> bytes:
    if words.has("tcp"):
        words.want("reset")
        return _expression("reject", _u32(1, _RESET))
    words.want("icmpx", "admin-prohibited")
    return _expression("reject", _u32(1, _ICMPX) + attribute(2, bytes([_ADMIN_PROHIBITED])))


def _verdict(code: int, chain: str = "") -> bytes:
    parts = attribute(1, struct.pack("!i", code)) + (text_attribute(2, chain) if chain else b"")
    return _expression("immediate", _u32(1, 0) + attribute(2 | _NESTED, attribute(2 | _NESTED, parts)))


def _looked_up(name: str, number: int = 0, *, operator: int = _EQUAL) -> bytes:
    parts = text_attribute(1, name) + _u32(2, _REGISTER)
    if number:
        parts += _u32(4, number)
    return _expression("lookup", parts + (_u32(5, 1) if operator == _DIFFERENT else b""))


def _compared(value: bytes, operator: int) -> bytes:
    return _expression("cmp", _u32(1, _REGISTER) + _u32(2, operator) + _value(3, value))


def _meta(key: int, register: int = _REGISTER) -> bytes:
    return _expression("meta", _u32(1, register) + _u32(2, key))


def _payload(base: int, offset: int, size: int, register: int = _REGISTER) -> bytes:
    return _expression("payload", _u32(1, register) + _u32(2, base) + _u32(3, offset) + _u32(4, size))


def _expression(name: str, data: bytes) -> bytes:
    return text_attribute(1, name) + attribute(2 | _NESTED, data)


def _value(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, attribute(1, value))


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))
