# SPDX-License-Identifier: Apache-2.0
"""Shares that nobody serves: who has which, what fails, and what breaks when a test says so."""

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

from hyperd.errors import HyperError, InvalidError, UnavailableError
from hyperd.model.share import BrokenShare, Share, ShareRequest
from hyperd.model.vm import SandboxId, SharePort


class FakeShares:
    def __init__(self) -> None:
        self.missing: set[str] = set()  # sources that are not there
        self.files: set[str] = set()  # sources that are files
        self.made: list[str] = []  # directories
        self.served: dict[SandboxId, tuple[Share, ...]] = {}
        self.times: list[SandboxId] = []  # of every serve
        self.ended: list[SandboxId] = []
        self.tidied = 0
        self.fail_next_find: HyperError | None = None
        self.fail_next_serve: HyperError | None = None
        self.fail_next_wait: HyperError | None = None
        self._broken: dict[SandboxId, list[BrokenShare]] = {}
        self._breaks = asyncio.Event()

    async def require_possible(self, requests: Sequence[ShareRequest]) -> None:
        error, self.fail_next_find = self.fail_next_find, None
        if error is not None:
            raise error
        for request in requests:
            self._require_there(request)

    async def find(self, requests: Sequence[ShareRequest]) -> tuple[Share, ...]:
        await self.require_possible(requests)
        for request in requests:
            if request.source in self.missing:
                self.missing.remove(request.source)
                self.made.append(request.source)
        return tuple(
            Share(request, Path(request.source), request.source in self.files) for request in requests
        )

    async def serve(self, sandbox_id: SandboxId, shares: Sequence[Share]) -> tuple[SharePort, ...]:
        error, self.fail_next_serve = self.fail_next_serve, None
        if error is not None:
            raise error
        self.served[sandbox_id] = tuple(shares)
        self.times.append(sandbox_id)
        tags = [share.request.tag for share in shares]
        return tuple(SharePort(tag, Path("/fake/shares") / sandbox_id[:12] / f"{tag}.sock") for tag in tags)

    async def require_served(self, sandbox_id: SandboxId) -> None:
        for broken in self._broken.get(sandbox_id, ()):
            if broken.evidence:
                raise UnavailableError(
                    "cannot be served", subject=f"share {broken.tag}", evidence=broken.evidence
                )

    async def wait_broken(self, sandbox_id: SandboxId, known: Collection[str] = ()) -> BrokenShare:
        error, self.fail_next_wait = self.fail_next_wait, None
        if error is not None:
            raise error
        while not (left := [one for one in self._broken.get(sandbox_id, ()) if one.tag not in known]):
            self._breaks.clear()
            await self._breaks.wait()
        return left[0]

    async def end(self, sandbox_id: SandboxId) -> None:
        self.ended.append(sandbox_id)
        self.served.pop(sandbox_id, None)
        self._broken.pop(sandbox_id, None)

    async def keep_only(self, running: Collection[SandboxId]) -> None:
        for sandbox_id in set(self.served) - set(running):
            await self.end(sandbox_id)

    async def tidy(self) -> None:
        self.tidied += 1

    def crash(self, sandbox_id: SandboxId, tag: str, evidence: str = "") -> None:
        """Whoever serves it is killed, or ends with a complaint."""
        self._broken.setdefault(sandbox_id, []).append(BrokenShare(tag, evidence))
        self._breaks.set()

    def _require_there(self, request: ShareRequest) -> None:
        if request.source in self.missing and not request.create_source:
            raise InvalidError(f"bind source path does not exist: {request.source}")
