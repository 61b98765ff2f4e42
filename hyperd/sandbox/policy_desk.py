# SPDX-License-Identifier: Apache-2.0
"""What containers may begin and hear on the network, as users ask for it: also of one that has gone."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from hyperd.errors import InvalidError, NotFoundError, WrongStateError
from hyperd.model.container import ContainerRecord, ContainerSpec
from hyperd.model.policy import EgressReport, Limits, SecurityGroup
from hyperd.network.base import Network, SecurityGroups
from hyperd.sandbox.endpoints import carrier_of


def limits_of(spec: ContainerSpec) -> Limits:
    return Limits(
        egress=spec.egress,
        groups=spec.security_groups,
        rate_in=spec.network_rate_in,
        rate_out=spec.network_rate_out,
    )


def as_limited(network: Network, record: ContainerRecord) -> ContainerRecord:
    """With what holds now: what is made from it must not be free of what its source was forbidden since."""
    if not network.policies.covers(record.sandbox_id):
        return record
    limits = network.policies.limits_of(record.sandbox_id)
    spec = replace(record.spec, egress=limits.egress, security_groups=limits.groups)
    return replace(record, spec=spec)


class PolicyDesk:
    """``find``: a container that there is, raises NotFoundError; ``records``: of all, those being created, too."""

    def __init__(
        self,
        network: Network,
        find: Callable[[str], ContainerRecord],
        records: Callable[[], Sequence[ContainerRecord]],
    ) -> None:
        self._network = network
        self._find = find
        self._records = records
        self._changing = asyncio.Lock()

    @property
    def groups(self) -> SecurityGroups:
        return self._network.policies.groups

    async def set_egress(self, reference: str, policy: str) -> None:
        """Raises InvalidError, NotFoundError."""
        await self._change(reference, lambda limits: replace(limits, egress=policy))

    async def change_groups(
        self, reference: str, added: Sequence[str], removed: Sequence[str]
    ) -> tuple[str, ...]:
        """Those that it has then. Raises NotFoundError."""

        def changed(limits: Limits) -> Limits:
            groups = tuple(name for name in dict.fromkeys((*limits.groups, *added)) if name not in removed)
            for name in removed:
                self.groups.get(name)
            return replace(limits, groups=groups)

        return (await self._change(reference, changed, only_if_other=True)).groups

    def inspect(self, reference: str) -> tuple[ContainerRecord, Limits]:
        """As they are now."""
        record = as_limited(self._network, self._find_limited(reference))
        return record, limits_of(record.spec)

    async def report(self, reference: str) -> EgressReport:
        """Also of one that has gone. Raises NotFoundError, InvalidError."""
        try:
            reference = self._find_limited(reference).sandbox_id
        except NotFoundError:
            return await self._network.policies.report(reference)
        return await self._network.policies.report(reference)

    def users(self) -> dict[str, list[str]]:
        """Of each group that has any: containers by name, also such as do not run."""
        found: dict[str, list[str]] = {}
        for record in self._records():
            limits = limits_of(as_limited(self._network, record).spec)
            for name in self._network.policies.groups_in(limits):
                found.setdefault(name, []).append(record.name)
        return {name: sorted(users) for name, users in found.items()}

    def get_group(self, name: str) -> SecurityGroup:
        """Raises NotFoundError."""
        return self.groups.get(name)

    async def remove_group(self, name: str) -> None:
        """Raises NotFoundError, WrongStateError with the names of those that have it."""
        async with self._changing:  # nobody is given it meanwhile
            self.groups.get(name)
            users = self.users().get(name)
            if users:
                raise WrongStateError(
                    f"is in use by {', '.join(users)}",
                    subject=f"security group {name}",
                    hint="`hyper sg detach` takes it from a container",
                )
            await self._network.policies.remove_group(name)

    def _find_limited(self, reference: str) -> ContainerRecord:
        """Raises InvalidError for one that has another's network, and so that one's limits."""
        record = self._find(reference)
        if (carrier := carrier_of(record.spec)) is not None:
            raise InvalidError(
                f"has the network of container {carrier[:12]}, and what holds for that one",
                subject=f"container {record.name}",
                hint="say it of that container",
            )
        return record

    async def _change(
        self, reference: str, change: Callable[[Limits], Limits], *, only_if_other: bool = False
    ) -> Limits:
        """One after the other: of two changes none takes back what the other forbids."""
        async with self._changing:
            record = self._find_limited(reference)
            before = limits_of(as_limited(self._network, record).spec)
            limits = change(before)
            if limits != before or not only_if_other:
                await self._network.policies.change(record.sandbox_id, limits, record.name)
                await self._network.enforce(record.sandbox_id)
            return limits
