# SPDX-License-Identifier: Apache-2.0
"""What sandboxes were refused, from the kernel's counts to the records. Saying anything twice changes nothing."""

from dataclasses import dataclass, field

from hyperd.host.workers import Workers
from hyperd.model.policy import Attempt
from hyperd.model.vm import SandboxId
from hyperd.network.netlink import network_errors
from hyperd.network.policy import sets
from hyperd.network.policy.records import PolicyRecords
from hyperd.network.policy.tally import Tally, summed
from hyperd.network.policy.wire import Wire
from hyperd.network.policy.wires import Place, Wires


@dataclass(slots=True)
class Account:
    """Of one sandbox."""

    name: str = ""
    tally: Tally = field(default_factory=Tally)
    noted: list[tuple[str, str, int, int]] = field(default_factory=list)  # as last written down
    past: list[Attempt] = field(default_factory=list)  # of networks that it has left, in this run


class Reports:
    def __init__(self, records: PolicyRecords, wires: Wires, kernel: Workers) -> None:
        self._records = records
        self._wires = wires
        self._kernel = kernel

    async def note(self, sandbox_id: SandboxId, account: Account) -> None:
        """What the kernel has counted and names that were refused, into the records."""
        counted = list(account.past)
        for armed in self._wires.of(sandbox_id):
            counted += await self.counted(armed.place, armed.judged.wire, account)
        attempts = summed(counted)
        counts = [(each.destination, each.protocol, each.port, each.count) for each in attempts]
        refused = account.tally.take_refused()
        if not refused and counts == account.noted:
            return
        try:
            await self._records.note(sandbox_id, account.name, attempts, finished=refused)
        except BaseException:
            account.tally.give_back(refused)
            raise
        account.noted = counts

    async def counted(self, place: Place, wire: Wire, account: Account) -> list[Attempt]:
        """On this wire, since its rules are there; empty when they are not."""
        with network_errors(wire.name):
            blocked = await self._kernel.call(sets.read_blocked, place.base, wire)
        return account.tally.attempts(blocked)

    async def left(self, sandbox_id: SandboxId, account: Account, counted: list[Attempt]) -> None:
        """A wire's rules are gone, and its counts with them."""
        if self._wires.of(sandbox_id):  # its other networks
            account.past += counted
        else:
            await self.end_run(sandbox_id, account)

    async def end_run(self, sandbox_id: SandboxId, account: Account) -> None:
        """The kernel has forgotten what it counted."""
        await self._records.note(sandbox_id, account.name, (), end_run=True)
        account.noted, account.past = [], []
