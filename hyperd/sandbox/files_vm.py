# SPDX-License-Identifier: Apache-2.0
"""A VM in which the files of a sandbox that does not run are open, and none of its programs run.

memory admitted -> VM from a template or booted, no network -> agent's hello -> identity -> root mounted
               -> one call -> root unmounted, disk synced, guest off -> VM gone, memory given back

It has the sandbox's own id, since its disk belongs to the user of that QEMU; the sandbox's state does not change. So
what a killed hyperd left of it is a VM that should not be, and the next one ends it.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from hyperd.errors import HyperError, UnavailableError
from hyperd.guest.base import Guest
from hyperd.model.container import ContainerRecord, Sizing
from hyperd.model.volume import Mount
from hyperd.sandbox.errands import Services
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.message import OpenFiles
from hyperd.sandbox.rooms import Phases
from hyperd.sandbox.run import SYNC_TIMEOUT_S, Live
from hyperd.sandbox.standstill import to_the_end

log = logging.getLogger(__name__)

# Whatever the container has: one template serves them all, and a large one's files fit on a host that is nearly full.
SIZING = Sizing(1, 256)


class FilesVm:
    def __init__(
        self,
        record: ContainerRecord,
        services: Services,
        post: Callable[[OpenFiles], None],
        mounts: tuple[Mount, ...] = (),
    ) -> None:
        """``post``: to the sandbox's driver, which has it as a task of its own. ``mounts``: disks that it is about."""
        # Nothing else that others could want, or wait for: no address, no published port, no other volume.
        spec = replace(record.spec, network="none", mounts=mounts)
        self._record = replace(record, sizing=SIZING, spec=spec)
        self._services = services
        self._post = post
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Guest] = loop.create_future()
        self._wanted: asyncio.Future[bool] = loop.create_future()  # True: end in order; False: at once
        self._unsynced: HyperError | None = None

    @contextlib.asynccontextmanager
    async def up(self, *, lasting: bool) -> AsyncIterator[Guest]:
        """Until the block ends; then the VM is gone. ``lasting``: and what was written is on its disk, or it raises.

        Raises what bringing it up raises, ExhaustedError (no memory now). A caller who is cancelled ends it at once.
        """
        started: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()
        self._post(OpenFiles(self._keep(), started))
        try:
            keeping = await started
        except BaseException:
            if started.done() and not started.cancelled() and started.exception() is None:
                started.result().cancel()  # in the same turn of the loop it was begun, and nobody else knows of it
                await to_the_end(_gone(started.result()))
            raise
        keeping.add_done_callback(self._over)
        try:
            yield await asyncio.shield(self._ready)
        except BaseException as error:
            if not self._ready.done():
                keeping.cancel()
            self._end(in_order=isinstance(error, HyperError))
            await to_the_end(_gone(keeping))
            raise
        self._end(in_order=True)
        await to_the_end(_gone(keeping))
        if lasting and self._unsynced is not None:
            raise UnavailableError(
                "was written to, but perhaps not all of it is on its disk",
                subject=f"container {self._record.name}",
                evidence=str(self._unsynced),
                hint="write it once more",
            ) from self._unsynced

    def _end(self, *, in_order: bool) -> None:
        if not self._wanted.done():
            self._wanted.set_result(in_order)

    def _over(self, _: object) -> None:
        """Also when it was cancelled before its first step: nobody may wait for ever."""
        if not self._ready.done():
            self._ready.set_exception(
                UnavailableError("was given up", subject=f"container {self._record.name}")
            )
        if not self._ready.cancelled():
            self._ready.exception()  # perhaps nobody waits any more

    async def _keep(self) -> None:
        ledger, sandbox_id = self._services.ledger, self._record.sandbox_id
        live: Live | None = None
        try:
            ledger.admit(sandbox_id, SIZING)
            accelerator = await self._services.accelerator()
            live = await self._services.runner.bring_up(self._record, accelerator, Phases(), only_files=True)
            self._ready.set_result(live.guest)
            log.info("files opened", extra={"sandbox": self._record.name})
            if await self._wanted:
                await self._shut_down(live.guest)
        except HyperError as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            try:
                if live is not None:
                    await to_the_end(self._take_away(live))
            finally:
                ledger.release(sandbox_id)

    async def _shut_down(self, guest: Guest) -> None:
        try:
            await guest.delete_container(container_id_of(self._record))
            await guest.shutdown(SYNC_TIMEOUT_S)
        except HyperError as error:
            log.warning("guest not shut down", extra={"sandbox": self._record.name, "error": str(error)})
            self._unsynced = error

    async def _take_away(self, live: Live) -> None:
        try:
            await live.stack.aclose()
        except HyperError as error:  # the fleet's next look ends what is left
            log.error("not torn down", extra={"sandbox": self._record.name, "error": str(error)})  # noqa: TRY400
        log.info("files closed", extra={"sandbox": self._record.name})


async def _gone(task: "asyncio.Task[None]") -> None:
    await asyncio.wait((task,))
