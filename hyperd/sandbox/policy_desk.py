# SPDX-License-Identifier: Apache-2.0
"""What containers may begin on the network, as users ask for it: also of one that has gone."""

from collections.abc import Callable
from dataclasses import replace

from hyperd.errors import NotFoundError
from hyperd.model.container import ContainerRecord, ContainerSpec
from hyperd.model.policy import EgressReport, Limits
from hyperd.network.base import Network


def limits_of(spec: ContainerSpec) -> Limits:
    return Limits(egress=spec.egress)


def as_limited(network: Network, record: ContainerRecord) -> ContainerRecord:
    """With what holds now: what is made from it must not be free of what its source was forbidden since."""
    limits = network.policies.limits_of(record.sandbox_id)
    return replace(record, spec=replace(record.spec, egress=limits.egress)) if limits else record


class PolicyDesk:
    """``find``: a container that there is. Raises NotFoundError."""

    def __init__(self, network: Network, find: Callable[[str], ContainerRecord]) -> None:
        self._network = network
        self._find = find

    async def set_egress(self, reference: str, policy: str) -> None:
        """Raises InvalidError, UnsupportedError, NotFoundError."""
        record = self._find(reference)
        before = as_limited(self._network, record)
        limits = replace(limits_of(before.spec), egress=policy)
        await self._network.policies.change(record.sandbox_id, limits, record.name)
        await self._network.enforce(record.sandbox_id)

    def inspect(self, reference: str) -> tuple[ContainerRecord, Limits]:
        """As they are now."""
        record = as_limited(self._network, self._find(reference))
        return record, limits_of(record.spec)

    async def report(self, reference: str) -> EgressReport:
        """Also of one that has gone. Raises NotFoundError, InvalidError."""
        try:
            reference = self._find(reference).sandbox_id
        except NotFoundError:
            return await self._network.policies.report(reference)
        return await self._network.policies.report(reference)
