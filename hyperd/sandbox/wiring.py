# SPDX-License-Identifier: Apache-2.0
"""A sandbox on its networks: all of them at a start, one more or one less while it runs.

What is recorded decides: a network is joined before that is recorded, and left after. So one that hyperd was killed in
the middle of is left when the next hyperd holds the leases against the records (``Network.keep_only``).
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace

from hyperd.errors import HyperError, UnsupportedError
from hyperd.guest.base import Guest
from hyperd.model.container import ContainerRecord, ContainerSpec
from hyperd.model.guest import GuestWiring
from hyperd.model.network import Attachment, Endpoint, PortRequest, way_out
from hyperd.model.vm import Nic
from hyperd.network.base import Network
from hyperd.sandbox import identity, policy_desk, ports
from hyperd.sandbox.endpoints import connected, disconnected, endpoints_of
from hyperd.sandbox.rooms import Rooms
from hyperd.sandbox.spares import Spares, attach_before_spares
from hyperd.sandbox.standstill import to_the_end

log = logging.getLogger(__name__)

KEEPS_NIC = "its guest has not let go of the NIC: that leads nowhere, and goes when the container stops"
FIRST = 0  # the slot of the NIC that a VM starts with
Record = Callable[[ContainerSpec, tuple[Attachment, ...]], Awaitable[None]]


async def attach(
    network: Network, record: ContainerRecord, published: tuple[PortRequest, ...] | None = None
) -> tuple[Attachment, ...]:
    """In the order of its NICs; its ports lead to the one with the default route. Raises as ``Network.attach``.

    ``published``: those, and not what it was created with.
    """
    if published is None:
        published = ports.wanted(record.spec)
    endpoints = endpoints_of(record.spec)
    if endpoints:
        await impose(network, record)
    out = min(endpoints, key=lambda at: _rank(network, at), default=None) if len(endpoints) > 1 else None
    attachments = []
    for slot, endpoint in enumerate(endpoints):
        wanted = published if endpoint is (out or endpoint) else ()
        attachments.append(await network.attach(record.sandbox_id, wanted, record.name, endpoint, slot))
    return tuple(attachments)


async def impose(network: Network, record: ContainerRecord) -> None:
    """What it may begin and hear, before it is on any network."""
    await network.policies.impose(record.sandbox_id, policy_desk.limits_of(record.spec), record.name)


def _rank(network: Network, endpoint: Endpoint) -> tuple[bool, int, str]:
    """As ``way_out`` has it of attachments."""
    internal = network.get_network(endpoint.network).spec.internal
    return internal, -endpoint.gateway_priority, endpoint.network


@dataclass(frozen=True, slots=True)
class Rewiring:
    """Of a sandbox that runs. ``record`` makes it known, and lasting, what it is on from then on."""

    sandbox: ContainerRecord
    hosts: tuple[str, ...]  # NAME:ADDRESS, those of its links among them
    before: tuple[Attachment, ...]
    rooms: Rooms
    spares: Spares  # one that has the address gives way
    guest: Guest
    record: Record

    async def connect(self, endpoint: Endpoint) -> list[str]:
        """All of it or nothing; what is to be told. Raises WrongStateError, InvalidError, what the rooms raise."""
        spec, network = connected(self.sandbox, endpoint), self.rooms.network
        slot = _free_slot(self.before, await network.list_parked(self.sandbox.sandbox_id))
        await impose(network, self.sandbox)
        made = await attach_before_spares(
            self.spares,
            (endpoint,),
            lambda: network.attach(self.sandbox.sandbox_id, (), self.sandbox.name, endpoint, slot),
        )
        try:
            after = (*self.before, made)
            await self.rooms.hypervisor.attach_nic(self.sandbox.sandbox_id, Nic(made.tap, made.mac))
            await self.guest.rewire(self._wiring(after))
            await self.record(spec, after)
        except BaseException:
            await to_the_end(self._undo(endpoint.network))
            raise
        return await self.lead_ports(spec, after, anew=not _leads_out(self.before))

    async def disconnect(self, network: str, *, force: bool = False) -> list[str]:
        """Whatever the guest says to it. What is to be told. Raises NotFoundError."""
        spec = disconnected(self.sandbox, network)
        (gone,) = (at for at in self.before if at.network == network)
        after = tuple(at for at in self.before if at is not gone)
        await self.record(spec, after)
        told = await to_the_end(self._leave(network, spec, after, force=force))
        if gone.slot != FIRST and not force and not await self.remove_parked():
            told.append(KEEPS_NIC)  # the first one stays with its VM, for the next network
        return told

    async def reroute(self) -> None:
        """Where a policy took it off its bridges: its guest is told, and loses nothing by it.

        Raises what the guest does; then the next change tells it, or the next hyperd.
        """
        if needs_routes(self.rooms.network, self.sandbox, self.before):
            after = tuple(replace(at, is_routed=True) for at in self.before)
            await self.guest.rewire(self._wiring(after))
            await self.record(self.sandbox.spec, after)

    async def _leave(
        self,
        network: str,
        spec: ContainerSpec,
        after: tuple[Attachment, ...],
        *,
        force: bool,
    ) -> list[str]:
        if not force:
            await self._tell_guest(after)
        told = await self.lead_ports(spec, after)
        await self.rooms.network.disconnect(self.sandbox.sandbox_id, network)
        return told

    async def has_parked(self) -> bool:
        """Beside the NIC that it was started with, which stays."""
        return bool(set(await self.rooms.network.list_parked(self.sandbox.sandbox_id)) - {FIRST})

    async def settle(self) -> None:
        """What a hyperd that was killed left halfway: the guest is told what it is on, and lets go of the rest."""
        await self._tell_guest(self.before)
        await self.lead_ports(self.sandbox.spec, self.before, anew=True)
        await self.remove_parked()

    async def lead_ports(
        self, spec: ContainerSpec, attachments: Sequence[Attachment], *, anew: bool = False
    ) -> list[str]:
        """Where the way out is another now, to that. What is to be told: that they are published no more, and why.

        ``anew``: where nothing is published, what it is to publish when it starts.
        """
        out, sandbox = way_out(attachments), self.sandbox
        if out is None:
            return []
        network, before = self.rooms.network, self.rooms.network.published(sandbox.sandbox_id)
        wanted = ports.wanted(spec) if anew else ()
        try:
            await network.lead_ports(sandbox.sandbox_id, out.network, sandbox.name, wanted)
        except HyperError as error:
            log.error("ports not published", extra={"sandbox": sandbox.name, "error": str(error)})  # noqa: TRY400
            left = network.published(sandbox.sandbox_id)
            gone = ", ".join(str(port) for port in before if port not in left)
            return [
                f"ports are published no more: {gone or 'all that it was to have'} ({error}); see `hyper port add`"
            ]
        return []

    async def remove_parked(self) -> bool:
        """Whether all are gone: the guest's own part in it has a deadline."""
        sandbox_id, network = self.sandbox.sandbox_id, self.rooms.network
        left = False
        for tap in (await network.list_parked(sandbox_id)).values():
            if await self.rooms.hypervisor.detach_nic(sandbox_id, tap):
                await network.remove_parked(sandbox_id, tap)
            else:
                left = True
        return not left

    async def _undo(self, network: str) -> None:
        """Each step, whatever becomes of the others."""
        await self._tell_guest(self.before)
        try:
            await self.rooms.network.disconnect(self.sandbox.sandbox_id, network)
            await self.remove_parked()
        except HyperError as error:
            fields = {"sandbox": self.sandbox.name, "network": network, "error": str(error)}
            log.error("not taken back", extra=fields)  # noqa: TRY400

    def _wiring(self, attachments: tuple[Attachment, ...]) -> GuestWiring:
        told = replace(self.sandbox, spec=replace(self.sandbox.spec, extra_hosts=self.hosts))
        return identity.wiring_of(told, attachments)

    async def _tell_guest(self, attachments: tuple[Attachment, ...]) -> None:
        """A guest that does not listen is cut off all the same."""
        try:
            await self.guest.rewire(self._wiring(attachments))
        except HyperError as error:
            log.warning("guest not rewired", extra={"sandbox": self.sandbox.name, "error": str(error)})


def needs_routes(network: Network, record: ContainerRecord, attachments: Sequence[Attachment]) -> bool:
    """Whether its guest still takes its neighbours in IPv6 to be on the same wire."""
    return network.policies.covers(record.sandbox_id) and any(
        at.address6 and not at.is_routed for at in attachments
    )


def _leads_out(attachments: Sequence[Attachment]) -> bool:
    out = way_out(attachments)
    return out is not None and not out.internal


def _free_slot(attachments: Sequence[Attachment], parked: Collection[int]) -> int:
    """The NIC that it was started with where that is free; else one that no guest is about to let go of."""
    if FIRST in parked:
        return FIRST
    taken = {attachment.slot for attachment in attachments} | {FIRST, *parked}
    return next(slot for slot in range(len(taken) + 1) if slot not in taken)


async def require_saveable(
    network: Network, record: ContainerRecord, attachments: Sequence[Attachment], what: str
) -> None:
    """A saved VM goes on in one of the same devices, which has the NIC that it starts with and no other.

    Raises UnsupportedError.
    """
    slots = {attachment.slot for attachment in attachments} | set(
        await network.list_parked(record.sandbox_id)
    )
    if slots <= {FIRST} and bool(slots) == bool(attachments):
        return
    raise UnsupportedError(
        f"{what} has the network that it was started on, and no other",
        subject=f"container {record.name}",
        hint="`hyper network disconnect` it from the others, or stop and start it",
    )
