# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a container and its sandbox, as a pure function.

    Created --Start--> Starting --Started--> Running --Stop--> Stopping --Gone--> Exited
                          |                     |                  |
                          +-StartFailed-> Failed <----Lost---------+
    Running --Gone--> Exited      Exited, Failed --Start--> Starting
    Running <--Pause, Unpause--> Paused --Stop, Gone, Lost--> as Running
    Running, Paused --Slept--> Hibernated --Start--> Starting --StartFailed--> Hibernated
    Running, Paused, Exited, Failed --RollBack--> Starting
    Created, Exited, Failed, Hibernated --Remove--> Removing (then the record is gone)

``step`` decides, the driver acts. A state carries exactly what exists in it: a VM exists in Running, Paused and
Stopping, may exist in Starting, and in no other. Late and duplicate events change nothing.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

from hyperd.model.container import ContainerState, Exit, ExitReason, StartReport
from hyperd.model.network import Attachment, PortRequest
from hyperd.model.snapshot import Compatibility, SnapshotId


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is true of one run of the VM, from its start to its end."""

    started_at: datetime
    vm_pid: int
    guest_pid: int
    accelerator: str
    guest_kernel: str
    start_ms: int
    attachment: Attachment | None
    start: StartReport | None = None
    made_of: Compatibility | None = None  # what another VM must be made of to go on where this one is saved
    further: tuple[Attachment, ...] = ()  # of further networks

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        return (self.attachment, *self.further) if self.attachment is not None else self.further


@dataclass(frozen=True, slots=True)
class Created: ...


@dataclass(frozen=True, slots=True)
class Hibernated:
    """On disk: the snapshot is the sandbox's own."""

    snapshot_id: SnapshotId
    facts: RunFacts
    since: datetime
    ports: tuple[PortRequest, ...] | None = (
        None  # published when it wakes; None: those that it was created with
    )


@dataclass(frozen=True, slots=True)
class Starting:
    """``asleep``: it wakes, and is asleep again should that fail. ``back_to``: it is rolled back to that snapshot.

    ``ports``: of one that is rolled back, published again; None: those that it was created with.
    """

    since: datetime
    asleep: Hibernated | None = None
    back_to: SnapshotId | None = None
    ports: tuple[PortRequest, ...] | None = None


@dataclass(frozen=True, slots=True)
class Running:
    facts: RunFacts


@dataclass(frozen=True, slots=True)
class Paused:
    """Its CPUs stand still."""

    facts: RunFacts


@dataclass(frozen=True, slots=True)
class Stopping:
    """``exit``: how the run ended, once that is known and only the VM is still to go."""

    facts: RunFacts
    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    exit: Exit
    started_at: datetime
    finished_at: datetime
    start: StartReport | None = None  # how the run that ended began


@dataclass(frozen=True, slots=True)
class Failed:
    exit: Exit
    started_at: datetime | None
    finished_at: datetime
    start: StartReport | None = None  # as in Exited; none of a start that failed


@dataclass(frozen=True, slots=True)
class Removing:
    """``volumes``: the anonymous ones go too."""

    volumes: bool = False


State = Created | Starting | Running | Paused | Stopping | Hibernated | Exited | Failed | Removing


@dataclass(frozen=True, slots=True)
class Start:
    at: datetime


@dataclass(frozen=True, slots=True)
class Started:
    facts: RunFacts


@dataclass(frozen=True, slots=True)
class StartFailed:
    exit: Exit
    at: datetime


@dataclass(frozen=True, slots=True)
class Pause: ...


@dataclass(frozen=True, slots=True)
class Unpause: ...


@dataclass(frozen=True, slots=True)
class Rewired:
    """It is on other networks than before."""

    attachments: tuple[Attachment, ...]


@dataclass(frozen=True, slots=True)
class Slept:
    """It is saved whole, and its VM goes."""

    snapshot_id: SnapshotId
    at: datetime
    ports: tuple[PortRequest, ...] | None = None


@dataclass(frozen=True, slots=True)
class RollBack:
    """The run that there may be counts no more. ``ports``: what it had published, None: there was none."""

    snapshot_id: SnapshotId
    at: datetime
    ports: tuple[PortRequest, ...] | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Asked for, or (with ``exit``) the run is over and its VM has to go."""

    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The first process has ended and the VM is off."""

    exit: Exit
    at: datetime


@dataclass(frozen=True, slots=True)
class Lost:
    """The VM ended without the process's status."""

    exit: Exit
    at: datetime


@dataclass(frozen=True, slots=True)
class Remove:
    volumes: bool = False  # the anonymous ones, too


Event = (
    Start | Started | StartFailed | Pause | Unpause | Rewired | Slept | RollBack | Stop | Gone | Lost | Remove
)

STATES: tuple[type[State], ...] = (
    Created,
    Starting,
    Running,
    Paused,
    Stopping,
    Hibernated,
    Exited,
    Failed,
    Removing,
)
EVENTS: tuple[type[Event], ...] = (
    Start,
    Started,
    StartFailed,
    Pause,
    Unpause,
    Rewired,
    Slept,
    RollBack,
    Stop,
    Gone,
    Lost,
    Remove,
)


def step(state: State, event: Event) -> State:  # noqa: PLR0911, PLR0912 - an arrow a branch
    """The state after ``event``. Total: an event that means nothing in ``state`` leaves it as it is."""
    match state, event:
        case ((Created() | Exited() | Failed()), Start(at)):
            return Starting(at)
        case Hibernated(), Start(at):
            return Starting(at, asleep=state)
        case Starting(), Started(facts):
            return Running(facts)
        case Starting(_, Hibernated() as asleep), StartFailed():
            return asleep
        case Starting(), StartFailed(exit_, at):
            return Failed(exit_, None, at)
        case Running(facts), Pause():
            return Paused(facts)
        case Paused(facts), Unpause():
            return Running(facts)
        case Running(facts), Rewired(attachments):
            return Running(_rewired(facts, attachments))
        case ((Running(facts) | Paused(facts)), Slept(snapshot_id, at, ports)):
            return Hibernated(snapshot_id, facts, at, ports)
        case ((Running() | Paused() | Exited() | Failed()), RollBack(snapshot_id, at, ports)):
            return Starting(at, back_to=snapshot_id, ports=ports)
        case ((Running(facts) | Paused(facts) | Stopping(facts, None)), Stop(exit_)):
            return Stopping(facts, exit_)
        case ((Running(facts) | Paused(facts) | Stopping(facts)), Gone(exit_, at)):
            return Exited(exit_, facts.started_at, at, facts.start)
        case ((Running(facts) | Paused(facts) | Stopping(facts)), Lost(exit_, at)):
            return Failed(exit_, facts.started_at, at, facts.start)
        case ((Created() | Exited() | Failed() | Hibernated()), Remove(volumes)):
            return Removing(volumes)
    return state


def _rewired(facts: RunFacts, attachments: tuple[Attachment, ...]) -> RunFacts:
    first, further = (attachments[0], attachments[1:]) if attachments else (None, ())
    return replace(facts, attachment=first, further=further)


def name_of(state: State) -> ContainerState:  # noqa: PLR0911 - a state a branch
    match state:
        case Created():
            return ContainerState.CREATED
        case Starting():
            return ContainerState.STARTING
        case Running():
            return ContainerState.RUNNING
        case Paused():
            return ContainerState.PAUSED
        case Stopping():
            return ContainerState.STOPPING
        case Hibernated():
            return ContainerState.HIBERNATED
        case Exited():
            return ContainerState.EXITED
        case Failed():
            return ContainerState.FAILED
        case Removing():
            return ContainerState.REMOVING
        case _ as never:
            assert_never(never)


def asleep_in(state: State) -> SnapshotId | None:
    """The snapshot that is the sandbox's own: it sleeps there, or is being woken."""
    match state:
        case Hibernated(snapshot_id) | Starting(_, Hibernated(snapshot_id)):
            return snapshot_id
    return None


def exit_of(state: State) -> Exit | None:
    return state.exit if isinstance(state, Exited | Failed) else None


LOST_EXIT_CODE = 125  # hyper failed: no status of the process exists, and 0 would be a lie


_LOST = (ExitReason.VM_LOST, ExitReason.GUEST_PANIC, ExitReason.AGENT_LOST)


def is_lost(exit_: Exit) -> bool:
    """Whether the process's own status is unknown."""
    return exit_.reason in _LOST or (exit_.reason is ExitReason.START_FAILED and exit_.code == LOST_EXIT_CODE)


def lost(reason: ExitReason, message: str) -> Exit:
    return Exit(LOST_EXIT_CODE, reason, message=message)
