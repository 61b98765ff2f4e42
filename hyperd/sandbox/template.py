# SPDX-License-Identifier: Apache-2.0
"""Templates: booted guests with nothing in them, saved once, that sandboxes start from instead of booting.

    offer --there is one--> the start restores it --it worked, or it failed: ``failed`` forgets one that is bad
          --there is none--> a note why, and one is built behind the start's back: nobody waits for it

One is kept per Compatibility; whoever asks while it is built shares the one build. Builds are made one at a time, never
where memory or disk are short, and after a failure not before a while that doubles with each.
"""

import asyncio
import contextlib
import logging
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from hyperd.errors import (
    ClockError,
    DeniedError,
    ExhaustedError,
    ExistsError,
    HyperError,
    RestoreError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.snapshot import Compatibility, Snapshot, SnapshotId, SnapshotKind
from hyperd.model.vm import SandboxId
from hyperd.sandbox.compatibility import compatibility_of
from hyperd.sandbox.definition import GuestSettings, Shape, template_shape_definition
from hyperd.sandbox.facts import Facts
from hyperd.sandbox.in_use import InUse
from hyperd.sandbox.ledger import Ledger
from hyperd.sandbox.template_build import TemplateBuilder, TemplateSettings
from hyperd.snapshot.base import SnapshotStore

log = logging.getLogger(__name__)

RETRY_S = 30.0  # after a first failure; doubled with each further one, up to
MAX_RETRY_S = 3600.0
MAX_FLIGHTS = 8  # that starts may have set off, one behind the other
STRIKES = 2  # that many starts in a row may fail from a template, and come up without it
# A host that is too busy to prove the time; what is there already, used up or forbidden.
_NOT_ITS_FAULT = ClockError | ExistsError | ExhaustedError | DeniedError
TURNED_OFF = "templates are turned off ([template] enabled)"


@dataclass(frozen=True, slots=True)
class Offer:
    """A template to start from, or why there is none."""

    snapshot: Snapshot | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    error: HyperError
    times: int
    retry_at: float  # by the loop's clock


class Templates:
    def __init__(
        self,
        builder: TemplateBuilder,
        store: SnapshotStore,
        facts: Facts,
        ledger: Ledger,
        guest: GuestSettings,
        settings: TemplateSettings,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._builder = builder
        self._store = store
        self._facts = facts
        self._ledger = ledger
        self._guest = guest
        self._settings = settings
        self._tasks = tasks
        self._flights: dict[Compatibility, asyncio.Future[Snapshot]] = {}
        self._building: set[asyncio.Task[None]] = set()
        self._failures: dict[Compatibility, Failure] = {}
        self._strikes: Counter[SnapshotId] = Counter()
        self._in_use = InUse()
        self._one_at_a_time = asyncio.Lock()
        self._on_change: Callable[[], None] = lambda: None

    def tell_changes(self, on_change: Callable[[], None]) -> None:
        """Called when one has come or gone: for who keeps VMs that are made of it."""
        self._on_change = on_change

    @property
    def trouble(self) -> HyperError | None:
        """What kept the last template from being there, while it is not."""
        for key, failure in reversed(self._failures.items()):
            if self._store.find_compatible(SnapshotKind.TEMPLATE, key) is None:
                return failure.error
        return None

    async def offer(self, shape: Shape) -> Offer:
        """What a start of this shape can begin with, at once. Never raises HyperError: a start can always boot."""
        if not self._settings.enabled:
            return Offer(None, TURNED_OFF)
        try:
            key = await self._key(shape)
        except HyperError as error:
            return Offer(None, f"no template for {shape}: {_in_short(error)}")
        try:
            snapshot = await self._find_intact(key)
        except HyperError as error:
            self._begin(shape, key)
            return Offer(None, f"the template was damaged and is removed: {_in_short(error)}")
        if snapshot is not None:
            return Offer(snapshot)
        return Offer(None, self._begin(shape, key))

    async def find(self, shape: Shape) -> Snapshot | None:
        """As ``offer``, for who has no use for a reason and wants none built."""
        if not self._settings.enabled:
            return None
        try:
            return await self._find_intact(await self._key(shape))
        except HyperError:  # told where it was found
            return None

    async def build(self, shape: Shape) -> Snapshot:
        """Return when there is one; at once when there was. Raises what building it raises, WrongStateError."""
        if not self._settings.enabled:
            raise WrongStateError(
                "templates are turned off",
                subject="[template] enabled",
                hint="set it to true, restart hyperd",
            )
        key = await self._key(shape)
        with contextlib.suppress(RestoreError):  # it is removed, and made anew
            if (snapshot := await self._find_intact(key)) is not None:
                return snapshot
        flight = self._flights.get(key)
        if flight is None:
            self._require_room(shape)
            flight = self._launch(shape, key)
        return await asyncio.shield(flight)

    def in_use(self, snapshot: Snapshot) -> contextlib.AbstractContextManager[None]:
        """A start is under way from it: it is not the one to go when the budget is exceeded."""
        return self._in_use.of(snapshot)

    def worked(self, snapshot: Snapshot) -> None:
        """A guest that started from it has its identity."""
        self._strikes.pop(snapshot.manifest.snapshot_id, None)
        self._failures.pop(snapshot.manifest.compatibility, None)
        self._tasks.create_task(self._touch(snapshot))  # behind the start's back

    async def failed(self, shape: Shape, snapshot: Snapshot, error: HyperError) -> str:
        """A start from it failed before the guest had its identity. Return what the start's report says of it.

        Only what says that its files are bad makes it go at once; see ``booted_instead``.
        """
        if isinstance(error, RestoreError):
            return await self._give_up(shape, snapshot, error)
        fields = {"template": snapshot.manifest.snapshot_id[:12], "error": str(error)}
        log.warning("a start from a template failed: booting instead", extra=fields)
        return f"the start from a template failed: {_in_short(error)}"

    async def booted_instead(self, shape: Shape, snapshot: Snapshot, error: HyperError) -> str:
        """The same start came up by booting: that it failed before with ``error`` was the template's doing, not the
        host's or the container's. After some in a row it goes; then return what the report says of it, else "".
        """
        snapshot_id = snapshot.manifest.snapshot_id
        if isinstance(error, RestoreError | _NOT_ITS_FAULT):
            return ""
        self._strikes[snapshot_id] += 1
        return await self._give_up(shape, snapshot, error) if self._strikes[snapshot_id] >= STRIKES else ""

    async def _give_up(self, shape: Shape, snapshot: Snapshot, error: HyperError) -> str:
        fields = {"template": snapshot.manifest.snapshot_id[:12], "error": str(error)}
        log.warning("a template is bad: removing it", extra=fields)
        await self._forget(snapshot, error)
        self._begin(shape, snapshot.manifest.compatibility)
        return f"the template was bad and is removed: {_in_short(error)}"

    def list(self) -> list[Snapshot]:
        """Newest first."""
        return self._store.list(SnapshotKind.TEMPLATE)

    async def remove(self, reference: str) -> SnapshotId:
        """VMs that started from it go on. Raises NotFoundError, InvalidError."""
        snapshot_id = self._store.get(SnapshotKind.TEMPLATE, reference).manifest.snapshot_id
        await self._store.remove(snapshot_id)
        self._on_change()
        return snapshot_id

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Within, none is built: those under way are ended, for who needs what they have. Nothing of them stays.

        The next start that misses one sets it off anew.
        """
        for flight in self._flights.values():
            if not flight.done():
                flight.set_exception(UnavailableError("was ended by a reset", subject="template"))
        await self.close()
        async with self._one_at_a_time:
            yield

    async def close(self) -> None:
        """End the builds under way; nothing of them stays."""
        for task in tuple(self._building):
            task.cancel()
        if self._building:
            await asyncio.wait(tuple(self._building))

    async def _key(self, shape: Shape) -> Compatibility:
        described = template_shape_definition(shape, self._guest, share_memory=self._settings.share_memory)
        return compatibility_of(described, await self._facts.get())

    async def _find_intact(self, key: Compatibility) -> Snapshot | None:
        snapshot = self._store.find_compatible(SnapshotKind.TEMPLATE, key)
        if snapshot is None:
            return None
        try:
            await self._store.require_intact(snapshot)
        except HyperError as error:
            fields = {"template": snapshot.manifest.snapshot_id[:12], "error": str(error)}
            log.warning("a template is damaged: removing it", extra=fields)
            await self._forget(snapshot, error)
            raise
        return snapshot

    async def _forget(self, snapshot: Snapshot, error: HyperError) -> None:
        self._strikes.pop(snapshot.manifest.snapshot_id, None)
        # Made anew at once, the first time; only a start that works says that the new one is better.
        self._note_failure(snapshot.manifest.compatibility, error, first_wait_s=0)
        try:
            await self._store.remove(snapshot.manifest.snapshot_id)
        except HyperError as further:
            log.error("template not removed", extra={"error": str(further)})  # noqa: TRY400
        self._on_change()

    async def _touch(self, snapshot: Snapshot) -> None:
        try:
            await self._store.touch(snapshot)
        except HyperError as error:
            log.warning("template not marked as used", extra={"error": str(error)})

    def _begin(self, shape: Shape, key: Compatibility) -> str:
        missing = f"no template yet for {shape}"
        if key in self._flights:
            return f"{missing}: being built"
        failure = self._failures.get(key)
        wait_s = failure.retry_at - asyncio.get_running_loop().time() if failure else 0
        if failure is not None and wait_s > 0:
            return f"{missing}: {_in_short(failure.error)}; tried again in {math.ceil(wait_s)} s"
        if len(self._flights) >= MAX_FLIGHTS:
            return f"{missing}: {len(self._flights)} others are being built"
        try:
            self._require_room(shape)
        except HyperError as error:
            return f"{missing}: {_in_short(error)}"
        self._launch(shape, key)
        return f"{missing}: being built"

    def _require_room(self, shape: Shape) -> None:
        """Asked for and not held: a guest that only boots takes little of it, and no user's start is to be refused
        because a template is being built."""
        self._ledger.admission.admit(SandboxId("template"), shape.sizing)

    def _launch(self, shape: Shape, key: Compatibility) -> "asyncio.Future[Snapshot]":
        log.info("template being built", extra={"shape": str(shape)})  # before anything of it is there
        flight = asyncio.get_running_loop().create_future()
        flight.add_done_callback(_mark_heard)
        self._flights[key] = flight
        task = self._tasks.create_task(self._build(shape, key, flight), name=f"template {shape}")
        self._building.add(task)
        task.add_done_callback(self._building.discard)
        # Here and not in the task: it may be cancelled before its first step.
        task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    def _land(self, key: Compatibility, flight: "asyncio.Future[Snapshot]") -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.cancel()  # unless it has its outcome

    async def _build(self, shape: Shape, key: Compatibility, flight: "asyncio.Future[Snapshot]") -> None:
        """Never raises: ``flight`` has the outcome."""
        try:
            async with self._one_at_a_time:
                snapshot = await self._builder.build(shape, key)
        except HyperError as error:
            log.warning("template not built", extra={"shape": str(shape), "error": str(error)})
            self._note_failure(key, error)
            if not flight.done():
                flight.set_exception(error)
        except Exception as bug:
            bug_id = secrets.token_hex(4)
            log.exception("bug", extra={"shape": str(shape), "bug_id": bug_id})
            failure = HyperError(f"hyperd met a bug of its own (bug_id={bug_id} in its log)")
            failure.__cause__, failure.bug_id = bug, bug_id
            self._note_failure(key, failure)
            if not flight.done():
                flight.set_exception(failure)
        else:
            fields = {"shape": str(shape), "template": snapshot.manifest.snapshot_id[:12]}
            log.info("template built", extra=fields)
            if not flight.done():
                flight.set_result(snapshot)
            self._on_change()
            await self._trim(snapshot)

    async def _trim(self, fresh: Snapshot) -> None:
        keep = frozenset((fresh.manifest.snapshot_id, *self._in_use))
        try:
            removed = await self._store.trim(SnapshotKind.TEMPLATE, self._settings.budget_bytes, keep)
        except HyperError as error:
            log.warning("templates not trimmed", extra={"error": str(error)})
        else:
            if removed:
                log.info("templates removed for the budget", extra={"count": removed})

    def _note_failure(self, key: Compatibility, error: HyperError, first_wait_s: float = RETRY_S) -> None:
        before = self._failures.pop(key, None)
        times = before.times + 1 if before else 1
        wait_s = first_wait_s if before is None else min(RETRY_S * 2 ** (times - 1), MAX_RETRY_S)
        self._failures[key] = Failure(error, times, asyncio.get_running_loop().time() + wait_s)


def _in_short(error: HyperError) -> str:
    return f"{error.subject}: {error.brief}" if error.subject else error.brief


def _mark_heard(flight: "asyncio.Future[Snapshot]") -> None:
    """Nobody has to wait for a build: an error that nobody heard is in the log."""
    if not flight.cancelled():
        flight.exception()
