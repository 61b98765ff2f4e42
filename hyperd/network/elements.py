# SPDX-License-Identifier: Apache-2.0
"""Elements put into nftables sets and maps, and taken out, by netlink messages of our own: a start has no time for a
child process. See linux/netfilter/nf_tables.h. Blocking.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

INET_FAMILY, BRIDGE_FAMILY = 1, 7  # NFPROTO_INET, NFPROTO_BRIDGE
NETLINK_NETFILTER = 12
_ANSWER_S = 5.0
_ANSWER_BYTES = 8192
_REQUEST, _ACK, _CREATE = 1, 4, 0x400
_ADDING = _REQUEST | _ACK | _CREATE
_BATCH_BEGIN, _BATCH_END = 16, 17
_NF_TABLES = 10
_NEWSETELEM, _DELSETELEM = _NF_TABLES << 8 | 12, _NF_TABLES << 8 | 14
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_KEY, _DATA, _VALUE, _TIMEOUT = 1, 2, 1, 4
_VERDICT, _CODE, _CHAIN, _GOTO = 2, 1, 2, -4
_NESTED = 0x8000
_TOGETHER = 256  # elements of one message, whose length has 16 bits
_AT_ONCE = 512  # of one transaction, which has to fit into a socket


@dataclass(frozen=True, slots=True)
class Element:
    """Of the set or map ``where``. Each part of a concatenation is padded to four bytes; see ``padded``."""

    where: str
    key: bytes
    data: bytes = b""  # of a map's
    timeout_ms: int = 0  # 0: it stays
    goto: str = ""  # of a map of verdicts: the chain


def padded(*parts: bytes) -> bytes:
    """As the kernel concatenates."""
    return b"".join(part + b"\0" * (-len(part) % 4) for part in parts)


def add(family: int, table: str, elements: Sequence[Element]) -> None:
    """All or none, in one transaction; one that is there already stays. Raises OSError, as without the table."""
    _change(family, table, [(_NEWSETELEM, _ADDING, elements)])


def remove(family: int, table: str, elements: Sequence[Element]) -> None:
    """All or none, in one transaction. Raises OSError: ENOENT when one is not there."""
    _change(family, table, [(_DELSETELEM, _REQUEST | _ACK, elements)])


def renew(family: int, table: str, new: Sequence[Element], again: Sequence[Element]) -> None:
    """``again``: of which some may be there, and begin their time anew. In as few transactions as a socket takes.

    Raises OSError: ENOENT without the set, ENFILE when it is full.
    """
    for start in range(0, max(len(new), len(again)), _AT_ONCE):
        some, more = new[start : start + _AT_ONCE], again[start : start + _AT_ONCE]
        steps = [(_NEWSETELEM, _ADDING, more), (_DELSETELEM, _REQUEST | _ACK, more)] if more else []
        _change(family, table, [*steps, (_NEWSETELEM, _ADDING, [*some, *more])])


def _change(family: int, table: str, steps: Iterable[tuple[int, int, Sequence[Element]]]) -> None:
    messages = [message(_BATCH_BEGIN, _REQUEST, 0, 0, b"", _NF_TABLES)]
    for kind, flags, elements in steps:
        for where in dict.fromkeys(element.where for element in elements):
            here = [element for element in elements if element.where == where]
            for start in range(0, len(here), _TOGETHER):
                some = here[start : start + _TOGETHER]
                body = text_attribute(_TABLE, table) + text_attribute(_SET, where)
                body += attribute(_ELEMENTS | _NESTED, b"".join(_encode(some)))
                messages.append(message(kind, flags, len(messages), family, body, 0))
    answers = len(messages) - 1
    messages.append(message(_BATCH_END, _REQUEST, len(messages), 0, b"", _NF_TABLES))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(b"".join(messages))
        for _ in range(answers):  # each is acknowledged, or the first thing that is wrong is told
            (code,) = struct.unpack_from("=i", kernel.recv(_ANSWER_BYTES), 16)
            if code:
                raise OSError(-code, os.strerror(-code))


def _encode(elements: Iterable[Element]) -> Iterable[bytes]:
    for element in elements:
        parts = attribute(_KEY | _NESTED, attribute(_VALUE, element.key))
        if element.data:
            parts += attribute(_DATA | _NESTED, attribute(_VALUE, element.data))
        if element.goto:
            verdict = attribute(_CODE, struct.pack("!i", _GOTO)) + text_attribute(_CHAIN, element.goto)
            parts += attribute(_DATA | _NESTED, attribute(_VERDICT | _NESTED, verdict))
        if element.timeout_ms:
            parts += attribute(_TIMEOUT, struct.pack("!Q", element.timeout_ms))
        yield attribute(1 | _NESTED, parts)


def message(kind: int, flags: int, number: int, family: int, body: bytes, resource: int) -> bytes:
    header = struct.pack("=IHHII", 20 + len(body), kind, flags, number, 0)
    return header + struct.pack("!BBH", family, 0, resource) + body


def text_attribute(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """What a message's body is made of: (kind, value), without the flags of the kind. Ends at what is none."""
    while len(body) >= 4:
        size, kind = struct.unpack_from("=HH", body)
        if size < 4:
            return
        yield kind & 0x3FFF, body[4:size]
        body = body[size + (-size % 4) :]
