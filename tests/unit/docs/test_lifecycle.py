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
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.HyperError)
    ]
    for kind in kinds:
        assert re.search(rf"^\| `{kind.__name__}` \| {kind.code} \|", text, re.MULTILINE), kind
        assert kind.code in grpc.StatusCode.__members__
