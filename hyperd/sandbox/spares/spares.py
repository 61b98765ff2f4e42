# SPDX-License-Identifier: Apache-2.0
"""The spares of this host: made when nobody starts, taken by who does, gone when anything else needs their place.

    (nothing) --make--> ready --a container is created with its id--> promised --its start--> the container's
                          |                                              |
                          |  memory is needed, its template or VM is gone, hyperd ends
                          +--------------------+-------------------------+-- not started in time --> (nothing)

One shape is kept: the default one, then that of two containers in a row that could have had a spare. Nobody waits for a
spare, no start is refused or fails for one: where none is ready, or it fails, a start goes from the template as ever.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

from hyperd.errors import HyperError
from hyperd.model.container import ContainerRecord, ContainerSpec, Sizing
from hyperd.model.network import DEFAULT_NETWORK
from hyperd.model.policy import Limits
from hyperd.model.snapshot import Snapshot
from hyperd.model.vm import Disk, SandboxId, VmStatus
from hyperd.sandbox.definition import Shape
from hyperd.sandbox.ledger import Ledger
from hyperd.sandbox.mount_sources import bind_requests
from hyperd.sandbox.patience import Turns
from hyperd.sandbox.policy_desk import limits_of
from hyperd.sandbox.spares.demand import Demand
from hyperd.sandbox.spares.removal import Left, Removals
from hyperd.sandbox.spares.spare import Spare, SpareMaker, unfit
from hyperd.sandbox.template import Templates

log = logging.getLogger(__package__)  # of one subject, whichever file tells it

PROMISE_S = 10.0  # from a container's creation to its start; `run` takes milliseconds
LOOK_S = 15.0  # for room that has become free, and for a template that is another by now


@dataclass(frozen=True, slots=True)
class SpareSettings:
    count: int = 1  # 0: none
    quiet_s: float = 0.5  # without a start, before one is made


class Spares:
    def __init__(
        self,
        maker: SpareMaker,
        templates: Templates,
        ledger: Ledger,
        turns: Turns,
        settings: SpareSettings,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._maker = maker
        self._templates = templates
        self._ledger = ledger
        self._turns = turns
        self._settings = settings
        self._tasks = tasks
        self._ready: dict[SandboxId, Spare] = {}
        self._promised: dict[SandboxId, Spare] = {}
        self._removals = Removals(maker, tasks)
        self._news = asyncio.Event()
        self._demand = Demand(self._news.set)
        self._looking = asyncio.Lock()
        self._making = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        ledger.tell_growth(self._make_room)
        templates.tell_changes(self._news.set)

    @property
    def ready(self) -> list[Spare]:
        return list(self._ready.values())

    @property
    def wanted(self) -> int:
        return self._settings.count

    def begin(self, first: Shape) -> None:
        """From now on see that there are as many as there should be; of that shape, until another is asked for."""
        self._demand.begin(first)
        if self._settings.count:
            self._keeping = self._tasks.create_task(self._keep(), name="spares")

    def promise(self, spec: ContainerSpec, sizing: Sizing) -> SandboxId | None:
        """The id that such a container is to be created with, for its start to find a spare; None: there is none.

        To be called when nothing but the record is missing; ``take_back`` when that fails.
        """
        wanted = self._demand.wanted
        if wanted is None or not serves(spec):
            return None
        shape = Shape(sizing, spec.network != "none", wanted.accelerator)
        self._demand.note_asked(shape)
        spare = next((spare for spare in self._ready.values() if spare.shape == shape), None)
        if spare is None:
            return None
        self._promised[spare.sandbox_id] = self._ready.pop(spare.sandbox_id)
        log.info("spare promised", extra={"id": spare.sandbox_id})
        asyncio.get_running_loop().call_later(PROMISE_S, self._expire, spare)
        return spare.sandbox_id

    def rest(self) -> None:
        """None is made until a container is created again: there is to be nothing of ours on the host."""
        self._demand.rest()

    async def claim(self, record: ContainerRecord) -> Spare | None:
        """That which was promised to the container: the caller's from here on, to ``end`` when its VM is to go.

        Raises what removing one raises, where its VM or disk would be in the way: nothing of it is there else.
        """
        spare = self._promised.get(record.sandbox_id)
        # It may have been put on another network, or been limited, since it was created.
        if spare is None or not serves(record.spec) or self._maker.is_limited(spare):
            left = await self.give_up(record.sandbox_id)
            if left is not None:
                await self._removals.remove_owned(record.sandbox_id, left)
        return self._promised.pop(record.sandbox_id, None)

    async def wake(self, spare: Spare, image: Disk) -> VmStatus:
        """As ``SpareMaker.wake``."""
        return await self._maker.wake(spare, image)

    async def end(self, spare: Spare) -> None:
        """Of one that was claimed: its VM. Idempotent."""
        await self._maker.end(spare)

    async def take_back(self, sandbox_id: SandboxId) -> None:
        """The container that it was promised to has not come to be: nothing of it has an owner. Idempotent."""
        if (spare := self._promised.pop(sandbox_id, None)) is not None:
            self._let_go(spare, "there is no container")
            return
        left = await self.give_up(sandbox_id)  # what is on the network is there in any case
        whole = Left(left.sizing if left is not None else None, owned=False)
        await asyncio.wait((self._removals.begin(sandbox_id, whole, "there is no container"),))

    async def give_up(self, sandbox_id: SandboxId) -> Left | None:
        """Its container does without, or goes. Returns when VM, disk and tap are gone; the rest is the container's.

        Or what is left, which is the caller's from here on. Idempotent.
        """
        if (spare := self._promised.get(sandbox_id)) is not None:
            self._let_go(spare, "its container does without")
        return await self._removals.wait(sandbox_id)

    def vm_gone(self, sandbox_id: SandboxId) -> None:
        spare = self._ready.get(sandbox_id) or self._promised.get(sandbox_id)
        if spare is not None and not self._is_starting(sandbox_id):
            self._let_go(spare, "its VM ended")

    async def close(self) -> None:
        """End all that nobody has taken; nothing of them stays."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        for spare in (*self._ready.values(), *self._promised.values()):
            self._let_go(spare, "hyperd ends")
        await self._removals.wait_all()

    def may_have(self, wanted: Collection[str]) -> bool:
        """Any of these addresses and MACs; of none given: any address at all."""
        if self._making.locked() or self._removals.are_there:
            return True
        held = {text for spare in self.ready for at in spare.attachments for text in (at.address, at.mac)}
        return bool(held.intersection(wanted) if wanted else held)

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Within, nobody waits for a start: none is ready, none is made. For who needs what they have."""
        async with self._making:
            for spare in self.ready:
                self._let_go(spare, "what it has is needed")
            await self._removals.wait_all()
            await self._removals.try_again()
            try:
                yield
            finally:
                self._news.set()

    async def _keep(self) -> None:
        while True:
            self._news.clear()
            await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()

    async def look(self) -> None:
        """Once: remove what could not be removed, make what is missing, as far as there is room."""
        async with self._looking:
            await self._removals.try_again()
            await self._fill()

    async def _fill(self) -> None:
        while (shape := self._demand.wanted) is not None and await self._is_missing(shape):
            if await self._turns.wait_quiet(self._settings.quiet_s):
                continue  # what was true may be no more
            template = await self._templates.find(shape)
            if template is None:
                return
            async with self._making:
                if self._demand.is_resting or not await self._make(shape, template):
                    return

    async def _is_missing(self, shape: Shape) -> bool:
        """Whether one is to be made; those go that are of no use any more."""
        template = await self._templates.find(shape)
        for spare in self.ready:
            if template is None or unfit(spare, shape, template):
                self._let_go(spare, "another is wanted")
        return (
            template is not None
            and self._demand.is_due
            and len(self._ready) < self._settings.count
            and self._ledger.admission.has_room_for([*self._sizings(), shape.sizing])
        )

    async def _make(self, shape: Shape, template: Snapshot) -> bool:
        log.info("spare being made", extra={"shape": str(shape)})
        spare_id = SandboxId(secrets.token_hex(32))
        try:
            with self._templates.in_use(template):
                spare = await self._maker.make(spare_id, shape, template)
        except HyperError as error:
            log.warning("spare not made", extra={"shape": str(shape), "error": str(error)})
        except Exception:
            log.exception("bug", extra={"shape": str(shape), "bug_id": secrets.token_hex(4)})
        else:
            log.info("spare ready", extra={"shape": str(shape), "id": spare.sandbox_id})
            self._demand.note_made()
            self._ready[spare.sandbox_id] = spare
            self._make_room()
            return True
        await asyncio.wait((self._removals.begin(spare_id, Left(shape.sizing, owned=False), "not made"),))
        self._demand.note_failed()
        return False

    def _make_room(self) -> None:
        """Somebody may hold now what was free: spares go until the rest fits, those first that nobody was promised."""
        while not self._ledger.admission.has_room_for(self._sizings()):
            waiting = [spare for spare in self._promised.values() if not self._is_starting(spare.sandbox_id)]
            going = [*waiting, *self._ready.values()]
            if not going:
                return
            self._let_go(going[-1], "its memory is needed")

    def _sizings(self) -> list[Sizing]:
        """Of those that the ledger does not know."""
        spares = (*self._promised.values(), *self._ready.values())
        sizings = {spare.sandbox_id: spare.shape.sizing for spare in spares}
        sizings |= self._removals.sizings()
        return [sizing for sandbox_id, sizing in sizings.items() if not self._is_starting(sandbox_id)]

    def _expire(self, spare: Spare) -> None:
        if self._promised.get(spare.sandbox_id) is not spare:
            return
        if self._is_starting(spare.sandbox_id):  # it may fail before it claims
            asyncio.get_running_loop().call_later(PROMISE_S, self._expire, spare)
        else:
            self._let_go(spare, "its container does not start")

    def _is_starting(self, sandbox_id: SandboxId) -> bool:
        """Its driver has the say then, until it claims."""
        return sandbox_id in dict(self._ledger.admission.held)

    def _let_go(self, spare: Spare, why: str) -> None:
        self._ready.pop(spare.sandbox_id, None)
        owned = self._promised.pop(spare.sandbox_id, None) is not None
        self._removals.begin(spare.sandbox_id, Left(spare.shape.sizing, owned), why, spare)
        self._news.set()


def serves(spec: ContainerSpec) -> bool:
    """Whether such a container can do with the address, the disk and the memory that a spare has."""
    return (
        spec.network in ("", DEFAULT_NETWORK, "none")
        and not (spec.networks or spec.address or spec.address6 or spec.mac_address)
        and not spec.writable_size_bytes
        and not bind_requests(spec.mounts)  # a spare's memory is its template's, which nobody else may map
        and limits_of(spec) == Limits()  # else its tap is another
    )
