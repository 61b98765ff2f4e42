# SPDX-License-Identifier: Apache-2.0
"""Which rules there are in a table, so that whoever empties it, takes one out, changes or adds one is found out.

Their number says most of it and costs next to nothing; what they say is compared less often. Messages of our own; see
linux/netfilter/nf_tables.h. Blocking, for a tenth of a millisecond.
"""

import hashlib
import os
import socket
import struct
from collections.abc import Iterator

from hyperd.network.elements import NETLINK_NETFILTER, attributes, message, text_attribute

_ANSWER_S = 1.0
_ANSWER_BYTES = 1 << 16
_NF_TABLES = 10 << 8
_NEWRULE, _GETRULE = _NF_TABLES | 6, _NF_TABLES | 7
_REQUEST, _DUMP = 1, 0x300
_ERROR, _DONE = 2, 3
_TABLE, _CHAIN, _EXPRESSIONS, _COMMENT = 1, 2, 4, 7
_NAME, _DATA = 1, 2
_COUNTER = b"counter\0"


def count_rules(family: int, table: str) -> int:
    """0 without the table. Raises OSError."""
    return sum(1 for _ in _rules(family, text_attribute(_TABLE, table)))


def digest_rules(family: int, table: str, chain: str = "") -> bytes:
    """Of what they say, in order, but for what they have counted. ``chain`` "": of all. Raises OSError."""
    digest = hashlib.sha256()
    wanted = text_attribute(_TABLE, table) + (text_attribute(_CHAIN, chain) if chain else b"")
    for rule in _rules(family, wanted):
        parts = dict(attributes(rule))
        digest.update(parts.get(_CHAIN, b"") + parts.get(_COMMENT, b""))
        for _, expression in attributes(parts.get(_EXPRESSIONS, b"")):
            told = dict(attributes(expression))
            name = told.get(_NAME, b"")
            digest.update(name + (b"" if name == _COUNTER else told.get(_DATA, b"")))
    return digest.digest()


def _rules(family: int, wanted: bytes) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(message(_GETRULE, _REQUEST | _DUMP, 1, family, wanted, 0))
        while True:
            answer = kernel.recv(_ANSWER_BYTES)
            while len(answer) >= 16:
                size, kind = struct.unpack_from("=IH", answer)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", answer, 16)
                    raise OSError(-code, os.strerror(-code))
                if kind == _NEWRULE:
                    yield answer[20:size]
                answer = answer[size + (-size % 4) :]
