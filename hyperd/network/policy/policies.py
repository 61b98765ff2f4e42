# SPDX-License-Identifier: Apache-2.0
"""``Policies``: what each sandbox may begin and hear, from its record to the kernel and back to its report.

The record comes before the rules, the rules before the tap. A policy that changes is recorded first, too: a hyperd
that is killed in between leaves the older one in force, and the next begins with the rules of the newer one.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from hyperd.errors import HyperError, InvalidError, NotFoundError, UnavailableError, WrongStateError
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.model.policy import (
    EgressMode,
    EgressPolicy,
    EgressReport,
    Limits,
    SecurityGroup,
    Service,
)
from hyperd.model.vm import SandboxId
from hyperd.network import flows
from hyperd.network.netlink import network_errors
from hyperd.network.policy import sets
from hyperd.network.policy.behind import Behind
from hyperd.network.policy.document import parse_egress
from hyperd.network.policy.groups import Groups
from hyperd.network.policy.hooks import SENT, table_of
from hyperd.network.policy.records import Held, PolicyRecords, moved
from hyperd.network.policy.reports import Account, Reports
from hyperd.network.policy.rules import Judged, Learned
from hyperd.network.policy.screening import services_for
from hyperd.network.policy.tally import Tally
from hyperd.network.policy.wire import Wire
from hyperd.network.policy.wires import Armed, Place, Wires
from hyperd.network.settings import Address
from hyperd.network.tap import has_tap

_log = logging.getLogger(__name__)
LOOK_EVERY_S = 10.0


@dataclass(slots=True)
class _Policed:
    held: Held
    egress: EgressPolicy
    account: Account = field(default_factory=Account)
    revision: int = 0


class Policies:
    def __init__(self, database: Database) -> None:
        self._records = PolicyRecords(database)
        self.groups = Groups(database, self._regroup)
        self._kernel = Workers("policies", 1)
        self._looking = Workers("policies-look", 1)  # each start looks: not behind what takes long
        self._loading = asyncio.Lock()
        self._saving = asyncio.Lock()  # a record, and what is known of it
        self._is_loaded = False
        self._policed: dict[SandboxId, _Policed] = {}
        self._behind = Behind()
        self._wires = Wires(self._kernel)
        self._reports = Reports(self._records, self._wires, self._kernel)

    async def load(self) -> None:
        async with self._loading:
            if not self._is_loaded:
                for sandbox_id, held in (await self._records.load()).items():
                    self._policed[sandbox_id] = _Policed(held, _egress(held.limits))
                await self.groups.load()
                self._is_loaded = True

    def close(self) -> None:
        """What is in force stays."""
        self._wires.close()
        self._kernel.close()
        self._looking.close()

    @property
    def owners(self) -> set[SandboxId]:
        return set(self._policed)

    def covers(self, sandbox_id: SandboxId) -> bool:
        return sandbox_id in self._policed

    def revision(self, sandbox_id: SandboxId) -> int:
        """0: it has no policy."""
        policed = self._policed.get(sandbox_id)
        return policed.revision + 1 if policed else 0

    def require_valid(self, limits: Limits) -> None:
        """Raises InvalidError, NotFoundError for a group."""
        for name in sorted(self.groups_in(limits)):
            self.groups.get(name)

    def groups_in(self, limits: Limits) -> set[str]:
        """Those that it has, or speaks of. Raises InvalidError."""
        return {*limits.groups, *(name for rule in _egress(limits).rules for name in rule.groups)}

    def limits_of(self, sandbox_id: SandboxId) -> Limits:
        """As they are now; empty when it has none."""
        policed = self._policed.get(sandbox_id)
        return policed.held.limits if policed else Limits()

    def limited(self, sandbox_id: SandboxId, wire: Wire) -> Wire:
        """With the rates that hold for it."""
        limits = self.limits_of(sandbox_id)
        return replace(wire, rate_in=limits.rate_in, rate_out=limits.rate_out)

    async def impose(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        """Before it is attached, unless it has some already: those were changed since."""
        await self.load()
        async with self._saving:
            if limits and sandbox_id not in self._policed:
                await self._save(sandbox_id, Held(limits), name)
            elif sandbox_id in self._policed:
                self._policed[sandbox_id].account.name = name

    async def change(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        """In the records; in force it is with the next ``arm``. Raises InvalidError, NotFoundError."""
        if not limits and sandbox_id not in self._policed:
            raise InvalidError("is empty", subject="policy", hint="`allow-all` lets everything out")
        await self.load()
        self.require_valid(limits)
        async with self._saving:
            before = self._policed.get(sandbox_id)
            await self._save(sandbox_id, moved(before.held, limits) if before else Held(limits), name)

    async def stand(self, place: Place, wires: Iterable[tuple[SandboxId, Wire]]) -> None:
        """Of a network: the rules of all whose taps are there, as the records have them. Idempotent."""
        await self.load()
        found = [(owner, wire) for owner, wire in wires if owner in self._policed]
        if not found:
            return
        with network_errors(place.base):
            is_there = await self._kernel.call(sets.has_table, table_of(place.base))
        if not is_there:
            for owner, policed in [(owner, self._policed[owner]) for owner, _ in found]:
                await self._reports.end_run(owner, policed.account)
        found = [(owner, wire) for owner, wire in found if owner in self._policed]  # some may have gone
        if not found:
            return
        revisions = {owner: self.revision(owner) for owner, _ in found}
        with self._behind.caught_up(place.base, revisions) as behind:
            known = {owner for owner, _ in found if is_there and not self._policed[owner].held.earlier}
            await self._wires.stand(
                [self._armed(place, owner, wire, anew=owner not in known) for owner, wire in found]
            )
            for owner, revision in revisions.items():
                await self._settle(owner, revision)
            if behind:
                await self.cut(*(wire for owner, wire in found if owner in behind))

    async def stands(self, base: str) -> bool:
        """Whether nobody has taken away what should be in force, nor emptied it, nor is a change left to be made."""
        behind = [owner for owner in self._behind.of(base) if owner in self._policed]
        if any(armed.place.base == base for owner in behind for armed in self._wires.of(owner)):
            return False
        if not self._wires.are_on(base):
            return True
        try:
            return await self._looking.call(sets.has_rules, table_of(base), SENT)
        except OSError:
            return False

    async def are_as_made(self, base: str) -> bool:
        """Whether nobody has changed what the rules of all say; those of one sandbox alone are not compared."""
        return await self._wires.are_as_made(base)

    def rated(self) -> list[Wire]:
        """Those that a rate holds for."""
        return [wire for _, wire in self._wires.rated()]

    async def dropped_out(self) -> dict[str, int]:
        """Packets that each tap's rate has dropped of what its guest sent. Raises UnavailableError."""
        bases = {base for base, wire in self._wires.rated() if wire.rate_out}
        found: dict[str, int] = {}
        for base in bases:
            with network_errors(base):
                found |= await self._looking.call(sets.read_dropped, base)
        return found

    def wire_at(self, base: str, address: Address) -> Wire | None:
        armed = self._wires.at(base, str(address))
        return armed.judged.wire if armed is not None else None

    async def arm(self, place: Place, sandbox_id: SandboxId, wire: Wire) -> None:
        """Its rules, before its tap is there; or anew, with what its names stand for under them.

        Raises WrongStateError when it has no policy any more: nothing is to be plugged in then.
        """
        if not await self._arm(place, sandbox_id, wire, lambda: True):
            raise WrongStateError("is being removed", subject=f"container {sandbox_id[:12]}")

    async def arm_again(self, place: Place, sandbox_id: SandboxId, wire: Wire) -> bool:
        """As ``arm``, where its tap is there, or was armed for; False when it has gone meanwhile."""

        def is_there() -> bool:
            return self._wires.are_armed(place, sandbox_id, wire) or has_tap(wire.name)

        return await self._arm(place, sandbox_id, wire, is_there)

    async def _arm(
        self, place: Place, sandbox_id: SandboxId, wire: Wire, is_wanted: Callable[[], bool]
    ) -> bool:
        return bool(await self._arm_all(place, [(sandbox_id, wire)], lambda _owner, _wire: is_wanted()))

    async def _arm_all(
        self,
        place: Place,
        wires: Collection[tuple[SandboxId, Wire]],
        is_wanted: Callable[[SandboxId, Wire], bool],
    ) -> list[Armed]:
        """Those that are still wanted when their turn has come, in one transaction."""
        revisions: dict[SandboxId, int] = {}

        def made() -> list[Armed]:
            wanted = [
                (owner, wire) for owner, wire in wires if owner in self._policed and is_wanted(owner, wire)
            ]
            revisions.update((owner, self.revision(owner)) for owner, _ in wanted)
            return [self._armed(place, owner, wire, anew=True) for owner, wire in wanted]

        armed = await self._wires.arm(place.base, made)
        for owner, revision in revisions.items():
            await self._settle(owner, revision)
        return armed

    async def cut(self, *wires: Wire) -> None:
        """What they have begun, or others with them, is asked anew whether it may."""
        with network_errors(", ".join(wire.name for wire in wires)):
            addresses = {address for wire in wires for address in wire.addresses}
            await self._kernel.call(flows.forget_of, addresses)

    async def disarm(self, place: Place, sandbox_id: SandboxId, wire: Wire) -> None:
        """When its tap is gone. What was refused is written down first. Idempotent."""
        self._behind.forget(place.base, sandbox_id)
        policed = self._policed.get(sandbox_id)
        if policed is None:
            return
        await self._reports.note(sandbox_id, policed.account)
        counted = await self._reports.counted(place, wire, policed.account)
        await self._wires.disarm(self._armed(place, sandbox_id, wire, anew=False))
        await self._reports.left(sandbox_id, policed.account, counted)

    async def withdraw(self, base: str) -> None:
        """The network is gone. Idempotent."""
        await self._wires.withdraw(base)

    async def forget(self, sandbox_id: SandboxId) -> None:
        """The sandbox is gone; the report of it stays."""
        await self.load()
        async with self._saving:
            if self._policed.pop(sandbox_id, None) is not None:
                await self._records.delete(sandbox_id)

    async def remove_group(self, name: str) -> None:
        """That no sandbox has. Raises NotFoundError, WrongStateError while another group speaks of it."""
        await self.groups.remove(name)
        await self._wires.forget_group(name)

    async def report(self, reference: str) -> EgressReport:
        """By id, name, or unique prefix of an id, also of one that has gone. Raises NotFoundError, InvalidError."""
        await self.load()
        for sandbox_id, policed in list(self._policed.items()):
            if sandbox_id.startswith(reference) or policed.account.name == reference:
                await self._reports.note(sandbox_id, policed.account)
        return await self._records.report(reference)

    async def keep(self, every_s: float = LOOK_EVERY_S) -> None:
        """Until cancelled: what was refused is written down."""
        while True:
            await asyncio.sleep(every_s)
            for sandbox_id, policed in list(self._policed.items()):
                try:
                    await self._reports.note(sandbox_id, policed.account)
                except HyperError as error:
                    fields = {"sandbox_id": sandbox_id, "error": str(error)}
                    _log.error("not written down", extra=fields)

    def at(self, base: str, address: str) -> tuple[SandboxId, EgressPolicy, Tally] | None:
        """Who asks for a name."""
        armed = self._wires.at(base, address)
        policed = self._policed.get(armed.owner) if armed else None
        return (armed.owner, policed.egress, policed.account.tally) if armed and policed else None

    def has_ipv6(self, sandbox_id: SandboxId) -> bool:
        """On any of its networks."""
        return any(armed.judged.wire.ipv6 for armed in self._wires.of(sandbox_id))

    async def learn(self, sandbox_id: SandboxId, name: str, told: Iterable[tuple[Address, int]]) -> bool:
        """Let through to these addresses, for as many seconds; False when that could not be."""
        policed, revision = self._policed.get(sandbox_id), self.revision(sandbox_id)
        if policed is None:
            return False
        told = list(told)
        now = asyncio.get_running_loop().time()
        for address, lasts_s in told:
            policed.account.tally.tell(name, address, now + lasts_s)

        def services() -> Iterable[Service]:  # of a policy that has changed: none, its guest asks again
            return services_for(policed.egress, name) if self.revision(sandbox_id) == revision else ()

        try:
            return await self._wires.learn(sandbox_id, services, told)
        except OSError as error:
            _log.warning("not let through", extra={"sandbox_id": sandbox_id, "error": str(error)})
            return False

    async def _regroup(self, name: str) -> None:
        """A group says something else: at once for all that have it, network by network.

        Raises UnavailableError with the names of those for whom that could not be; the next ``stand`` tries again.
        """
        having = [
            armed
            for owner, policed in self._policed.items()
            if name in policed.held.limits.groups
            for armed in self._wires.of(owner)
        ]
        undone: dict[str, HyperError] = {}
        with self._behind.unless_done(having):
            for place in dict.fromkeys(armed.place for armed in having):
                members = [armed for armed in having if armed.place == place]
                try:
                    await self._rearm(place, members)
                except HyperError as error:
                    self._behind.add(members)
                    undone |= dict.fromkeys((self._called(armed.owner) for armed in members), error)
            if having:  # also of those that keep the older rules: those are asked anew, no more
                await self.cut(*(armed.judged.wire for armed in having))
        if undone:
            raise UnavailableError(
                f"what it said before is still in force for {', '.join(sorted(undone))}",
                subject=f"security group {name}",
                evidence=str(next(iter(undone.values()))),
                hint="it is tried again within a minute, and by the same command",
            )

    async def _rearm(self, place: Place, members: Collection[Armed]) -> None:
        """All or none."""

        def is_armed(owner: SandboxId, wire: Wire) -> bool:
            return self._wires.are_armed(place, owner, wire)

        await self._arm_all(place, [(armed.owner, armed.judged.wire) for armed in members], is_armed)

    def _called(self, sandbox_id: SandboxId) -> str:
        policed = self._policed.get(sandbox_id)
        return policed.account.name if policed and policed.account.name else sandbox_id[:12]

    async def _save(self, sandbox_id: SandboxId, held: Held, name: str) -> None:
        egress = _egress(held.limits)
        await self._records.save(sandbox_id, held)
        policed = self._policed.setdefault(sandbox_id, _Policed(held, egress))
        policed.held, policed.egress, policed.account.name = held, egress, name
        policed.revision += 1
        await self._records.note(sandbox_id, name, ())

    async def _settle(self, sandbox_id: SandboxId, revision: int) -> None:
        """Nothing of a policy earlier than this is in force. One that was changed since will settle itself."""
        async with self._saving:
            policed = self._policed.get(sandbox_id)
            if policed is not None and policed.held.earlier and self.revision(sandbox_id) == revision:
                policed.held = replace(policed.held, earlier=())
                await self._records.save(sandbox_id, policed.held)

    def _armed(self, place: Place, sandbox_id: SandboxId, wire: Wire, *, anew: bool) -> Armed:
        policed = self._policed[sandbox_id]
        judged = Judged(self.limited(sandbox_id, wire), policed.egress, tuple(self._groups_of(policed)))
        earlier = tuple(parse_egress(text) for text in policed.held.earlier)
        return Armed(sandbox_id, place, judged, earlier, _learned(policed) if anew else None)

    def _groups_of(self, policed: _Policed) -> Iterable[SecurityGroup]:
        for name in policed.held.limits.groups:
            try:
                yield self.groups.get(name)
            except NotFoundError:  # nobody can remove one that is in use; if he did: it lets nothing in
                yield SecurityGroup(name)


def _egress(limits: Limits) -> EgressPolicy:
    return parse_egress(limits.egress) if limits.egress else EgressPolicy(EgressMode.ALLOW_ALL)


def _learned(policed: _Policed) -> Learned:
    """What the names that it still may look up stand for."""
    found: dict[Service, dict[Address, int]] = {}
    for name, address, left_s in policed.account.tally.told(asyncio.get_running_loop().time()):
        for service in services_for(policed.egress, name):
            known = found.setdefault(service, {})
            known[address] = max(left_s, known.get(address, 0))
    return found
