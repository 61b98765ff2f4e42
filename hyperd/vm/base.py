# SPDX-License-Identifier: Apache-2.0
"""The one protocol behind which every hypervisor stands."""

from collections.abc import AsyncIterator
from typing import Protocol

from hyperd.model.vm import SandboxId, VmDefinition, VmGone, VmStatus


class Hypervisor(Protocol):
    async def start(self, definition: VmDefinition) -> VmStatus:
        """Create and run a transient VM; return once its CPUs run.

        Raises ExistsError when one of that id exists, InvalidError for a definition that the hypervisor refuses,
        UnavailableError when its process dies at once (evidence: the end of its log). Nothing stays behind.
        """

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """End the VM at once. Idempotent; returns when its process is gone."""

    async def list_running(self) -> list[VmStatus]:
        """Every VM of ours that exists, those of an earlier daemon included."""

    def events(self) -> AsyncIterator[VmGone]:
        """One consumer. VMs that went away since the hypervisor was opened."""
