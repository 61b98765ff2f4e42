# SPDX-License-Identifier: Apache-2.0
"""Draws the lifecycle by asking ``machine.step``; as a program it writes docs/lifecycle.md anew."""

from datetime import UTC, datetime
from pathlib import Path

from hyperd.model.container import Exit, ExitReason
from hyperd.model.snapshot import SnapshotId
from hyperd.sandbox import machine

PAGE = Path(__file__).parents[3] / "docs" / "lifecycle.md"
BEGIN, END = "```mermaid\n", "```\n"

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_FACTS = machine.RunFacts(_NOW, 1, 1, "tcg", "6.12", 1, None)
_EXITS = (Exit(0, ExitReason.EXITED), Exit(125, ExitReason.START_FAILED), Exit(127, ExitReason.START_FAILED))
_STATES: tuple[machine.State, ...] = (
    machine.Created(),
    machine.Starting(_NOW),
    machine.Starting(_NOW, asleep=machine.Hibernated(SnapshotId("s"), _FACTS, _NOW)),
    machine.Running(_FACTS),
    machine.Paused(_FACTS),
    machine.Stopping(_FACTS),
    machine.Hibernated(SnapshotId("s"), _FACTS, _NOW),
    machine.Exited(_EXITS[0], _NOW, _NOW),
    machine.Failed(_EXITS[1], _NOW, _NOW),
    machine.Removing(),
)
_EVENTS: tuple[machine.Event, ...] = (
    machine.Start(_NOW),
    machine.Started(_FACTS),
    *(machine.StartFailed(exit_, _NOW) for exit_ in _EXITS[1:]),
    machine.Pause(),
    machine.Unpause(),
    machine.Rewired(()),
    machine.Slept(SnapshotId("s"), _NOW),
    machine.RollBack(SnapshotId("s"), _NOW),
    machine.Stop(),
    *(machine.Gone(exit_, _NOW) for exit_ in _EXITS),
    *(machine.Lost(exit_, _NOW) for exit_ in _EXITS),
    machine.Remove(),
)


def render_diagram() -> str:
    """Every arrow that leads from one state to another, in the order of the states."""
    assert tuple(dict.fromkeys(type(state) for state in _STATES)) == machine.STATES
    assert {type(event) for event in _EVENTS} == set(machine.EVENTS)
    arrows: dict[str, None] = {}
    for state in _STATES:
        for event in _EVENTS:
            after = machine.step(state, event)
            if type(after) is not type(state):
                arrows[f"    {type(state).__name__} --> {type(after).__name__}: {type(event).__name__}\n"] = (
                    None
                )
    return "stateDiagram-v2\n    [*] --> Created\n" + "".join(arrows) + "    Removing --> [*]\n"


def drawn() -> str:
    return PAGE.read_text().split(BEGIN, 1)[1].split(END, 1)[0]


def main() -> None:
    before, rest = PAGE.read_text().split(BEGIN, 1)
    PAGE.write_text(before + BEGIN + render_diagram() + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
