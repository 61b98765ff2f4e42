# SPDX-License-Identifier: Apache-2.0
"""Bytes for guests: the writable disk of a sandbox."""

from pathlib import Path
from typing import Protocol

from hyperd.model.vm import SandboxId


class Storage(Protocol):
    async def prepare(self) -> None:
        """Make the preformatted ext4 once. Raises ExhaustedError, UnavailableError (no mkfs.ext4)."""

    async def create_writable(self, sandbox_id: SandboxId) -> Path:
        """A sparse copy (reflink where the filesystem can) of the preformatted ext4. Existing: returned as it is.

        Raises ExhaustedError when the state directory is full; nothing stays behind.
        """

    async def adopt_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        """The sandbox's disk becomes a copy of ``source`` (reflink, else its data alone), whatever it was before.

        Replaced at once or not at all, and never after the call has ended, cancelled or not.
        Raises NotFoundError (no such source), ExhaustedError.
        """

    async def stage_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        """A copy of ``source`` beside the sandbox's disk, which stays as it is; one that was there before goes.

        Raises NotFoundError (no such source), ExhaustedError.
        """

    async def adopt_staged(self, sandbox_id: SandboxId) -> Path:
        """What was staged is the sandbox's disk now, at once, also when a VM has it open. Raises NotFoundError."""

    async def discard_staged(self, sandbox_id: SandboxId) -> None:
        """Idempotent."""

    async def writable_path(self, sandbox_id: SandboxId) -> Path:
        """Raises NotFoundError."""

    async def remove(self, sandbox_id: SandboxId) -> None:
        """Idempotent."""

    async def list_sandboxes(self) -> set[SandboxId]:
        """Who owns a writable disk, for cleaning up after a kill."""
