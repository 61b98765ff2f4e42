# SPDX-License-Identifier: Apache-2.0
"""What containers may begin: from their creation to their clones, and after their end."""

import asyncio

import pytest

from hyperd.errors import InvalidError, NotFoundError, UnavailableError, WrongStateError
from hyperd.model.guest import Route
from hyperd.model.network import NetworkSpec
from hyperd.model.policy import Limits
from hyperd.sandbox import CloneOptions, PolicyDesk
from tests.fakes.world import created, eventually, started


@pytest.fixture
def desk(world, fleet):
    return PolicyDesk(
        world.network,
        lambda reference: fleet.get(reference).record,
        fleet.records,
        lambda sandbox_id: fleet.get(sandbox_id).reroute(),
    )


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


async def test_a_group_that_there_is_not_is_refused_at_once(fleet):
    with pytest.raises(NotFoundError, match="no such security group"):
        await created(fleet, security_groups=("nobody",))


async def test_a_group_stays_while_containers_have_it_and_names_them(world, fleet, desk):
    await desk.groups.create('{"name": "web"}')
    handle = await created(fleet, name="site", security_groups=("web",))
    other = await started(fleet, name="other")
    assert await desk.change_groups("other", ["web"], []) == ("web",)
    assert desk.users() == {"web": ["other", "site"]}
    with pytest.raises(WrongStateError, match="other, site"):
        await desk.remove_group("web")
    await handle.remove(force=True)
    assert await desk.change_groups("other", [], ["web"]) == ()
    assert not world.network.policies.limits_of(other.record.sandbox_id)
    await desk.remove_group("web")
    with pytest.raises(NotFoundError):
        await desk.remove_group("web")


async def test_groups_that_were_taken_stay_taken_at_the_next_start(world, fleet, desk):
    await desk.groups.create('{"name": "web"}')
    handle = await started(fleet, name="site", security_groups=("web",), network_rate_out=1000)
    await desk.change_groups("site", [], ["web"])
    await handle.stop(timeout_s=0)
    await handle.start()
    assert world.network.policies.limits_of(handle.record.sandbox_id) == Limits(rate_out=1000)


async def test_what_is_changed_at_the_same_time_is_all_in_force(world, fleet, desk):
    await desk.groups.create('{"name": "web"}')
    handle = await started(fleet, name="job", egress="allow-all")
    await asyncio.gather(desk.set_egress("job", "none"), desk.change_groups("job", ["web"], []))
    assert world.network.policies.limits_of(handle.record.sandbox_id) == Limits("none", ("web",))


async def test_changing_groups_to_what_they_are_does_nothing(world, fleet, desk):
    await desk.groups.create('{"name": "web"}')
    await started(fleet, name="site", security_groups=("web",))
    assert await desk.change_groups("site", ["web"], []) == ("web",)
    assert world.network.enforced == []
    for added, removed in ((["nobody"], []), ([], ["nobody"])):
        with pytest.raises(NotFoundError):
            await desk.change_groups("site", added, removed)


async def test_a_group_of_a_container_that_is_being_created_stays(fleet, desk):
    await desk.groups.create('{"name": "web"}')
    async with asyncio.TaskGroup() as tasks:
        creation = tasks.create_task(created(fleet, name="site", security_groups=("web",)))
        await eventually(lambda: fleet._creating)
        with pytest.raises(WrongStateError, match="in use by site"):
            await desk.remove_group("web")
    assert creation.result().record.spec.security_groups == ("web",)


async def test_a_group_that_goes_just_before_a_creation_is_recorded_refuses_it(world, fleet, desk):
    await desk.groups.create('{"name": "web"}')
    insert = world.records.insert

    async def insert_late(*records, **how):
        del world.network.policies.groups.known["web"]
        await insert(*records, **how)

    world.records.insert = insert_late
    with pytest.raises(NotFoundError, match="no such security group"):
        await created(fleet, name="site", security_groups=("web",))
    assert await world.records.load() == []
    assert fleet.views() == []


async def test_nobody_is_given_a_group_that_is_being_removed(world, fleet, desk):
    await desk.groups.create('{"name": "web"}')
    handle = await started(fleet, name="site")
    async with asyncio.TaskGroup() as tasks:
        giving = tasks.create_task(desk.change_groups("site", ["web"], []))
        await asyncio.sleep(0)
        with pytest.raises(WrongStateError, match="in use by site"):
            await desk.remove_group("web")
    assert giving.result() == ("web",)
    assert world.network.policies.limits_of(handle.record.sandbox_id) == Limits(groups=("web",))


HALVES = {Route("fd00::/65", "fd00::1"), Route("fd00::8000:0:0:0/65", "fd00::1")}


def is_led(world, handle):
    """Whether its guest sends what is for its neighbours to the gateway, in IPv6."""
    (link,) = world.agent(handle).wiring.links
    return set(link.routes) >= HALVES and Route("fd00::1/128", "") in link.routes


async def test_the_guest_of_a_policy_is_told_where_its_neighbours_are_in_ipv6(world, fleet, desk):
    await world.network.create_network(NetworkSpec("six", ipv6=True))
    handle = await started(fleet, network="six", egress="none")
    assert is_led(world, handle)
    plain = await started(fleet, network="six")
    assert not is_led(world, plain)
    before = world.agent(plain).wiring
    await desk.set_egress(plain.record.name, "none")
    assert is_led(world, plain)
    assert world.agent(plain).wiring.links[0].addresses == before.links[0].addresses, "which it keeps"
    assert world.agent(plain).calls.count("rewire") == 1
    await desk.set_egress(plain.record.name, "allow-all")
    assert world.agent(plain).calls.count("rewire") == 1, "it knows"


async def test_a_policy_holds_also_where_the_guest_is_not_told(world, fleet, desk):
    await world.network.create_network(NetworkSpec("six", ipv6=True))
    deaf = await started(fleet, network="six")
    world.agent(deaf).fail_next("rewire", UnavailableError("does not listen"))
    await desk.set_egress(deaf.record.name, "none")
    assert not is_led(world, deaf)
    still = await started(fleet, network="six")
    await still.pause()
    await desk.set_egress(still.record.name, "none")
    assert world.network.enforced == [deaf.record.sandbox_id, still.record.sandbox_id]
    assert not is_led(world, still)
    await desk.set_egress(deaf.record.name, "allow-all")
    assert is_led(world, deaf), "told with the next change"


async def test_who_got_a_policy_while_it_came_up_is_told_when_it_is_up(world, fleet, desk):
    await world.network.create_network(NetworkSpec("six", ipv6=True))
    handle = await created(fleet, network="six")
    world.hypervisor.gate.clear()
    starting = asyncio.create_task(handle.start())
    await eventually(lambda: world.network.taps.get(handle.record.sandbox_id))
    await desk.set_egress(handle.record.name, "none")
    world.hypervisor.gate.set()
    await starting
    await eventually(lambda: is_led(world, handle))
