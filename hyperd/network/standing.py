# SPDX-License-Identifier: Apache-2.0
"""How many rules there are in a table: who empties one, or takes one rule out, is found out by that.

Messages of our own; see linux/netfilter/nf_tables.h. Blocking, for a tenth of a millisecond.
"""

import os
import socket
import struct

from hyperd.network.elements import NETLINK_NETFILTER, message, text_attribute

_ANSWER_S = 1.0
_ANSWER_BYTES = 1 << 16
_NF_TABLES = 10 << 8
_NEWRULE, _GETRULE = _NF_TABLES | 6, _NF_TABLES | 7
_REQUEST, _DUMP = 1, 0x300
_ERROR, _DONE = 2, 3
_TABLE = 1


def count_rules(family: int, table: str) -> int:
    """0 without the table. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(message(_GETRULE, _REQUEST | _DUMP, 1, family, text_attribute(_TABLE, table), 0))
        found = 0
        while True:
            answer = kernel.recv(_ANSWER_BYTES)
            while len(answer) >= 16:
                size, kind = struct.unpack_from("=IH", answer)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", answer, 16)
                    raise OSError(-code, os.strerror(-code))
                found += kind == _NEWRULE
                answer = answer[size + (-size % 4) :]
