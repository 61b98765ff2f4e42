# SPDX-License-Identifier: Apache-2.0
"""What a driver's inbox holds: requests of callers, and news of what was under way."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass

from hyperd.errors import HyperError
from hyperd.model.container import ContainerSpec, Exit
from hyperd.model.guest import ProcessExit
from hyperd.model.network import Endpoint
from hyperd.model.snapshot import Snapshot
from hyperd.model.vm import VmGone, VmStatus
from hyperd.sandbox import machine
from hyperd.sandbox.revival import Origin
from hyperd.sandbox.riders import Rider, Seat
from hyperd.sandbox.run import Live

Done = asyncio.Future[None]
Started = asyncio.Future[ProcessExit | None]  # an exit: the process could not be executed


@dataclass(frozen=True, slots=True)
class AskStart:
    done: Started
    origin: Origin | None = None  # a clone: it is up when it stands still there


@dataclass(frozen=True, slots=True)
class AskStop:
    done: Done
    signal: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class AskRemove:
    done: Done
    force: bool
    volumes: bool = False  # the anonymous ones, too


@dataclass(frozen=True, slots=True)
class AskPause:
    done: Done


@dataclass(frozen=True, slots=True)
class AskUnpause:
    done: Done


@dataclass(frozen=True, slots=True)
class AskSnapshot:
    done: "asyncio.Future[Snapshot]"
    name: str = ""
    passing: bool = False  # of a fork: nobody sees it


@dataclass(frozen=True, slots=True)
class AskHibernate:
    done: Done


@dataclass(frozen=True, slots=True)
class AskConnect:
    """The answer is what its user is to be told."""

    done: "asyncio.Future[list[str]]"
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class AskDisconnect:
    """The answer is what its user is to be told. ``force``: its guest is neither told nor waited for."""

    done: "asyncio.Future[list[str]]"
    network: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class AskSeat:
    """Of a carrier: another container wants to be in its VM."""

    done: "asyncio.Future[Seat]"
    rider: Rider


@dataclass(frozen=True, slots=True)
class AskWake:
    done: Started


@dataclass(frozen=True, slots=True)
class AskRollback:
    done: Started
    origin: Origin


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """``work`` is to be a task of the driver's: it keeps a VM up in which the sandbox's files are open."""

    work: Coroutine[object, object, None]
    started: "asyncio.Future[asyncio.Task[None]]"


@dataclass(frozen=True, slots=True)
class Adopt:
    vm: VmStatus | None


@dataclass(frozen=True, slots=True)
class ClearAway:
    """A run left something behind: a VM, or volumes that are attached to one that is gone."""


@dataclass(frozen=True, slots=True)
class IsUp:
    live: Live
    refused: ProcessExit | None = None  # why the first process was not executed
    frozen: bool = False  # it goes on when it is thawed


@dataclass(frozen=True, slots=True)
class UpFailed:
    error: HyperError


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    status: ProcessExit


@dataclass(frozen=True, slots=True)
class IsLost:
    exit: Exit


@dataclass(frozen=True, slots=True)
class CarrierEnds:
    """Of a rider: the VM that it is in goes, and it has to leave. ``exit``: how it ends by that."""

    exit: Exit


@dataclass(frozen=True, slots=True)
class IsDown:
    exit: Exit


@dataclass(frozen=True, slots=True)
class IsRemoved:
    error: HyperError | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """An operation has made ``event`` true; it goes on when the state says so. ``spec``: what changes with it."""

    event: machine.Event
    done: Done
    spec: ContainerSpec | None = None


News = IsUp | UpFailed | ProcessEnded | IsLost | CarrierEnds | IsDown | Settle


@dataclass(frozen=True, slots=True)
class OfRun:
    """News of one run of the VM: worth nothing once another has begun."""

    run: int
    news: News


Rewire = AskConnect | AskDisconnect
Operation = AskPause | AskUnpause | AskSnapshot | AskHibernate | AskSeat | Rewire
AskOfWhole = AskStop | AskWake | AskRollback | Operation  # not of a clone whose fellows are not there yet
Ask = AskStart | AskStop | AskRemove | AskWake | AskRollback | Operation
Message = Ask | OpenFiles | Adopt | ClearAway | OfRun | IsRemoved | VmGone
