# SPDX-License-Identifier: Apache-2.0
"""Variables in a word of a Dockerfile, as FROM and COPY --from know them: $NAME ${NAME} ${NAME:-word} ${NAME:+word}.

Quotes go, a backslash (or whatever the Dockerfile's escape is) keeps the next character as it is. Whatever else stands
in the braces is not understood here, nor is what comes to more than 64 KiB: None, and the engine says what it thinks of
it.
"""

import re
from collections.abc import Mapping

MAX_DEPTH = 10
MAX_LETTERS = (
    64 << 10
)  # of one word, expanded: Docker names an image by fewer, and each word may double the last
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand(word: str, values: Mapping[str, str], escape: str = "\\", depth: int = 0) -> str | None:
    """None for what is not understood."""
    if depth > MAX_DEPTH:
        return None
    out: list[str] = []
    at, quote, size = 0, "", 0
    while at < len(word):
        letter = word[at]
        if quote != "'" and letter == escape and at + 1 < len(word):
            out.append(word[at + 1])
            at += 2
        elif letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
            at += 1
        elif letter == "$" and quote != "'":
            found = _variable(word, at, values, escape, depth)
            if found is None:
                return None
            value, at = found
            size += len(value)
            if size > MAX_LETTERS:
                return None
            out.append(value)
        else:
            out.append(letter)
            at += 1
    return None if quote else "".join(out)


def _variable(
    word: str, at: int, values: Mapping[str, str], escape: str, depth: int
) -> tuple[str, int] | None:
    """The value of the variable that begins at ``at``, and where it ends."""
    if word[at + 1 : at + 2] != "{":
        name = _NAME.match(word, at + 1)
        return (values.get(name[0], ""), name.end()) if name else ("$", at + 1)
    end = _closing(word, at + 2, escape)
    name = _NAME.match(word, at + 2)
    if end is None or name is None or name.end() > end:
        return None
    rest, value = word[name.end() : end], values.get(name[0])
    if not rest:
        return value or "", end + 1
    operator, alternative = rest[:2], rest[2:]
    if operator not in (":-", ":+"):
        operator, alternative = rest[:1], rest[1:]
        if operator not in ("-", "+"):
            return None
        is_there = value is not None
    else:
        is_there = bool(value)
    if operator.endswith("-") and is_there:
        return value or "", end + 1
    if operator.endswith("+") and not is_there:
        return "", end + 1
    inner = expand(alternative, values, escape, depth + 1)
    return None if inner is None else (inner, end + 1)


def _closing(word: str, at: int, escape: str) -> int | None:
    depth = 1
    while at < len(word):
        if word[at] == escape:
            at += 1
        elif word.startswith("${", at):
            depth += 1
            at += 1
        elif word[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None
