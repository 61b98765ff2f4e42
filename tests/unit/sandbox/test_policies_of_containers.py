# SPDX-License-Identifier: Apache-2.0
"""What containers may begin: from their creation to their clones, and after their end."""

import pytest

from hyperd.errors import InvalidError, NotFoundError, UnavailableError
from hyperd.model.policy import Limits
from hyperd.sandbox import CloneOptions, PolicyDesk
from tests.fakes.world import created, started


@pytest.fixture
def desk(world, fleet):
    return PolicyDesk(world.network, lambda reference: fleet.get(reference).record)


async def test_a_policy_that_is_wrong_is_refused_at_once(fleet):
    with pytest.raises(InvalidError, match="line 1"):
        await created(fleet, egress="wrong")


async def test_a_policy_is_there_before_the_network_is(world, fleet):
    world.network.gate.clear()
    handle = await created(fleet, name="job", egress="none")
    assert world.network.policies.limits == {}
    world.network.fail_next_attach = UnavailableError("no rules")
    world.network.gate.set()
    with pytest.raises(UnavailableError):
        await handle.start()
    assert world.network.policies.limits[handle.record.sandbox_id] == Limits("none")


async def test_a_policy_that_is_changed_holds_at_once_and_at_the_next_start(world, fleet, desk):
    handle = await started(fleet, name="job", egress="none")
    await desk.set_egress("job", "allow-all")
    assert world.network.enforced == [handle.record.sandbox_id]
    await handle.stop(timeout_s=0)
    await handle.start()
    assert desk.inspect("job")[1] == Limits("allow-all")
    with pytest.raises(InvalidError):
        await desk.set_egress("job", "wrong")
    assert desk.inspect("job")[1] == Limits("allow-all")


async def test_a_policy_may_be_given_before_the_first_start(world, fleet, desk):
    handle = await created(fleet, name="job")
    assert not desk.inspect("job")[1]
    await desk.set_egress("job", "none")
    await handle.start()
    assert world.network.policies.limits_of(handle.record.sandbox_id) == Limits("none")


async def test_a_clone_is_forbidden_what_its_source_was_forbidden_since(world, fleet, desk):
    handle = await started(fleet, name="job", egress="allow-all")
    await desk.set_egress("job", "none")
    await handle.snapshot("s")
    forked, _ = await fleet.fork("job", CloneOptions())
    restored = await fleet.restore("s", CloneOptions())
    for view in (*forked, *restored):
        assert view.record.spec.egress == "none"
        assert world.network.policies.limits_of(view.record.sandbox_id) == Limits("none")


async def test_a_report_outlives_its_container(fleet, desk):
    handle = await started(fleet, name="job", egress="none")
    await handle.remove(force=True)
    assert (await desk.report("job")).sandbox_id == handle.record.sandbox_id
    with pytest.raises(NotFoundError):
        await desk.report("nobody")
    with pytest.raises(NotFoundError):
        desk.inspect("job")


async def test_the_report_is_of_whoever_has_the_name_now(fleet, desk):
    first = await started(fleet, name="job", egress="none")
    await first.remove(force=True)
    second = await started(fleet, name="job", egress="none")
    assert (await desk.report("job")).sandbox_id == second.record.sandbox_id
