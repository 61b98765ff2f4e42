# SPDX-License-Identifier: Apache-2.0
"""Policies that hold nobody to anything; satisfies hyperd.network.base.Policies."""

import asyncio
import json

from hyperd.errors import ExistsError, InvalidError, NotFoundError, WrongStateError
from hyperd.model.policy import Direction, EgressReport, GroupRule, Limits, SecurityGroup
from hyperd.model.vm import SandboxId


class FakePolicies:
    """``reports`` outlive ``limits``, as the real ones do. A document is wrong when it says so."""

    def __init__(self) -> None:
        self.groups = FakeGroups()
        self.limits: dict[SandboxId, Limits] = {}
        self.reports: dict[SandboxId, EgressReport] = {}

    def require_valid(self, limits: Limits) -> None:
        if "wrong" in limits.egress:
            raise InvalidError("is wrong", subject="egress policy, line 1")
        for name in limits.groups:
            self.groups.get(name)

    def groups_in(self, limits: Limits) -> set[str]:
        return set(limits.groups)

    async def remove_group(self, name: str) -> None:
        self.groups.get(name)
        if any(rule.group == name for group in self.groups.list_groups() for rule in group.rules):
            raise WrongStateError("others speak of it", subject=f"security group {name}")
        del self.groups.known[name]

    def covers(self, sandbox_id: SandboxId) -> bool:
        return sandbox_id in self.limits

    def limits_of(self, sandbox_id: SandboxId) -> Limits:
        return self.limits.get(sandbox_id, Limits())

    async def impose(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        if limits and sandbox_id not in self.limits:
            await self.change(sandbox_id, limits, name)

    async def change(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        self.require_valid(limits)
        await asyncio.sleep(0)  # as the records take their time
        self.limits[sandbox_id] = limits
        self.reports.setdefault(sandbox_id, EgressReport(sandbox_id, name, (), is_cut=False))

    async def report(self, reference: str) -> EgressReport:
        for sandbox_id, report in self.reports.items():
            if reference and (sandbox_id.startswith(reference) or report.name == reference):
                return report
        raise NotFoundError("had no egress policy", subject=f"container {reference}")


class FakeGroups:
    """A document is JSON of a name, and the groups that it speaks of."""

    def __init__(self) -> None:
        self.known: dict[str, SecurityGroup] = {}

    def list_groups(self) -> list[SecurityGroup]:
        return [self.known[name] for name in sorted(self.known)]

    def get(self, name: str) -> SecurityGroup:
        if name not in self.known:
            raise NotFoundError("no such security group", subject=name)
        return self.known[name]

    async def create(self, document: str, name: str = "") -> SecurityGroup:
        group = self._parse(document, name)
        if group.name in self.known:
            raise ExistsError("there is one of this name", subject=group.name)
        self.known[group.name] = group
        return group

    async def update(self, document: str, name: str = "") -> SecurityGroup:
        group = self._parse(document, name)
        self.get(group.name)
        self.known[group.name] = group
        return group

    def _parse(self, document: str, name: str) -> SecurityGroup:
        try:
            given = json.loads(document)
        except ValueError as error:
            raise InvalidError("is no document", subject="security group, line 1") from error
        spoken_of = [rule.get("remote_group_name", "") for rule in given.get("rules", ())]
        rules = tuple(GroupRule(Direction.INGRESS, group=group) for group in spoken_of)
        named = given.get("name", name)
        if not named or (name and named != name):
            raise InvalidError("is another's", subject="security group, line 1")
        for group in spoken_of:
            if group and group != named:
                self.get(group)
        return SecurityGroup(named, given.get("description", ""), rules)
