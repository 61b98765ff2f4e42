# SPDX-License-Identifier: Apache-2.0
"""`.dockerignore`: the rules of github.com/moby/patternmatcher, which are not those of `.gitignore`.

A pattern is anchored at the context's top; `*` and `?` stop at a slash, `**` does not; `!` takes back what an earlier
one has left out; the last that matches a path, or a directory above it, decides.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hyperctl.errors import InvalidError

_WILD = frozenset("*?[\\")


@dataclass(frozen=True, slots=True)
class Pattern:
    text: str
    takes_back: bool
    regex: re.Pattern[str]
    depth: int  # of its directories


class Ignored:
    """What is left out of a context."""

    def __init__(self, text: str) -> None:
        self._patterns = [_parse(line) for line in _lines(text)]

    def leaves_out(self, path: str) -> bool:
        """``path`` is relative to the context, with slashes."""
        parts = path.split("/")
        out = False
        for pattern in self._patterns:
            if pattern.takes_back != out:  # it would change nothing
                continue
            if _matches(pattern, parts):
                out = not pattern.takes_back
        return out

    def may_take_back_below(self, directory: str) -> bool:
        """Whether something in a directory that is left out may yet be wanted."""
        for pattern in self._patterns:
            if not pattern.takes_back:
                continue
            fixed = _fixed_part(pattern.text)
            if f"{fixed}/".startswith(f"{directory}/") or (
                fixed != pattern.text and f"{directory}/".startswith(f"{fixed}/" if fixed else "")
            ):
                return True
        return False


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines() if not line.startswith("#")]
    return [line for line in lines if line]


def _parse(line: str) -> Pattern:
    takes_back = line.startswith("!")
    text = line[1:].strip() if takes_back else line
    if not text:
        raise InvalidError("an exclamation mark stands alone", subject=".dockerignore")
    text = posixpath.normpath(text)
    if len(text) > 1:
        text = text.lstrip("/")
    try:
        regex = re.compile(_regex(text), re.DOTALL)
    except re.error as error:
        raise InvalidError(f"is not a pattern: {error}", subject=f".dockerignore: {line}") from error
    return Pattern(text, takes_back, regex, text.count("/") + 1)


def _regex(text: str) -> str:
    out, at = [], 0
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == "*" and text[at : at + 1] == "*":
            at += 1
            if text[at : at + 1] == "/":
                at += 1
            out.append(".*" if at >= len(text) else "(.*/)?")
        elif letter == "*":
            out.append("[^/]*")
        elif letter == "?":
            out.append("[^/]")
        elif letter == "\\":
            out.append(re.escape(text[at : at + 1] or "\\"))
            at += 1
        elif letter in "[]^-":  # a class, as Go's and Python's expressions have it
            out.append(letter)
        else:
            out.append(re.escape(letter))
    return "".join(out)


def _matches(pattern: Pattern, parts: Sequence[str]) -> bool:
    """The path itself, or a directory above it."""
    if pattern.regex.fullmatch("/".join(parts)):
        return True
    return any(pattern.regex.fullmatch("/".join(parts[:depth])) for depth in range(1, len(parts)))


def _fixed_part(text: str) -> str:
    """The directories before the first wildcard."""
    parts = text.split("/")
    for at, part in enumerate(parts):
        if _WILD & set(part):
            return "/".join(parts[:at])
    return text
