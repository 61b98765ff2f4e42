# SPDX-License-Identifier: Apache-2.0
"""Durations and points in time as `logs --since` takes them: 10m, 1h30m, RFC 3339, UNIX seconds."""

import re
from datetime import datetime

from hyperctl.errors import InvalidError

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"(\d+)(?:\.(\d*))?(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNIX = re.compile(r"(\d+)(?:\.(\d{1,9}))?", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:T(\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?)?(Z|[+-]\d\d:\d\d)?", re.ASCII
)
SECOND_NS = 1_000_000_000
MAX_SECONDS = 253_402_300_799  # the end of the year 9999: protobuf's last timestamp


def parse_duration(text: str) -> int:
    """Go's durations (`1h30m`, `1.5h`, `300ms`) -> nanoseconds. Raises ValueError."""
    position, total = 0, 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            break
        whole, fraction, unit = term.groups()
        scale = _UNITS_NS[unit]
        total += int(whole) * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
        position = term.end()
    if position < len(text) or not text:
        raise ValueError(text)
    return total


def parse_moment(flag: str, text: str, *, now_ns: int) -> tuple[int, int]:
    """A point in time -> seconds and nanoseconds since 1970. A duration counts back from now."""
    moment_ns = _find_moment(text, now_ns)
    if moment_ns is None:
        raise InvalidError(
            f"invalid argument {text!r}: write 10m, 2026-01-02T15:04:05Z or UNIX seconds", subject=flag
        )
    seconds, nanos = divmod(max(moment_ns, 0), SECOND_NS)
    return min(seconds, MAX_SECONDS), nanos


def _find_moment(text: str, now_ns: int) -> int | None:
    if unix := _UNIX.fullmatch(text):
        seconds, fraction = unix.groups()
        return int(seconds) * SECOND_NS + int((fraction or "0").ljust(9, "0"))
    if match := _RFC3339.fullmatch(text):
        day, hour, minute, second, fraction, zone = match.groups()
        try:
            moment = datetime.fromisoformat(
                f"{day}T{hour or '00'}:{minute or '00'}:{second or '00'}{zone or ''}"
            )
            # Without a zone it is local time, as in Docker.
            seconds_since_1970 = int(moment.timestamp())
        except (ValueError, OverflowError, OSError):
            return None
        return seconds_since_1970 * SECOND_NS + int((fraction or "0").ljust(9, "0"))
    try:
        return now_ns - parse_duration(text.removeprefix("-"))
    except ValueError:
        return None
