# SPDX-License-Identifier: Apache-2.0
"""Between a sandbox's QEMU and a server that wants more than an address: one qemu-nbd for each disk (``serving``).

    QEMU of a VM  -- NBD, a UNIX socket -->  qemu-nbd, another user  -- iSCSI or Ceph's, with the secret -->  server

The password or key is with qemu-nbd alone, which gets it as a file that has no name: neither a QEMU that a guest has
taken over nor `ps`, a log or the records have it. A disk of an NBD server needs no door: QEMU goes there itself.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import HyperError
from hyperd.host.workers import Wanted, Workers
from hyperd.model.vm import NbdExport, SandboxId
from hyperd.storage import remote
from hyperd.storage.door_plans import Plan, hint_of, plan
from hyperd.storage.remote_disks import IscsiDisk, RbdDisk, Server
from hyperd.storage.serving import Command, Place, Servers

_NAME = "disk"
_KEY_DIGITS = 12  # as of a directory's name
# To hang up: Ceph has the lock of one that was killed wait for half a minute.
PATIENCE_S = 5.0
# Its own pid, for whoever comes later; then systemd's way to hand over a socket that listens.
_SCRIPT = 'echo $$ >"$1"; shift; cd /; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
_READ_ONLY = ("--read-only",)
_READ_WRITE = ("--cache", "writeback", "--discard", "unmap")


@dataclass(frozen=True, slots=True)
class Opened:
    """Where a sandbox's QEMU finds the disk until ``end``: it answers."""

    export: NbdExport
    size_bytes: int


class Doors:
    """``owner_of`` as of ``Servers``; ``user``: the (uid, gid) of each qemu-nbd, None leaves it to the daemon's own."""

    def __init__(
        self,
        root: Path,
        *,
        owner_of: Callable[[SandboxId], tuple[int, int]] | None = None,
        user: tuple[int, int] | None = None,
    ) -> None:
        self._workers = Workers("doors", 2)
        self._servers = Servers(root, self._workers, "qemu-nbd", owner_of, PATIENCE_S)
        self._user = user

    def close(self) -> None:
        """Those that run, run on."""
        self._workers.close()
        self._servers.close()

    async def open(
        self, sandbox_id: SandboxId, key: str, server: Server, *, readonly: bool = False
    ) -> Opened:
        """``key``: of the volume. Idempotent.

        Raises as ``remote.size_of``, with what the server said, and as ``plan``.
        """
        if isinstance(server.disk, NbdExport):
            size_bytes = await remote.size_of(server.disk, str(server), readonly=readonly)
            return Opened(server.disk, size_bytes)
        await self._servers.expect(sandbox_id)
        tag = key[:_KEY_DIGITS]
        path = await self._workers.call_while_wanted(
            self._start, sandbox_id, tag, server.disk, _READ_ONLY if readonly else _READ_WRITE
        )
        export = NbdExport("", 0, _NAME, path)
        try:
            size_bytes = await remote.size_of(export, str(server), readonly=readonly)
        except HyperError as error:
            ended = await self._servers.find_ended(sandbox_id)
            raise type(error)(
                "the server cannot be used" if ended else error.brief,
                subject=str(server),
                evidence=ended[1].replace(str(path), "") if ended else "",
                hint=hint_of(server.disk),
            ) from error
        return Opened(export, size_bytes)

    @contextlib.asynccontextmanager
    async def passing(self, server: Server) -> AsyncIterator[NbdExport]:
        """For the host itself, until the block ends."""
        nobody = SandboxId(secrets.token_hex(32))
        try:
            yield (await self.open(nobody, _NAME, server)).export
        finally:
            await asyncio.shield(self.end(nobody))

    async def wait_ended(self, sandbox_id: SandboxId) -> tuple[str, str]:
        """The ``key`` of the first that has ended, as far as it names one, and its complaint.

        Of who has none this never returns.
        """
        return await self._servers.wait_ended(sandbox_id)

    async def end(self, sandbox_id: SandboxId) -> None:
        """Its VM is no more. Idempotent."""
        await self._servers.end(sandbox_id)

    async def keep_only(self, running: Collection[SandboxId]) -> None:
        await self._servers.keep_only(running)

    def _start(
        self,
        wanted: Wanted,
        sandbox_id: SandboxId,
        key: str,
        disk: IscsiDisk | RbdDisk,
        mode: Sequence[str],
    ) -> Path:
        wanted.require()
        there = self._servers.find(sandbox_id, key)
        if there is not None:
            return there
        with contextlib.ExitStack() as stack:
            planned = plan(disk)
            secret = [] if planned.secret is None else [_in_memory(planned.secret, stack)]

            def command(place: Place) -> Command:
                return Command(
                    [*("sh", "-c", _SCRIPT, "sh", str(place.lock)), *self._argv(planned, place), *mode],
                    [place.listener_fd, place.lock_fd, *secret],
                )

            return self._servers.start(sandbox_id, key, command)

    def _argv(self, planned: Plan, place: Place) -> list[str]:
        as_user = []
        if self._user is not None:
            uid, gid = self._user
            as_user = ["--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
        options = ",".join(f"{key}={value}" for key, value in planned.options.items())
        return [
            *("setpriv", *as_user, "--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all", "--"),
            *("qemu-nbd", *planned.objects, "--image-opts", options),
            # A QEMU that was away comes back, and whoever looks is no QEMU.
            *("--export-name", _NAME, "--persistent", "--shared", "2"),
            *("--description", str(place.socket)),  # whose it is, for `ps`
        ]


def _in_memory(secret: bytes, stack: contextlib.ExitStack) -> int:
    descriptor = os.memfd_create("secret", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    os.write(descriptor, secret)
    return descriptor
