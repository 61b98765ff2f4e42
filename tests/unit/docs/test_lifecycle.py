# SPDX-License-Identifier: Apache-2.0
"""What the pages say is what the code does."""

import re

import grpc

from hyperd import errors
from hyperd.model.container import ContainerState, ExitReason
from hyperd.sandbox import machine
from tests.unit.docs.lifecycle import PAGE, drawn, render_diagram


def test_the_drawn_lifecycle_is_the_machine_s() -> None:
    assert drawn() == render_diagram(), "python -m tests.unit.docs.lifecycle draws it anew"


def test_every_state_event_and_reason_is_explained() -> None:
    text = PAGE.read_text()
    for word in (
        *(kind.__name__ for kind in (*machine.STATES, *machine.EVENTS)),
        *ContainerState,
        *ExitReason,
    ):
        assert re.search(rf"`{word}`", text), word


def test_every_error_is_in_its_page_with_its_status() -> None:
    text = (PAGE.parent / "errors.md").read_text()
    for kind in error_kinds():
        assert re.search(rf"^\| `{kind.__name__}` \| {kind.code} \|", text, re.MULTILINE), kind
        assert kind.code in grpc.StatusCode.__members__


def test_the_drawn_errors_are_the_classes() -> None:
    """On the page, and where they are made."""
    inherits = {kind.__name__: kind.__mro__[1].__name__ for kind in error_kinds()}
    for text in ((PAGE.parent / "errors.md").read_text(), errors.__doc__ or ""):
        assert drawn_errors(text) == inherits


def error_kinds() -> list[type[errors.HyperError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.HyperError)
    ]


def drawn_errors(text: str) -> dict[str, str]:
    """Name -> that of its parent, from a tree drawn with lines."""
    above: dict[int, str] = {-1: "Exception"}
    found = {}
    for indent, name in re.findall(r"^    ([ │├└─]*)(\w+Error)\b", text, re.MULTILINE):
        depth = len(indent) // 4
        above[depth] = name
        found[name] = above[depth - 1]
    return found
