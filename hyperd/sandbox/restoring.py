# SPDX-License-Identifier: Apache-2.0
"""What is made from snapshots: clones, forks, and a sandbox that goes back to one of its own."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from hyperd.errors import HyperError, InvalidError, UnavailableError, WrongStateError
from hyperd.host.groups import first_error
from hyperd.model.container import ContainerRecord, ContainerView
from hyperd.model.snapshot import Snapshot
from hyperd.sandbox import identity, machine, mounts, preconditions, wiring
from hyperd.sandbox.cloning import CloneOptions, fork_identity, plan_clones
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.handle import SandboxHandle
from hyperd.sandbox.network_desk import settled
from hyperd.sandbox.policy_desk import as_limited
from hyperd.sandbox.revival import Origin, require_restorable
from hyperd.sandbox.roster import Roster
from hyperd.sandbox.source import DISK, Source, parse_source, source_of, title_of
from hyperd.sandbox.standstill import to_the_end

log = logging.getLogger(__name__)

R = TypeVar("R")
RESTORES_AT_ONCE = 16
LET_GO_TIMEOUT_S = 30.0


class RestoringFleet(Roster):
    async def restore(self, reference: str, options: CloneOptions) -> list[ContainerView]:
        """Clones of a snapshot, in the order of their index: all of them or none.

        Raises NotFoundError, InvalidError, ExistsError, ImageNotFoundError, UnsupportedError (another kind of host),
        ExhaustedError with the arithmetic, RestoreError.
        """
        snapshot = await self.snapshot_desk.get_of_container(reference)
        return await self._detached(self._restore_in_use(snapshot, options))

    async def fork(self, reference: str, options: CloneOptions) -> tuple[list[ContainerView], int]:
        """A snapshot that nobody sees, and clones of it; and for how many ms the source stood still. All or none."""
        return await self._detached(self._fork(self._find(reference), options))

    async def roll_back(self, reference: str, snapshot_reference: str) -> None:
        """The same sandbox, back at one of its own snapshots. Raises InvalidError for one of another's.

        What can be refused or fail is, as far as it can be told, before the run that there is has ended.
        """
        snapshot = await self.snapshot_desk.get_of_container(snapshot_reference)
        driver = self._find(reference)
        source = parse_source(snapshot.manifest)
        if source.sandbox_id != driver.record.sandbox_id:
            raise InvalidError(
                f"is of container {source.name}",
                subject=title_of(snapshot),
                hint=f"`hyper run --from-snapshot {snapshot_reference}` makes a clone of it",
            )
        if driver.record.sandbox_id in self._rolling_back:
            raise WrongStateError("is being rolled back", subject=driver.subject)
        driver.require_can_roll_back()
        self._rolling_back.add(
            driver.record.sandbox_id
        )  # now: in this turn of the loop another may be asked for
        await self._detached(
            self._roll_back(driver, Origin(snapshot, back=True, output_offset=source.output_offset))
        )

    async def _roll_back(self, driver: SandboxDriver, origin: Origin) -> None:
        rooms, snapshot, record = self._services.runner.rooms, origin.snapshot, driver.record
        try:
            with self.snapshots.in_use(snapshot):
                await self._require_restorable(snapshot, record)
                await rooms.images.root_disk(record.image_id)
                staged = await rooms.storage.stage_writable(record.sandbox_id, snapshot.path(DISK))
                try:
                    await SandboxHandle(driver).roll_back(replace(origin, staged=staged))
                except BaseException:
                    await to_the_end(rooms.storage.discard_staged(record.sandbox_id))
                    raise
        finally:
            self._rolling_back.discard(record.sandbox_id)

    async def _restore_in_use(self, snapshot: Snapshot, options: CloneOptions) -> list[ContainerView]:
        with self.snapshots.in_use(snapshot):
            return await self._restore(snapshot, options)

    async def _fork(self, driver: SandboxDriver, options: CloneOptions) -> tuple[list[ContainerView], int]:
        # All that can be refused is refused before the source stands still.
        facts = preconditions.require_up(driver.state, driver.record.name)
        driver.require_vm_alone("a fork")
        mounts.require_none(driver.record, "a fork")
        network = self._services.runner.rooms.network
        await wiring.require_saveable(network, driver.record, facts.attachments, "a fork")
        planned = self._plan(source_of(as_limited(network, driver.record)), options)
        admission_ = self._services.ledger.admission
        admission_.admit_all([record.sandbox_id for record in planned], driver.record.sizing)
        snapshot = await SandboxHandle(driver).snapshot(passing=True)
        try:
            views = await self._restore(snapshot, options)
        finally:
            await to_the_end(self.snapshots.forget(snapshot.manifest.snapshot_id))
        return views, parse_source(snapshot.manifest).pause_ms

    def _plan(self, source: Source, options: CloneOptions) -> list[ContainerRecord]:
        """Raises InvalidError, ExistsError for a name, NotFoundError for a network."""
        network = self._services.runner.rooms.network
        planned = plan_clones(source, options, self._taken(), datetime.now(UTC))
        for record in planned:
            self._require_free(record.name)
        return [replace(record, spec=settled(network, record.spec)) for record in planned]

    async def _require_restorable(self, snapshot: Snapshot, record: ContainerRecord) -> None:
        services = self._services
        require_restorable(
            snapshot,
            record.sizing,
            has_nic=record.spec.network != "none",
            accelerator=await services.accelerator(),
            guest=services.runner.settings.guest,
            host=await services.facts.get(),
        )
        await services.runner.rooms.snapshots.require_intact(snapshot)

    async def _restore(self, snapshot: Snapshot, options: CloneOptions) -> list[ContainerView]:
        source = parse_source(snapshot.manifest)
        records = self._plan(source, options)
        services, rooms = self._services, self._services.runner.rooms
        await rooms.images.get(source.image_id)
        await self._require_restorable(snapshot, records[0])
        services.ledger.admit_all([record.sandbox_id for record in records], source.sizing)
        try:
            await self._insert(*records, pending=True)
        except BaseException:
            for record in records:
                services.ledger.release(record.sandbox_id)
            raise
        drivers = [self._admit(record, machine.Created(), 0, pending=True) for record in records]
        handles = [SandboxHandle(driver) for driver in drivers]
        try:
            await self._bring_to_life(handles, snapshot, options)
        except BaseException:
            await to_the_end(self._undo(handles))
            raise
        # From here on they are containers like any other, and nothing of them is undone.
        for driver in drivers:
            driver.pending = False
        await self._let_go(drivers)
        fields = {"snapshot": snapshot.manifest.snapshot_id[:12], "count": options.count}
        log.info("restored", extra=fields)
        return [handle.view() for handle in handles]

    async def _bring_to_life(
        self, handles: Sequence[SandboxHandle], snapshot: Snapshot, options: CloneOptions
    ) -> None:
        """Until all are there they stand still, and a hyperd that is killed leaves none of them."""
        places = asyncio.Semaphore(RESTORES_AT_ONCE)

        async def revive(index: int, handle: SandboxHandle) -> None:
            async with places:
                fork = fork_identity(options, index, identity.hostname_of(handle.record))
                await handle.revive(Origin(snapshot, fork))

        async with first_error(), asyncio.TaskGroup() as tasks:
            for index, handle in enumerate(handles):
                tasks.create_task(revive(index, handle))
        # To its end: whether they are all there is known then, and it is either all or none.
        await to_the_end(self._services.records.settle([handle.record.sandbox_id for handle in handles]))

    async def _let_go(self, drivers: Sequence[SandboxDriver]) -> None:
        """Each as soon as it can; one that cannot be thawed now is shown with its trouble, and tried again."""
        letting = [driver.let_go() for driver in drivers]
        if letting:
            await asyncio.wait(letting, timeout=LET_GO_TIMEOUT_S)

    async def _undo(self, handles: Sequence[SandboxHandle]) -> None:
        async def remove(handle: SandboxHandle) -> None:
            try:
                await handle.remove(force=True)
            except HyperError as error:
                log.error("clone not removed", extra={"sandbox": handle.record.name, "error": str(error)})  # noqa: TRY400

        async with asyncio.TaskGroup() as tasks:
            for handle in handles:
                tasks.create_task(remove(handle))

    async def _detached(self, work: Coroutine[Any, Any, R]) -> R:
        """A caller who hangs up ends its wait, never half of the work."""
        outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        async def carry() -> None:
            try:
                result = await work
            except Exception as error:  # noqa: BLE001 - handed on, bugs too
                outcome.set_exception(error)
                outcome.exception()  # perhaps nobody waits any more
            else:
                outcome.set_result(result)

        def ended(_: object) -> None:
            if not outcome.done():
                outcome.set_exception(UnavailableError("hyperd is ending"))
                outcome.exception()

        task = self._tasks.create_task(carry())
        task.add_done_callback(ended)
        return await asyncio.shield(outcome)
