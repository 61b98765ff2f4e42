# SPDX-License-Identifier: Apache-2.0
"""nftables' commands into netlink messages, of that part of its language which rules for one sandbox are written in.

nft reads every chain and set of the host before it changes one: with rules of 500 sandboxes that takes a tenth of a
second and more. The kernel needs none of it. What is not understood here is left to nft.
See linux/netfilter/nf_tables.h.
"""

import os
import re
import socket
import struct
from collections.abc import Iterator

from hyperd.network import expressions
from hyperd.network.elements import (
    INET_FAMILY,
    NETLINK_NETFILTER,
    attribute,
    message,
    text_attribute,
)
from hyperd.network.expressions import Table, Words

_ANSWER_S = 10.0
_ANSWER_BYTES = 8192
_SO_SNDBUFFORCE = 32  # socket(7); Python has no name for it
_MOST_BYTES = 64 << 20
_NF_TABLES, _BATCH_BEGIN, _BATCH_END = 10, 16, 17
_REQUEST, _ACK, _CREATE, _APPEND = 1, 4, 0x400, 0x800
_NEWCHAIN, _DELCHAIN, _NEWRULE, _DELRULE = 3, 5, 6, 8
_NEWSET, _DELSET, _NEWSETELEM, _DELSETELEM, _NEWOBJ, _DELOBJ = 9, 11, 12, 14, 18, 20
_LIMIT = 4
_TOGETHER = 1024  # elements of one message, whose length has 16 bits
_TOKEN = re.compile(r'"[^"]*"|[{};,]|[^\s{};,]+')


class UnspokenError(ValueError):
    """Not of this part of the language."""


class Assembler:
    """The messages of one transaction."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, int, bytes]] = []
        self._sets = 0

    def read(self, text: str) -> None:
        """A command a line. Raises UnspokenError."""
        for line in text.splitlines():
            if line.strip():
                try:
                    self._read_line(Words(_TOKEN.findall(line)))
                except (ValueError, IndexError, KeyError) as error:
                    raise UnspokenError(line) from error

    def commit(self) -> None:
        """All or nothing. Raises OSError: ENOENT for what is not there."""
        if not self._messages:
            return
        packed = [message(_BATCH_BEGIN, _REQUEST, 0, 0, b"", _NF_TABLES)]
        for kind, flags, body in self._messages:
            packed.append(message(_NF_TABLES << 8 | kind, flags, len(packed), INET_FAMILY, body, 0))
        # The last one's acknowledgement is that of all: what is refused is told without.
        kind, flags, body = self._messages[-1]
        packed[-1] = message(_NF_TABLES << 8 | kind, flags | _ACK, len(packed) - 1, INET_FAMILY, body, 0)
        packed.append(message(_BATCH_END, _REQUEST, len(packed), 0, b"", _NF_TABLES))
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        ) as kernel:
            kernel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _MOST_BYTES)
            kernel.settimeout(_ANSWER_S)
            kernel.send(b"".join(packed))
            (code,) = struct.unpack_from("=i", kernel.recv(_ANSWER_BYTES), 16)
            if code:
                raise OSError(-code, os.strerror(-code))

    def _add(self, kind: int, flags: int, *attributes: bytes) -> None:
        self._messages.append((kind, _REQUEST | flags, b"".join(attributes)))

    def _read_line(self, words: Words) -> None:
        verb, what, family, table, name = (words.take() for _ in range(5))
        if family != "inet":
            raise UnspokenError(family)
        named = text_attribute(1, table), text_attribute(2, name)
        match verb, what:
            case "add", "rule":
                self._rule(table, name, words)
            case "add", "chain":
                self._add(_NEWCHAIN, _CREATE, named[0], text_attribute(3, name))
            case "flush", "chain":
                self._add(_DELRULE, 0, *named)
            case "delete", "chain":
                self._add(_DELCHAIN, 0, named[0], text_attribute(3, name))
            case "add", "set":
                self._sets += 1
                self._add(
                    _NEWSET, _CREATE, *named, *_set_of(words), attribute(10, struct.pack("!I", self._sets))
                )
            case "flush", "set":
                self._add(_DELSETELEM, 0, *named)
            case "delete", "set":
                self._add(_DELSET, 0, *named)
            case "add", "limit":
                self._add(_NEWOBJ, _CREATE, *named, _number(3, _LIMIT), _limit_of(words))
            case "delete", "limit":
                self._add(_DELOBJ, 0, *named, _number(3, _LIMIT))
            case (("add" | "delete"), "element"):
                kind, flags = (_NEWSETELEM, _CREATE) if verb == "add" else (_DELSETELEM, 0)
                self._add(kind, flags, *named, _element_of(words))
            case _:
                raise UnspokenError(verb, what)
        words.require_end()

    def _rule(self, table: str, chain: str, words: Words) -> None:
        known = Table(self._sets)
        told = b"".join(_listed(expression) for expression in expressions.parse(words, known))
        for sought in known.sets:
            name = text_attribute(2, sought.name)
            number = attribute(10, struct.pack("!I", sought.number))
            self._add(
                *(_NEWSET, _CREATE, text_attribute(1, table), name, _number(3, sought.flags)),
                *(_number(4, sought.key_type), _number(5, sought.key_bytes), number),
            )
            keys = [
                attribute(1 | _NESTED, _key(key) + (_number(3, 1) if is_end else b""))
                for key, is_end in sought.elements
            ]
            for start in range(0, len(keys), _TOGETHER):
                self._add(
                    *(_NEWSETELEM, _CREATE, text_attribute(1, table), name, _number(4, sought.number)),
                    attribute(3 | _NESTED, b"".join(keys[start : start + _TOGETHER])),
                )
        self._sets += len(known.sets)
        self._add(
            *(_NEWRULE, _CREATE | _APPEND, text_attribute(1, table), text_attribute(2, chain)),
            attribute(4 | _NESTED, told),
        )


def assemble(text: str) -> None:
    """All that it says, or nothing. Blocking. Raises UnspokenError, OSError: ENOENT for what is not there."""
    assembler = Assembler()
    assembler.read(text)
    assembler.commit()


_NESTED = 0x8000
_SET_FLAGS = {"timeout": 0x10, "dynamic": 0x20}


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _listed(expression: bytes) -> bytes:
    return attribute(1 | _NESTED, expression)


def _key(key: bytes) -> bytes:
    return attribute(1 | _NESTED, attribute(1, key))


def _set_of(words: Words) -> Iterator[bytes]:
    """`{ type A . B; size N; flags x,y; timeout Ns; counter; }`"""
    flags = 0
    told = words.braced()
    for part in " ".join(told).split(";"):
        match part.replace(",", " ").split():
            case ["type", *kinds]:
                types = [expressions.TYPES[kind] for kind in kinds if kind != "."]
                code = 0
                for each in types:
                    code = code << 6 | each.code
                size = types[0].size if len(types) == 1 else sum((each.size + 3) & ~3 for each in types)
                yield _number(4, code) + _number(5, size)
            case ["size", count]:
                yield attribute(9 | _NESTED, _number(1, int(count)))
            case ["flags", *names]:
                flags = sum(_SET_FLAGS[name] for name in names)
            case ["timeout", lasts]:
                yield attribute(11, struct.pack("!Q", int(lasts.removesuffix("s")) * 1000))
            case ["counter"]:
                yield attribute(17 | _NESTED, expressions.counter())
            case []:
                pass
            case _:
                raise UnspokenError(part)
    yield _number(3, flags)


def _limit_of(words: Words) -> bytes:
    """`{ rate over N bytes/second burst M bytes ; }`"""
    match words.braced():
        case ["rate", "over", rate, "bytes/second", "burst", burst, "bytes", ";"]:
            parts = attribute(1, struct.pack("!Q", int(rate))) + attribute(2, struct.pack("!Q", 1))
            return attribute(4 | _NESTED, parts + _number(3, int(burst)) + _number(4, 1) + _number(5, 1))
        case other:
            raise UnspokenError(other)


def _element_of(words: Words) -> bytes:
    """`{ "NAME" }` or `{ "NAME" : "OBJECT" }`, of an interface's name."""
    match words.braced():
        case [name]:
            led = b""
        case [name, ":", led_to]:
            led = text_attribute(9, led_to.strip('"'))
        case other:
            raise UnspokenError(other)
    key = name.strip('"').encode().ljust(16, b"\0")
    return attribute(3 | _NESTED, attribute(1 | _NESTED, _key(key) + led))
