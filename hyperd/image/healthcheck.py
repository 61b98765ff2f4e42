# SPDX-License-Identifier: Apache-2.0
"""The HEALTHCHECK instruction, into what an image's config holds (moby's HealthConfig: nanoseconds). Pure."""

import re
from collections.abc import Callable
from typing import Any

from hyperd.errors import InvalidError

_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?(ns|us|µs|ms|s|m|h)", re.ASCII)
_MIN_NS = 10**6
_MAX_NS = (1 << 63) - 1


def parse(text: str, parse_list: Callable[[str], list[str] | None]) -> dict[str, Any]:
    """``[OPTIONS] CMD ...`` or ``NONE``. Raises InvalidError."""
    found: dict[str, Any] = {}
    while text.startswith("--"):
        option, _, text = text.partition(" ")
        text = text.strip()
        name, _, value = option[2:].partition("=")
        _set_option(found, name, value)
    kind, *rest = text.split(maxsplit=1) or [""]
    command = rest[0] if rest else ""
    if kind.upper() == "NONE":
        if command or found:
            raise InvalidError("HEALTHCHECK NONE stands alone")
        return {"Test": ["NONE"]}
    if kind.upper() != "CMD" or not command:
        raise InvalidError("HEALTHCHECK takes [OPTIONS] CMD COMMAND, or NONE", evidence=text[:100])
    listed = parse_list(command)
    if listed == []:
        raise InvalidError("HEALTHCHECK CMD has no command")
    return {"Test": ["CMD-SHELL", command] if listed is None else ["CMD", *listed], **found}


def parse_duration(text: str) -> int:
    """Nanoseconds, of ``1m30s``, ``1.5h``, as Go writes them. Raises InvalidError."""
    at, total = 0, 0
    while part := _PART.match(text, at):
        whole, fraction, unit = part[1], part[2] or "", _UNITS_NS[part[3]]
        total += int(whole) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
        at = part.end()
    if not at or at != len(text) or not _MIN_NS <= total <= _MAX_NS:
        raise InvalidError("this is no time like 30s or 1m30s, of 1 ms or more", evidence=text[:100])
    return total


def _set_option(found: dict[str, Any], name: str, value: str) -> None:
    if name in _TIMES:
        found[_TIMES[name]] = parse_duration(value)
    elif name == "retries":
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or int(value) < 1:
            raise InvalidError("--retries takes a number from 1", evidence=value[:100])
        found["Retries"] = int(value)
    else:
        raise InvalidError("HEALTHCHECK has no such option", evidence=f"--{name}"[:100])
