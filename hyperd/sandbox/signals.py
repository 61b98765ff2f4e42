# SPDX-License-Identifier: Apache-2.0
"""Signals by name, as Docker takes them. Pure."""

import re
import signal

from hyperd.errors import InvalidError


def parse_signal(name: str) -> int:
    """A signal's number from TERM, SIGTERM, sigterm, 15 or RTMIN+3. Raises InvalidError."""
    upper = name.upper().removeprefix("SIG")
    if upper.isdecimal() and 1 <= int(upper) <= 64:
        return int(upper)
    realtime = re.fullmatch(r"RTMIN(\+(\d{1,2}))?|RTMAX(-(\d{1,2}))?", upper)
    if realtime:
        number = 34 + int(realtime[2] or 0) if upper.startswith("RTMIN") else 64 - int(realtime[4] or 0)
        if 34 <= number <= 64:
            return number
    found = signal.Signals.__members__.get(f"SIG{upper}")
    if found is None or "_" in upper:
        raise InvalidError("is not a signal", subject=repr(name))
    return int(found)
