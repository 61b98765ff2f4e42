# SPDX-License-Identifier: Apache-2.0
"""Who rides in the VM of a sandbox, its carrier: other containers, which have no VM of their own.

    (asks) --the carrier runs--> seated --it has left, its disks with it--> (gone)

Seats are taken one at a time, and not while the VM stands still; while one is taken nothing is done to the VM as a
whole. The carrier's run does not end before its riders have left, or have had their time.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hyperd.errors import UnavailableError, WrongStateError
from hyperd.guest.base import Guest
from hyperd.model.container import ContainerRecord, Exit
from hyperd.model.guest import ContainerId
from hyperd.model.vm import SandboxId
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.machine import RunFacts, State
from hyperd.sandbox.presence import Presence
from hyperd.sandbox.pulse import Pulse

log = logging.getLogger(__name__)

SEND_OFF_TIMEOUT_S = 30.0  # killed, drained, synced, unplugged; under emulation on a busy host
RETRY_S = 2.0  # for another connection to the agent, before the same one is tried again


@dataclass(frozen=True, slots=True)
class Rider:
    """Who asks for a seat. ``tell_end`` is called when the carrier's run ends: it has to leave."""

    sandbox_id: SandboxId
    name: str
    tell_end: Callable[[Exit], None]


class Seat:
    """Of one rider, for as long as it is in the VM."""

    def __init__(
        self, rider: Rider, riders: "Riders", carrier: ContainerRecord, facts: RunFacts, vm: Presence
    ) -> None:
        self.carrier = carrier
        self.facts = facts
        self._rider = rider
        self._riders = riders
        self._vm = vm

    @property
    def vm_id(self) -> SandboxId:
        return self.carrier.sandbox_id

    @property
    def carriers_container(self) -> ContainerId:
        """In the guest."""
        return container_id_of(self.carrier)

    @property
    def guest(self) -> Guest:
        """The one connection that there is to the VM's agent; the carrier's to close."""
        return self._vm.live.guest

    def leave(self) -> None:
        """The last that is done: the VM may be saved, or go. Of one that was taken anew, nothing."""
        self._riders.leave(self._rider)

    def note_left_behind(self) -> None:
        """Something of it stays in the guest, perhaps unsynced."""
        self._riders.left_behind = True

    async def next_guest(self, broken: Guest) -> Guest:
        """After ``broken`` broke: the next connection, or the same one again when only a call of it failed.

        Raises UnavailableError when the VM goes.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._vm.other_guest(broken)
        if self._vm.is_ending:
            raise UnavailableError(f"the VM of container {self.carrier.name} is going")
        return self._vm.live.guest


class Carrier(Protocol):
    """What a rider sees of the sandbox whose VM it wants to be in."""

    @property
    def record(self) -> ContainerRecord: ...

    @property
    def state(self) -> State: ...

    async def take_seat(self, rider: Rider) -> Seat:
        """Waits while its agent is being found. Raises WrongStateError unless it runs, TimeoutExpiredError."""


class Carriers:
    """All sandboxes, as riders find them; the fleet says how."""

    def __init__(self) -> None:
        self.find: Callable[[SandboxId], Carrier | None] = lambda _: None


class Riders:
    """Of one carrier, whoever has its VM now."""

    def __init__(self) -> None:
        self.left_behind = False  # something of one, in the guest
        self._seated: dict[SandboxId, Rider] = {}
        self._changed = Pulse()

    @property
    def names(self) -> list[str]:
        return sorted(rider.name for rider in self._seated.values())

    def seat(self, rider: Rider, carrier: ContainerRecord, facts: RunFacts, vm: Presence) -> Seat:
        """One each: whoever asks again has lost hold of the one before."""
        self._seated[rider.sandbox_id] = rider
        return Seat(rider, self, carrier, facts, vm)

    def leave(self, rider: Rider) -> None:
        if self._seated.get(rider.sandbox_id) is rider:
            del self._seated[rider.sandbox_id]
            self._changed.beat()

    def forget(self) -> None:
        """The run is over, and whoever had a seat in its VM has none in the next one's."""
        self._seated.clear()
        self.left_behind = False

    def require_none(self, subject: str, what: str) -> None:
        """Raises WrongStateError. ``what`` is of the whole VM."""
        if self._seated:
            raise WrongStateError(
                f"has others in its VM ({', '.join(self.names)}), and {what} would be of all of them",
                subject=subject,
                hint=f"`hyper stop {' '.join(self.names)}` first",
            )

    def tell_end(self, exit_: Exit) -> None:
        for rider in tuple(self._seated.values()):
            rider.tell_end(exit_)

    async def send_off(self, exit_: Exit) -> bool:
        """Return when all have left, or their time is over: then the VM is taken from under them.

        Whether nothing of anybody's is in the guest any more, which else is to be synced.
        """
        self.tell_end(exit_)
        try:
            async with asyncio.timeout(SEND_OFF_TIMEOUT_S):
                while self._seated:
                    await self._changed.wait()
        except TimeoutError:
            log.warning("riders did not leave in time", extra={"riders": ", ".join(self.names)})
            self.left_behind = True
        is_empty = not self.left_behind
        self.forget()
        return is_empty
