# SPDX-License-Identifier: Apache-2.0
"""Model -> text, as Docker writes it: tables, times, sizes."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from hyperctl.errors import CliError

PADDING = 3
MIN_CELL = 10
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_error(error: CliError) -> None:
    """Evidence comes from guests and registries: no escape sequence of theirs reaches the terminal."""
    print(printable(str(error)), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def render_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as Go's tabwriter lays them out for Docker: at least 10 wide, 3 between, the last one ragged."""
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    columns = max((len(row) for row in rows), default=0)
    widths = [
        max(MIN_CELL, PADDING + max(len(row[column]) for row in rows if column < len(row)))
        for column in range(columns)
    ]
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[column]) for column, cell in enumerate(row[:-1])]
        lines.append("".join([*cells, row[-1] if row else ""]))
    return "\n".join(lines)


def render_duration(seconds: float) -> str:
    """Seconds -> "2 minutes", with Docker's thresholds."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(whole / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{whole // 3600 // 24 // 365} years"


def render_size(size_bytes: float, *, digits: int = 3) -> str:
    """Decimal units as Docker prints image sizes: 7.83MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if float(f"{size_bytes:.{digits}g}") < 1000:
            return f"{size_bytes:.{digits}g}{unit}"
        size_bytes /= 1000
    return f"{size_bytes:.{digits + 1}g}PB"


def render_binary_size(size_bytes: float) -> str:
    """Binary units as `docker info` prints memory: 7.77GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.4g}{unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g}TiB"


def ellipsis(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quote(text: str) -> str:
    """A command line in double quotes on one line, as Go's strconv.Quote."""
    return json.dumps(text, ensure_ascii=False)


def render_json(value: object, *, indent: int | None = None) -> str:
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, indent=indent, ensure_ascii=False, separators=separators)


def render_time(moment: datetime) -> str:
    """As Go prints a local time: 2026-01-02 15:04:05 +0000 UTC."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %z %Z")


def render_rfc3339(seconds: int, nanos: int) -> str:
    """UTC, nanoseconds with trailing zeros cut, as Docker's JSON has it. 0 is Go's zero time."""
    if not seconds and not nanos:
        return "0001-01-01T00:00:00Z"
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".") if nanos else ""
    return f"{moment}{fraction}Z"


def render_pairs(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(pairs.items()))
