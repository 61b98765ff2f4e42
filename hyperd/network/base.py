# SPDX-License-Identifier: Apache-2.0
"""Addresses and wires for sandboxes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from hyperd.errors import HyperError
from hyperd.model.network import (
    DEFAULT_ENDPOINT,
    DEFAULT_NETWORK,
    Attachment,
    Endpoint,
    FloatingAddress,
    NetworkSpec,
    NetworkView,
    PortRequest,
    PublishedPort,
)
from hyperd.model.policy import EgressReport, Limits, SecurityGroup
from hyperd.model.stats import WireUsage
from hyperd.model.vm import SandboxId


class FloatingAddresses(Protocol):
    """Of the configuration's pools; ``reference``: an address, or its name."""

    async def list_addresses(self) -> list[FloatingAddress]:
        """Those that are allocated, in order."""

    async def allocate(self, count: int, wanted: str = "") -> list[FloatingAddress]:
        """Raises ExhaustedError, ExistsError for the wanted one, InvalidError."""

    async def attach(self, reference: str, sandbox_id: SandboxId, *, force: bool = False) -> FloatingAddress:
        """One to one, until it is detached or the sandbox released; ``force``: whoever has it loses it.

        Raises NotFoundError, WrongStateError when somebody has it, ExistsError when the sandbox has another.
        """

    async def detach(self, sandbox_id: SandboxId) -> FloatingAddress | None:
        """As it was; None: it had none. Idempotent."""

    async def name(self, reference: str, name: str) -> FloatingAddress:
        """``name`` "": none. Raises NotFoundError, ExistsError, InvalidError."""

    async def release(self, reference: str) -> None:
        """Raises NotFoundError, WrongStateError while it is attached."""


class SecurityGroups(Protocol):
    """By name."""

    def list_groups(self) -> list[SecurityGroup]:
        """In order."""

    def get(self, name: str) -> SecurityGroup:
        """Raises NotFoundError."""

    async def create(self, document: str, name: str = "") -> SecurityGroup:
        """Raises InvalidError, ExistsError, NotFoundError for one that it speaks of, ExhaustedError."""

    async def update(self, document: str, name: str = "") -> SecurityGroup:
        """Whole, and at once for all that have it. Raises InvalidError, NotFoundError."""


class Policies(Protocol):
    """By sandbox, from before it is attached until it is released; the report outlives it."""

    @property
    def groups(self) -> SecurityGroups:
        """That sandboxes may have."""

    def require_valid(self, limits: Limits) -> None:
        """Raises InvalidError, NotFoundError for a group."""

    def groups_in(self, limits: Limits) -> set[str]:
        """Those that it has, or speaks of."""

    async def remove_group(self, name: str) -> None:
        """That no sandbox has. Raises NotFoundError, WrongStateError while another group speaks of it."""

    def covers(self, sandbox_id: SandboxId) -> bool:
        """Whether it has any, perhaps empty ones by now."""

    def limits_of(self, sandbox_id: SandboxId) -> Limits:
        """As they are now; empty when it has none."""

    async def impose(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        """Before it is attached, unless it has some already: those were changed since."""

    async def change(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        """From its next ``attach`` or ``enforce`` on. Raises InvalidError, NotFoundError for a group."""

    async def report(self, reference: str) -> EgressReport:
        """What was refused, by id, name or unique prefix of an id, also of one that has gone.

        Raises NotFoundError, InvalidError.
        """


class Network(Protocol):
    @property
    def policies(self) -> Policies:
        """What sandboxes may begin."""

    @property
    def floating(self) -> FloatingAddresses:
        """Addresses that are lent to sandboxes."""

    @property
    def trouble(self) -> HyperError | None:
        """Why it could not be prepared, the last time that was tried."""

    async def prepare(self) -> None:
        """Make or repair bridge, forwarding and NAT. Idempotent. Raises UnavailableError, DeniedError."""

    async def attach(
        self,
        sandbox_id: SandboxId,
        ports: Sequence[PortRequest] = (),
        holder: str = "",
        endpoint: Endpoint = DEFAULT_ENDPOINT,
        slot: int = 0,
    ) -> Attachment:
        """Lease an address and make the tap, already on the bridge and up; prepare first where that failed before.

        A sandbox keeps its lease of each network until ``release`` or ``disconnect``: attaching again gives the same
        address. ``slot``: which of its NICs; a tap that was parked there is used again. ``ports`` are published, for
        ``holder``, whom others are told when they ask for one of them, until ``detach``.
        Raises NotFoundError when there is no such network, ExhaustedError when no address is left, ExistsError for a
        port, address or MAC that is taken, InvalidError for one that cannot be. Nothing stays behind.
        """

    async def detach(self, sandbox_id: SandboxId) -> None:
        """Remove its taps, take its ports back, keep the leases. Idempotent."""

    async def disconnect(self, sandbox_id: SandboxId, network: str) -> None:
        """Lease, rules and ports go; a tap is parked: it leads nowhere, for its VM may not have let go. Idempotent.

        Raises NotFoundError when there is no such network.
        """

    async def list_parked(self, sandbox_id: SandboxId) -> dict[int, str]:
        """Taps that are on no network, by slot."""

    async def remove_parked(self, sandbox_id: SandboxId, tap: str) -> None:
        """When its VM has let go of it. Idempotent; one that is on a network stays."""

    async def keep_only(self, wanted: Mapping[SandboxId, Collection[str]]) -> set[SandboxId]:
        """Of these sandboxes, those that have left a network by it: one that is not wanted, after a kill."""

    async def enforce(self, sandbox_id: SandboxId) -> None:
        """Its policy as it is now, where it is attached: for what it has begun, too. Idempotent."""

    async def publish(
        self, sandbox_id: SandboxId, ports: Sequence[PortRequest], holder: str, network: str = DEFAULT_NETWORK
    ) -> tuple[PublishedPort, ...]:
        """Further ports of one that is attached: all or none. Raises as ``attach``, WrongStateError when it is not."""

    async def lead_ports(
        self, sandbox_id: SandboxId, network: str, holder: str, otherwise: Sequence[PortRequest] = ()
    ) -> None:
        """All that it publishes leads to its address on ``network`` from now on; to an internal one nothing does.

        ``otherwise``: where nothing is published. Connections end. Raises as ``publish``.
        """

    async def unpublish(self, sandbox_id: SandboxId, ports: Collection[PublishedPort]) -> None:
        """All or none; connections over them end. Raises NotFoundError."""

    def published(self, sandbox_id: SandboxId) -> tuple[PublishedPort, ...]:
        """In order of the container's ports; known once the network was prepared or asked who is attached."""

    async def usage(self, sandbox_ids: Collection[SandboxId]) -> dict[SandboxId, WireUsage]:
        """Of those that have taps. Raises UnavailableError."""

    async def release(self, sandbox_id: SandboxId) -> None:
        """Remove taps and leases. Idempotent."""

    async def list_attached(self) -> set[SandboxId]:
        """Who owns a lease, a tap or a floating address, for cleaning up after a kill."""

    async def clear(self) -> None:
        """Networks that users made, and of the default one all that is on the host: it is made again when needed.

        Raises WrongStateError while somebody has an address.
        """

    def list_networks(self) -> list[NetworkView]:
        """The default one first, then oldest first."""

    def get_network(self, reference: str) -> NetworkView:
        """By name, id, or unique prefix of an id. Raises NotFoundError, InvalidError."""

    async def create_network(self, spec: NetworkSpec) -> NetworkView:
        """Raises ExistsError, InvalidError, UnavailableError, ExhaustedError (no subnet left). Nothing stays behind."""

    async def remove_network(self, name: str) -> None:
        """Raises NotFoundError, WrongStateError while somebody has an address of it."""
