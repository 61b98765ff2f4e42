# SPDX-License-Identifier: Apache-2.0
"""What may be asked of a container in the state that it is in: else WrongStateError, with what the way on is."""

from hyperd.errors import WrongStateError
from hyperd.sandbox.machine import (
    Created,
    Exited,
    Failed,
    Hibernated,
    Paused,
    Removing,
    RunFacts,
    Running,
    State,
    Stopping,
    name_of,
)


def require_startable(state: State, name: str) -> None:
    if not isinstance(state, Created | Exited | Failed):
        raise WrongStateError(f"is {name_of(state)}", subject=f"container {name}", hint=_way_on(state, name))


def require_running(state: State, name: str) -> None:
    match state:
        case Running():
            return
        case Paused() | Hibernated():
            brief = f"is {name_of(state)}"
        case _:
            brief = f"is not running ({name_of(state)})"
    hint = _way_on(state, name) or f"`hyper start {name}` starts it"
    raise WrongStateError(brief, subject=f"container {name}", hint=hint)


def require_openable(state: State, name: str) -> None:
    """Its files can be read and written, or will be when it has come up."""
    if isinstance(state, Paused | Hibernated | Stopping | Removing):
        hint = _way_on(state, name) or "try again when it is"
        raise WrongStateError(
            f"is {name_of(state)}: its files cannot be opened", subject=f"container {name}", hint=hint
        )


def require_up(state: State, name: str) -> RunFacts:
    """Running or paused: there is something to save."""
    if isinstance(state, Running | Paused):
        return state.facts
    require_running(state, name)
    raise AssertionError("it runs")


def require_paused(state: State, name: str) -> None:
    if not isinstance(state, Paused):
        raise WrongStateError(f"is not paused ({name_of(state)})", subject=f"container {name}")


def require_hibernated(state: State, name: str) -> None:
    if not isinstance(state, Hibernated):
        raise WrongStateError(f"is not hibernated ({name_of(state)})", subject=f"container {name}")


def require_removable(state: State, name: str) -> None:
    if not isinstance(state, Created | Exited | Failed | Hibernated):
        raise WrongStateError(
            f"is {name_of(state)}", subject=f"container {name}", hint="stop it first, or remove it with -f"
        )


def _way_on(state: State, name: str) -> str:
    match state:
        case Paused():
            return f"`hyper unpause {name}` lets it go on"
        case Hibernated():
            return f"`hyper wake {name}` lets it go on"
    return ""
