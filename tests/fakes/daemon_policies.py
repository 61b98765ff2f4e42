# SPDX-License-Identifier: Apache-2.0
"""Policies of the hyperd without machines."""
# ruff: noqa: N802 - the methods have the names of the contract

from hyper.v1 import policy_pb2, policy_pb2_grpc
from tests.fakes.daemon_state import FakeDaemon, ago


class FakeEgress(policy_pb2_grpc.EgressServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def SetEgress(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.SetEgressResponse()

    async def InspectEgress(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.InspectEgressResponse(container_id="1" * 64, name=request.container, policy="none")

    async def ReportEgress(self, request, context):
        await self._daemon.check(request, context)
        attempt = policy_pb2.EgressAttempt(
            destination="198.51.100.2",
            protocol="tcp",
            port=22,
            name="bad.example",
            count=3,
            first_at=ago(60),
            last_at=ago(30),
        )
        name = policy_pb2.EgressAttempt(destination="evil\x1b[31m.example", protocol="dns", count=1)
        return policy_pb2.ReportEgressResponse(
            container_id="1" * 64, name=request.container, attempts=[attempt, name], is_cut=True
        )


class FakeSecurityGroups(policy_pb2_grpc.SecurityGroupServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def CreateSecurityGroup(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.CreateSecurityGroupResponse(group=_group(request.name))

    async def UpdateSecurityGroup(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.UpdateSecurityGroupResponse(group=_group(request.name))

    async def ListSecurityGroups(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.ListSecurityGroupsResponse(groups=[_group("db"), _group("web")])

    async def InspectSecurityGroup(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.InspectSecurityGroupResponse(group=_group(request.name))

    async def RemoveSecurityGroup(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.RemoveSecurityGroupResponse()

    async def ChangeSecurityGroups(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.ChangeSecurityGroupsResponse(groups=["db", *request.add])


def _group(name):
    rules = [
        policy_pb2.SecurityGroupRule(
            direction="ingress",
            protocol="tcp",
            port_range_min=22,
            port_range_max=23,
            remote_ip_prefix="0.0.0.0/0",
        ),
        policy_pb2.SecurityGroupRule(direction="egress", remote_group_name="db"),
    ]
    return policy_pb2.SecurityGroup(name=name or "web", description="of tests", rules=rules, users=["site"])


class FakeFloatingService(policy_pb2_grpc.FloatingServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def AllocateFloating(self, request, context):
        await self._daemon.check(request, context)
        made = [policy_pb2.FloatingAddress(address=f"203.0.113.{n + 1}") for n in range(request.count)]
        return policy_pb2.AllocateFloatingResponse(addresses=made)

    async def ListFloating(self, request, context):
        await self._daemon.check(request, context)
        free = policy_pb2.FloatingAddress(address="203.0.113.2")
        return policy_pb2.ListFloatingResponse(addresses=[_lent(), free])

    async def AttachFloating(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.AttachFloatingResponse(address=_lent())

    async def DetachFloating(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.DetachFloatingResponse(address=_lent())

    async def NameFloating(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.NameFloatingResponse(address=_lent())

    async def ReleaseFloating(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.ReleaseFloatingResponse()


def _lent():
    return policy_pb2.FloatingAddress(
        address="203.0.113.1", name="front", container_id="1" * 64, container_name="web"
    )
