# SPDX-License-Identifier: Apache-2.0
"""Values as Go prints them, and the functions that a template may call."""

import json
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from hyperctl.errors import InvalidError

NO_VALUE = "<no value>"
MAX_PAD = 10_000
_VERB = re.compile(r"%([-+# 0]*)(\d{1,4})?(?:\.(\d{1,4}))?(.?)", re.DOTALL)


class TemplateError(InvalidError):
    def __init__(self, brief: str) -> None:
        super().__init__(brief, subject="--format")


class OpenMap(dict[str, Any]):
    """A map whose keys are data (labels): an absent one is no error but `<no value>`."""


def render_value(value: Any) -> str:
    """What an action prints."""
    return NO_VALUE if value is None else go_text(value)


def go_text(value: Any) -> str:
    """As Go's %v."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case Mapping():
            pairs = " ".join(
                f"{key}:{go_text(item)}" for key, item in sorted(value.items()) if not callable(item)
            )
            return f"map[{pairs}]"
        case list() | tuple():
            return f"[{' '.join(go_text(item) for item in value)}]"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _to_json(value: Any) -> str:
    if isinstance(value, Mapping):
        value = {key: item for key, item in value.items() if not callable(item)}  # methods are no data
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(value)
    return value


def _join(items: Any, separator: str) -> str:
    if not isinstance(items, list | tuple):
        raise TypeError(items)
    return _text(separator).join(_text(item) for item in items)


def _title(text: str) -> str:
    return re.sub(r"(?<![\w'])\w", lambda match: match.group().upper(), _text(text))


def _pad(text: str, before: int, after: int) -> str:
    widths = _number(before), _number(after)
    if not all(0 <= width <= MAX_PAD for width in widths):
        raise ValueError(widths)
    return f"{' ' * before}{_text(text)}{' ' * after}" if text else text


def _truncate(text: str, length: int) -> str:
    return _text(text)[: max(0, _number(length))]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key, "" if isinstance(value, OpenMap) else None)
        elif isinstance(value, list | tuple | str) and _number(key) >= 0:
            value = value[key] if not isinstance(value, str) else value.encode()[key]
        else:
            raise TypeError(value)
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if not isinstance(value, str | list | tuple) or len(bounds) > 2:
        raise TypeError(value)
    start, end = (*bounds, *(0, len(value))[len(bounds) :])
    if not 0 <= _number(start) <= _number(end) <= len(value):
        raise IndexError(bounds)
    return value[start:end]


def _print(*values: Any) -> str:
    """Go's fmt.Sprint: a space between two neighbours of which neither is a string."""
    text = ""
    for position, value in enumerate(values):
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            text += " "
        text += go_text(value)
    return text


def _println(*values: Any) -> str:
    return " ".join(go_text(value) for value in values) + "\n"


def _printf(form: str, *values: Any) -> str:
    rest = list(values)

    def verb(match: re.Match[str]) -> str:
        flags, width, precision, letter = match.groups()
        if letter == "%":
            return "%"
        if letter not in set("svqdtfx"):
            raise TemplateError(f"printf: %{letter} is not supported")
        if not rest:
            raise TemplateError("printf: too few arguments")
        value = rest.pop(0)
        point = f".{precision}" if precision else ""
        if letter in "dfx" and isinstance(value, int | float):
            return f"%{flags}{width or ''}{point}{letter}" % value
        text = _to_json(value) if letter == "q" else go_text(value)
        return f"%{flags.replace('0', '')}{width or ''}{point}s" % text

    text = _VERB.sub(verb, _text(form))
    if rest:
        raise TemplateError("printf: too many arguments")
    return text


def _compare(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def checked(left: Any, right: Any) -> bool:
        if isinstance(left, bool) != isinstance(right, bool):
            raise TypeError(right)
        return compare(left, right)

    return checked


def _equal(first: Any, *others: Any) -> bool:
    """True when it equals any of the others, as in Go."""
    if not others:
        raise TypeError(first)
    return any(first == other for other in others)


def _and(first: Any, *others: Any) -> Any:
    for value in (first, *others):
        if not value:
            return value
    return (first, *others)[-1]


def _or(first: Any, *others: Any) -> Any:
    for value in (first, *others):
        if value:
            return value
    return (first, *others)[-1]


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "json": _to_json,
    "upper": lambda text: _text(text).upper(),
    "lower": lambda text: _text(text).lower(),
    "title": _title,
    "join": _join,
    "split": lambda text, separator: _text(text).split(separator),
    "pad": _pad,
    "truncate": _truncate,
    "len": len,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "eq": _equal,
    "ne": lambda left, right: left != right,
    "lt": _compare(operator.lt),
    "le": _compare(operator.le),
    "gt": _compare(operator.gt),
    "ge": _compare(operator.ge),
    "and": _and,
    "or": _or,
    "not": operator.not_,
}
