# SPDX-License-Identifier: Apache-2.0
"""EgressService over a real socket."""

from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest

from hyper.v1 import policy_pb2, policy_pb2_grpc
from hyperd.model.policy import Attempt, EgressReport
from tests.fakes.world import started


@pytest.fixture
async def egress(api):
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        yield policy_pb2_grpc.EgressServiceStub(channel)


async def test_a_policy_is_set_shown_and_refused(api, egress):
    handle = await started(api.fleet, name="job", egress="none")
    await egress.SetEgress(policy_pb2.SetEgressRequest(container="job", policy="allow-all"))
    shown = await egress.InspectEgress(policy_pb2.InspectEgressRequest(container="job"))
    assert (shown.container_id, shown.name, shown.policy) == (handle.record.sandbox_id, "job", "allow-all")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await egress.SetEgress(policy_pb2.SetEgressRequest(container="job", policy="wrong"))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_was_tried_is_told(api, egress):
    handle = await started(api.fleet, name="job", egress="none")
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    tried = Attempt("192.0.2.1", "tcp", 22, "a.test", 3, moment, moment)
    sandbox_id = handle.record.sandbox_id
    api.world.network.policies.reports[sandbox_id] = EgressReport(sandbox_id, "job", (tried,), is_cut=True)
    report = await egress.ReportEgress(policy_pb2.ReportEgressRequest(container="job"))
    (attempt,) = report.attempts
    assert (attempt.destination, attempt.port, attempt.count, report.is_cut) == ("192.0.2.1", 22, 3, True)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await egress.ReportEgress(policy_pb2.ReportEgressRequest(container="nobody"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def groups(api):
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        yield policy_pb2_grpc.SecurityGroupServiceStub(channel)


async def test_groups_are_made_shown_given_and_removed(api, groups):
    document = '{"name": "web", "rules": [{"remote_group_name": "web"}]}'
    made = await groups.CreateSecurityGroup(policy_pb2.CreateSecurityGroupRequest(document=document))
    assert made.group.rules[0].remote_group_name == "web"
    await started(api.fleet, name="site")
    request = policy_pb2.ChangeSecurityGroupsRequest(container="site", add=["web"])
    assert list((await groups.ChangeSecurityGroups(request)).groups) == ["web"]
    (listed,) = (await groups.ListSecurityGroups(policy_pb2.ListSecurityGroupsRequest())).groups
    assert list(listed.users) == ["site"]
    remove = policy_pb2.RemoveSecurityGroupRequest(name="web")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await groups.RemoveSecurityGroup(remove)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await groups.ChangeSecurityGroups(
        policy_pb2.ChangeSecurityGroupsRequest(container="site", remove=["web"])
    )
    await groups.UpdateSecurityGroup(policy_pb2.UpdateSecurityGroupRequest(name="web", document="{}"))
    shown = await groups.InspectSecurityGroup(policy_pb2.InspectSecurityGroupRequest(name="web"))
    assert (list(shown.group.rules), list(shown.group.users)) == ([], [])
    await groups.RemoveSecurityGroup(remove)


async def test_floating_addresses_are_allocated_lent_named_and_released(api):
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        floating = policy_pb2_grpc.FloatingServiceStub(channel)
        made = await floating.AllocateFloating(policy_pb2.AllocateFloatingRequest())
        (address,) = [each.address for each in made.addresses]
        await floating.NameFloating(policy_pb2.NameFloatingRequest(floating=address, name="front"))
        handle = await started(api.fleet, name="web")
        lent = await floating.AttachFloating(
            policy_pb2.AttachFloatingRequest(floating="front", container="web")
        )
        assert lent.address.container_id == handle.record.sandbox_id
        (listed,) = (await floating.ListFloating(policy_pb2.ListFloatingRequest())).addresses
        assert (listed.name, listed.container_name) == ("front", "web")
        release = policy_pb2.ReleaseFloatingRequest(floating=address)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await floating.ReleaseFloating(release)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await floating.DetachFloating(policy_pb2.DetachFloatingRequest(container="web"))
        await floating.ReleaseFloating(release)
