# SPDX-License-Identifier: Apache-2.0
"""A tar's extended header (POSIX pax): records, `LENGTH KEY=VALUE`, one a line; a value may hold line ends, too."""

from typing import NamedTuple

_MAX_LENGTH_DIGITS = 7


class Records(NamedTuple):
    """``is_whole``: else what follows the last pair is malformed."""

    pairs: list[tuple[bytes, bytes]]
    is_whole: bool


def read_records(data: bytes) -> Records:
    pairs: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + _MAX_LENGTH_DIGITS + 1)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else at
        equals = data.find(b"=", space, end)
        if not space + 1 < equals < end <= len(data) or data[end - 1 : end] != b"\n":
            return Records(pairs, is_whole=False)
        pairs.append((data[space + 1 : equals], data[equals + 1 : end - 1]))
        at = end
    return Records(pairs, is_whole=True)
