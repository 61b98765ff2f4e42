# SPDX-License-Identifier: Apache-2.0
"""The lifecycle as a pure function: total, and deaf to what comes late or twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import WrongStateError
from hyperd.model.container import ContainerState, Exit, ExitReason
from hyperd.sandbox import machine, preconditions
from hyperd.sandbox.machine import (
    Created,
    Exited,
    Failed,
    Hibernated,
    Paused,
    Removing,
    Running,
    Starting,
    Stopping,
    step,
)
from tests.unit.sandbox.states import events, exits, facts, states, times

AT_REST = (Created, Exited, Failed)
WITH_VM = (Running, Paused, Stopping)


@given(states, events)
def test_every_event_in_every_state_gives_a_state(state: machine.State, event: machine.Event) -> None:
    assert isinstance(step(state, event), machine.STATES)
    assert machine.name_of(state) in ContainerState


@given(states, events)
def test_an_event_that_comes_twice_changes_nothing_more(state: machine.State, event: machine.Event) -> None:
    once = step(state, event)
    # Requests are guarded by require_*.
    if not isinstance(event, machine.Remove | machine.Start | machine.RollBack):
        assert step(once, event) == once


@given(states, times)
def test_only_what_rests_can_start(state: machine.State, at) -> None:
    after = step(state, machine.Start(at))
    if isinstance(state, AT_REST):
        assert after == Starting(at)
    elif isinstance(state, Hibernated):
        assert after == Starting(at, asleep=state)
        assert step(after, machine.StartFailed(Exit(125, ExitReason.START_FAILED), at)) == state
    else:
        assert after is state


@given(states, events)
def test_a_vm_comes_only_by_started_and_goes_only_by_its_end(
    state: machine.State, event: machine.Event
) -> None:
    before, after = isinstance(state, WITH_VM), isinstance(step(state, event), WITH_VM)
    if not before and after:
        assert isinstance(state, Starting)
        assert isinstance(event, machine.Started)
    if before and not after:
        assert isinstance(event, machine.Gone | machine.Lost | machine.Slept | machine.RollBack)


@given(st.lists(events, max_size=30))
def test_nothing_leads_out_of_removing(history: list[machine.Event]) -> None:
    state: machine.State = Removing()
    for event in history:
        state = step(state, event)
    assert state == Removing()


@given(facts, exits, exits)
def test_the_first_end_counts(run: machine.RunFacts, first: Exit, second: Exit) -> None:
    ending = step(step(Running(run), machine.Stop(first)), machine.Stop(second))
    assert ending == Stopping(run, first)


@given(facts, exits, times)
def test_how_it_began_is_known_when_it_has_ended(run: machine.RunFacts, exit_: Exit, at) -> None:
    for up in (Running(run), Paused(run), Stopping(run)):
        for end in (machine.Gone(exit_, at), machine.Lost(exit_, at)):
            after = step(up, end)
            assert isinstance(after, Exited | Failed)
            assert after.start == run.start


@given(states)
def test_what_is_required_is_what_step_accepts(state: machine.State) -> None:
    for require, kinds in (
        (preconditions.require_startable, AT_REST),
        (preconditions.require_removable, (*AT_REST, Hibernated)),
        (preconditions.require_running, (Running,)),
        (preconditions.require_up, (Running, Paused)),
        (preconditions.require_paused, (Paused,)),
        (preconditions.require_hibernated, (Hibernated,)),
    ):
        if isinstance(state, kinds):
            require(state, "web")
        else:
            with pytest.raises(WrongStateError, match=machine.name_of(state)):
                require(state, "web")


@given(states)
def test_an_exit_is_known_exactly_where_it_ended(state: machine.State) -> None:
    assert (machine.exit_of(state) is not None) == isinstance(state, Exited | Failed)


@given(facts)
def test_pausing_and_unpausing_changes_nothing_else(run: machine.RunFacts) -> None:
    assert step(Running(run), machine.Pause()) == Paused(run)
    assert step(step(Running(run), machine.Pause()), machine.Unpause()) == Running(run)


def test_a_lost_exit_is_never_taken_for_a_process_s_own() -> None:
    assert machine.is_lost(machine.lost(ExitReason.VM_LOST, ""))
    assert not machine.is_lost(Exit(127, ExitReason.START_FAILED))
    assert not machine.is_lost(Exit(125, ExitReason.EXITED))
