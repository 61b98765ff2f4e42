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
    NetworkSpec,
    NetworkView,
    PortRequest,
    PublishedPort,
)
from hyperd.model.vm import SandboxId


class Network(Protocol):
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

    async def release(self, sandbox_id: SandboxId) -> None:
        """Remove taps and leases. Idempotent."""

    async def list_attached(self) -> set[SandboxId]:
        """Who owns a lease or a tap, for cleaning up after a kill."""

    def list_networks(self) -> list[NetworkView]:
        """The default one first, then oldest first."""

    def get_network(self, reference: str) -> NetworkView:
        """By name, id, or unique prefix of an id. Raises NotFoundError, InvalidError."""

    async def create_network(self, spec: NetworkSpec) -> NetworkView:
        """Raises ExistsError, InvalidError, UnavailableError, ExhaustedError (no subnet left). Nothing stays behind."""

    async def remove_network(self, name: str) -> None:
        """Raises NotFoundError, WrongStateError while somebody has an address of it."""
