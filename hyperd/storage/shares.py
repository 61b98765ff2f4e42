# SPDX-License-Identifier: Apache-2.0
"""Directories and files of the host for guests: one virtiofsd for each (``serving``), which ends with its connection.

The host's ids are the guest's. virtiofsd runs as root, as it must to give a file its owner, with seven capabilities,
under seccomp, in namespaces of its own where there is nothing but what it serves (``enclosure``).
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hyperd.errors import UnavailableError
from hyperd.host import files
from hyperd.host.workers import Wanted, Workers
from hyperd.model.share import BrokenShare, IdRange, Share, ShareRequest
from hyperd.model.vm import SandboxId, SharePort
from hyperd.storage import enclosure
from hyperd.storage.places import Places
from hyperd.storage.serving import Command, Place, Servers

_HINT = "`hyper doctor` says whether virtiofsd is there"
# It makes no device nodes: a guest needs none on the host, and who serves a read-only share changes nothing at all.
_DROPPED = "-mknod"
_DROPPED_READONLY = "-mknod:-chown:-fowner:-fsetid:-setfcap"


class LocalShares:
    """``owner_of`` tells the (uid, gid) of a sandbox's QEMU; None leaves sockets to the daemon's own user."""

    def __init__(
        self,
        root: Path,
        program: Path,
        places: Places,
        *,
        owner_of: Callable[[SandboxId], tuple[int, int]] | None = None,
    ) -> None:
        self._program = program
        self._places = places
        self._workers = Workers("shares", 2)
        self._servers = Servers(root, self._workers, "virtiofsd", owner_of)

    def close(self) -> None:
        """Those that run, run on."""
        self._workers.close()
        self._servers.close()

    async def require_possible(self, requests: Sequence[ShareRequest]) -> None:
        await self._workers.call(self._require_program)
        for request in requests:
            await self._workers.call(self._places.require_possible, request)

    async def find(self, requests: Sequence[ShareRequest]) -> tuple[Share, ...]:
        if not requests:
            return ()
        await self._workers.call(self._require_program)
        return tuple([await self._workers.call(self._places.find, request) for request in requests])

    async def serve(self, sandbox_id: SandboxId, shares: Sequence[Share]) -> tuple[SharePort, ...]:
        await self.end(sandbox_id)
        await self._servers.expect(sandbox_id)
        try:
            return await self._workers.call_while_wanted(self._start_all, sandbox_id, shares)
        except BaseException:
            await asyncio.shield(self.end(sandbox_id))
            raise

    async def require_served(self, sandbox_id: SandboxId) -> None:
        if (ended := await self._servers.find_ended(sandbox_id)) is not None:
            tag, evidence = ended
            raise UnavailableError("cannot be served", subject=f"share {tag}", evidence=evidence, hint=_HINT)

    async def wait_broken(self, sandbox_id: SandboxId, known: Collection[str] = ()) -> BrokenShare:
        return BrokenShare(*await self._servers.wait_ended(sandbox_id, known))

    async def end(self, sandbox_id: SandboxId) -> None:
        await self._servers.end(sandbox_id)

    async def keep_only(self, running: Collection[SandboxId]) -> None:
        await self._servers.keep_only(running)

    async def tidy(self) -> None:
        self._servers.tidy()

    def _start_all(
        self, wanted: Wanted, sandbox_id: SandboxId, shares: Sequence[Share]
    ) -> tuple[SharePort, ...]:
        ports = []
        for share in shares:
            wanted.require()
            tag = share.request.tag
            ports.append(SharePort(tag, self._servers.start(sandbox_id, tag, self._command_of(share))))
        return tuple(ports)

    def _command_of(self, share: Share) -> Callable[[Place], Command]:
        def command(place: Place) -> Command:
            covered = place.socket.with_suffix(".place")
            files.make_directory(covered, 0o700)
            plan = enclosure.Plan(
                source=os.fspath(share.path),
                place=os.fspath(covered),
                entry=share.entry,
                readonly=share.request.readonly,
                argv=self._argv(share.request),
            )
            argv = [sys.executable, "-I", "-S", enclosure.__file__, "3", json.dumps(plan)]
            return Command(argv, (place.lock_fd, place.listener_fd))

        return command

    def _argv(self, request: ShareRequest) -> list[str]:
        dropped = _DROPPED_READONLY if request.readonly else _DROPPED
        return [
            # Its own links resolved: what it is started with lies beside it.
            *(os.path.realpath(self._program), "--fd", "4", "--sandbox", "namespace", "--log-level", "error"),
            *("--cache", "auto", "--xattr", f"--modcaps={dropped}"),
            *(["--readonly"] if request.readonly else []),
            *(word for ids in request.uids for word in ("--translate-uid", _translation(ids))),
            *(word for ids in request.gids for word in ("--translate-gid", _translation(ids))),
        ]

    def _require_program(self) -> None:
        if not os.access(self._program, os.X_OK):
            raise UnavailableError(
                "is not there: directories of the host cannot be shared",
                subject=f"virtiofsd, {self._program}",
                hint="Debian 13 has it as a package, on Debian 12 `make setup` brings it; or set [storage] virtiofsd",
            )


def _translation(ids: IdRange) -> str:
    return f"map:{ids.guest}:{ids.host}:{ids.count}"
