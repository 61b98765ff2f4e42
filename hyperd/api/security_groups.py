# SPDX-License-Identifier: Apache-2.0
"""SecurityGroupService: decode, delegate to the desk, encode."""

from collections.abc import Sequence

from hyper.v1 import policy_pb2 as wire
from hyper.v1 import policy_pb2_grpc
from hyperd.api.status import Context, errors_as_status
from hyperd.model.policy import GroupRule, SecurityGroup
from hyperd.sandbox import PolicyDesk


class SecurityGroupServicer(policy_pb2_grpc.SecurityGroupServiceServicer):
    def __init__(self, desk: PolicyDesk) -> None:
        self._desk = desk

    async def CreateSecurityGroup(
        self, request: wire.CreateSecurityGroupRequest, context: Context
    ) -> wire.CreateSecurityGroupResponse:
        async with errors_as_status(context):
            made = await self._desk.groups.create(request.document, request.name)
            return wire.CreateSecurityGroupResponse(group=self._encode(made))

    async def UpdateSecurityGroup(
        self, request: wire.UpdateSecurityGroupRequest, context: Context
    ) -> wire.UpdateSecurityGroupResponse:
        async with errors_as_status(context):
            made = await self._desk.groups.update(request.document, request.name)
            return wire.UpdateSecurityGroupResponse(group=self._encode(made))

    async def ListSecurityGroups(
        self, _request: wire.ListSecurityGroupsRequest, context: Context
    ) -> wire.ListSecurityGroupsResponse:
        async with errors_as_status(context):
            users = self._desk.users()
            groups = [_encode(group, users.get(group.name, ())) for group in self._desk.groups.list_groups()]
            return wire.ListSecurityGroupsResponse(groups=groups)

    async def InspectSecurityGroup(
        self, request: wire.InspectSecurityGroupRequest, context: Context
    ) -> wire.InspectSecurityGroupResponse:
        async with errors_as_status(context):
            return wire.InspectSecurityGroupResponse(group=self._encode(self._desk.get_group(request.name)))

    async def RemoveSecurityGroup(
        self, request: wire.RemoveSecurityGroupRequest, context: Context
    ) -> wire.RemoveSecurityGroupResponse:
        async with errors_as_status(context):
            await self._desk.remove_group(request.name)
            return wire.RemoveSecurityGroupResponse()

    async def ChangeSecurityGroups(
        self, request: wire.ChangeSecurityGroupsRequest, context: Context
    ) -> wire.ChangeSecurityGroupsResponse:
        async with errors_as_status(context):
            groups = await self._desk.change_groups(request.container, request.add, request.remove)
            return wire.ChangeSecurityGroupsResponse(groups=groups)

    def _encode(self, group: SecurityGroup) -> wire.SecurityGroup:
        return _encode(group, self._desk.users().get(group.name, ()))


def _encode(group: SecurityGroup, users: Sequence[str]) -> wire.SecurityGroup:
    rules = [_encode_rule(rule) for rule in group.rules]
    return wire.SecurityGroup(name=group.name, description=group.description, rules=rules, users=users)


def _encode_rule(rule: GroupRule) -> wire.SecurityGroupRule:
    message = wire.SecurityGroupRule(
        direction=rule.direction.value,
        protocol=rule.service.protocol,
        remote_ip_prefix=str(rule.network) if rule.network is not None else "",
        remote_group_name=rule.group,
    )
    for ports in rule.service.ports:
        message.port_range_min, message.port_range_max = ports.first, ports.last
    return message
