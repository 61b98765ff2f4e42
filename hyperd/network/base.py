# SPDX-License-Identifier: Apache-2.0
"""Addresses and wires for sandboxes."""

from typing import Protocol

from hyperd.errors import HyperError
from hyperd.model.network import Attachment
from hyperd.model.vm import SandboxId


class Network(Protocol):
    trouble: HyperError | None  # why it could not be prepared, the last time that was tried

    async def prepare(self) -> None:
        """Make or repair bridge, forwarding and NAT. Idempotent. Raises UnavailableError, DeniedError."""

    async def attach(self, sandbox_id: SandboxId) -> Attachment:
        """Lease an address and make the tap, already on the bridge and up; prepare first where that failed before.

        A sandbox keeps its lease until ``release``: attaching again gives the same address.
        Raises ExhaustedError when no address is left. Nothing stays behind.
        """

    async def detach(self, sandbox_id: SandboxId) -> None:
        """Remove the tap, keep the lease. Idempotent."""

    async def release(self, sandbox_id: SandboxId) -> None:
        """Remove tap and lease. Idempotent."""

    async def list_attached(self) -> set[SandboxId]:
        """Who owns a lease or a tap, for cleaning up after a kill."""
