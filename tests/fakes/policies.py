# SPDX-License-Identifier: Apache-2.0
"""Policies that hold nobody to anything; satisfies hyperd.network.base.Policies."""

from hyperd.errors import InvalidError, NotFoundError
from hyperd.model.policy import EgressReport, Limits
from hyperd.model.vm import SandboxId


class FakePolicies:
    """``reports`` outlive ``limits``, as the real ones do. A document is wrong when it says so."""

    def __init__(self) -> None:
        self.limits: dict[SandboxId, Limits] = {}
        self.reports: dict[SandboxId, EgressReport] = {}

    def require_valid(self, limits: Limits) -> None:
        if "wrong" in limits.egress:
            raise InvalidError("is wrong", subject="egress policy, line 1")

    def limits_of(self, sandbox_id: SandboxId) -> Limits:
        return self.limits.get(sandbox_id, Limits())

    async def impose(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        if limits and sandbox_id not in self.limits:
            await self.change(sandbox_id, limits, name)

    async def change(self, sandbox_id: SandboxId, limits: Limits, name: str) -> None:
        self.require_valid(limits)
        self.limits[sandbox_id] = limits
        self.reports.setdefault(sandbox_id, EgressReport(sandbox_id, name, (), is_cut=False))

    async def report(self, reference: str) -> EgressReport:
        for sandbox_id, report in self.reports.items():
            if reference and (sandbox_id.startswith(reference) or report.name == reference):
                return report
        raise NotFoundError("had no egress policy", subject=f"container {reference}")
