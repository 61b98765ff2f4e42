# SPDX-License-Identifier: Apache-2.0
"""Containers on several networks: joined and left, at rest and while they run, whoever fails or is killed meanwhile."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from hyperd.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.container import ContainerSpec
from hyperd.model.network import (
    Attachment,
    Endpoint,
    NetworkSpec,
    PortRequest,
    Protocol,
    PublishedPort,
    way_out,
)
from hyperd.model.vm import HOT_PLUG_DEVICES, Nic, SandboxId
from hyperd.sandbox import NetworkDesk, endpoints, machine
from hyperd.sandbox.cloning import CloneOptions
from hyperd.sandbox.records import dumps, loads
from tests.fakes.network import fake_tap
from tests.fakes.world import created, eventually, started
from tests.unit.sandbox.networked import desk_of, links, names

MAC = "02:00:00:00:00:01"
BACK = Endpoint("back")
TO_WEB = PublishedPort(80, Protocol.TCP, "0.0.0.0", 8080)


@pytest.fixture
async def desk(world, fleet):
    return await desk_of(world, fleet)


def attachment(network: str, **fields: Any) -> Attachment:
    box = Attachment(SandboxId("b" * 64), network, "tap", MAC, "10.0.0.2", 24, "10.0.0.1", 1500, (), (), ())
    return replace(box, **fields)


def test_the_way_out_is_dockers():
    a, b = attachment("a"), attachment("b")
    assert way_out([b, a]) is a
    assert way_out([a, high := attachment("b", gateway_priority=1)]) is high
    assert way_out([attachment("a", gateway_priority=9, internal=True), b]) is b
    assert way_out([inside := attachment("a", internal=True)]) is inside
    assert way_out([]) is None


def test_a_specification_keeps_its_networks_in_order_and_an_older_one_has_one():
    spec = ContainerSpec("alpine", network="a", networks=(Endpoint("b", aliases=("x",), gateway_priority=1),))
    assert loads(ContainerSpec, dumps(spec)) == spec
    assert [at.network for at in endpoints.endpoints_of(spec)] == ["a", "b"]
    assert endpoints.with_endpoints(spec, endpoints.endpoints_of(spec)) == spec
    older = loads(ContainerSpec, '{"image":"alpine","network":"a","address":"10.0.0.9"}')
    assert endpoints.endpoints_of(older) == (Endpoint("a", "10.0.0.9"),)
    assert endpoints.endpoints_of(endpoints.with_endpoints(spec, ())) == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"mac_address": "02:00:00:00:00"},
        {"mac_address": "01:00:00:00:00:01"},
        {"mac_address": "00:00:00:00:00:00"},
        {"network": "none", "mac_address": MAC},
        {"network": "none", "networks": (BACK,)},
        {"networks": (Endpoint("none"),)},
        {"networks": (Endpoint("back", address="fd00::1"),)},
        {"networks": (Endpoint("back", aliases=("a b",)),)},
        {"networks": tuple(Endpoint(f"n{number}") for number in range(HOT_PLUG_DEVICES + 1))},
    ],
)
def test_networks_that_cannot_be_are_refused(fields):
    with pytest.raises(InvalidError):
        endpoints.require_valid(ContainerSpec("alpine", **fields))


async def test_it_starts_on_all_of_its_networks(world, fleet, desk):
    handle = await started(
        fleet,
        network="zone",
        mac_address=MAC,
        networks=(Endpoint("back", aliases=("db",)),),
        ports=(PortRequest(80, host_port=8080),),
    )
    sandbox_id = handle.record.sandbox_id
    assert names(handle) == ["zone", "back"]
    assert links(world, handle) == [("eth0", False), ("eth1", True)]
    assert handle.view().attachments[0].mac == MAC
    assert world.network.ports[TO_WEB][2] == "back"
    assert world.hypervisor.taps_of(sandbox_id) == [fake_tap(sandbox_id, 0), fake_tap(sandbox_id, 1)]
    assert [(named.network, named.names[-1]) for named in fleet.named()] == [
        ("zone", sandbox_id[:12]),
        ("back", "db"),
    ]
    assert [view.record.name for view in desk.on("back")] == [handle.record.name]
    await handle.stop(timeout_s=0)
    world.require_nothing_left_of(handle)


async def test_a_network_given_twice_is_refused_however_it_is_called(fleet, desk):
    by_id = desk.get("back").network_id
    with pytest.raises(InvalidError, match="more than once"):
        await created(fleet, network="back", networks=(Endpoint(by_id),))


async def test_a_network_of_a_container_that_is_being_created_stays(fleet, desk):
    async with asyncio.TaskGroup() as tasks:
        creation = tasks.create_task(created(fleet, name="web", network="zone", networks=(BACK,)))
        await eventually(lambda: fleet._creating)
        with pytest.raises(WrongStateError, match="in use by web"):
            await desk.remove("back")
        assert await desk.prune() == []
    assert creation.result().record.spec.networks == (BACK,)


async def test_a_network_that_goes_just_before_a_creation_is_recorded_refuses_it(world, fleet, desk):
    insert = world.records.insert

    async def insert_late(*records, **how):
        await world.network.remove_network("back")
        await insert(*records, **how)

    world.records.insert = insert_late
    with pytest.raises(NotFoundError, match="no such network"):
        await created(fleet, name="web", network="back")
    assert await world.records.load() == []
    assert fleet.views() == []


async def test_a_network_that_a_container_was_created_on_while_it_was_to_go_stays(world, fleet, desk):
    world.network.remove_gate.clear()
    removing = [asyncio.create_task(work) for work in (desk.remove("back"), desk.prune())]
    await asyncio.sleep(0)
    await created(fleet, name="web", network="back")
    world.network.remove_gate.set()
    with pytest.raises(WrongStateError, match="in use by web"):
        await removing[0]
    assert await removing[1] == ["zone"]
    assert desk.get("back")


async def test_one_at_rest_is_not_put_on_a_network_that_goes_meanwhile(world, fleet, desk):
    handle = await created(fleet, name="web")
    save = world.records.save_state

    async def save_late(*given, **how):
        world.records.save_state = save
        await desk.remove("back")
        return await save(*given, **how)

    world.records.save_state = save_late
    with pytest.raises(NotFoundError, match="no such network"):
        await desk.connect(handle, BACK)
    assert [at.network for at in endpoints.endpoints_of(handle.record.spec)] == ["bridge"]
    await handle.start()


async def test_a_prune_says_what_could_not_be_removed_and_removes_the_rest(world, fleet, desk):
    world.network.fail_next_remove = UnavailableError("its rules were not removed", subject="table")
    with pytest.raises(UnavailableError, match="network back") as raised:
        await desk.prune()
    assert "its rules were not removed" in str(raised.value)
    assert [view.spec.name for view in desk.list_networks()] == ["bridge", "back"]


async def test_one_that_runs_joins_a_network_and_leaves_it(world, fleet, desk):
    handle = await started(fleet, network="zone", ports=(PortRequest(80, host_port=8080),))
    sandbox_id = handle.record.sandbox_id
    await desk.connect(handle, Endpoint("back", aliases=("db",), mac_address=MAC))
    assert names(handle) == ["zone", "back"]
    assert links(world, handle) == [("eth0", False), ("eth1", True)]
    assert world.hypervisor.plugged[sandbox_id] == [Nic(fake_tap(sandbox_id, 1), MAC)]
    assert world.network.ports[TO_WEB][2] == "back"
    with pytest.raises(WrongStateError, match="on network back already"):
        await desk.connect(handle, BACK)
    assert await desk.disconnect(handle, "back", force=False) == []
    assert names(handle) == ["zone"]
    assert links(world, handle) == [("eth0", True)]
    assert world.hypervisor.plugged[sandbox_id] == []
    assert world.network.taps[sandbox_id] == {fake_tap(sandbox_id, 0)}
    assert world.network.ports[TO_WEB][2] == "zone"
    with pytest.raises(NotFoundError, match="not on network back"):
        await desk.disconnect(handle, "back", force=False)


async def test_what_it_joined_it_is_on_after_a_restart_of_it_and_of_hyperd(world):
    async with world.daemon() as fleet:
        desk = NetworkDesk(world.network, fleet.views, fleet.records)
        await desk.create(NetworkSpec("back"))
        handle = await started(fleet, name="web")
        await desk.connect(handle, Endpoint("back", aliases=("db",)))
        before = handle.view().attachments
    async with world.daemon() as fleet:
        handle = fleet.get("web")
        assert handle.view().attachments == before
        await handle.stop(timeout_s=0)
        await handle.start()
        assert names(handle) == ["bridge", "back"]
        assert handle.record.spec.networks == (Endpoint("back", aliases=("db",)),)


async def test_the_nic_that_it_was_started_with_stays_for_its_next_network(world, fleet, desk):
    handle = await started(fleet)
    tap = handle.view().attachments[0].tap
    assert await desk.disconnect(handle, "bridge", force=False) == []
    assert names(handle) == []
    assert links(world, handle) == []
    with pytest.raises(WrongStateError, match="no network"):
        await handle.publish([PortRequest(80)])
    await desk.connect(handle, BACK)
    assert handle.view().attachments[0].tap == tap
    assert handle.record.spec.network == "back"
    assert world.hypervisor.taps_of(handle.record.sandbox_id) == [tap]
    await handle.stop(timeout_s=0)
    world.require_nothing_left_of(handle)


async def test_one_that_started_without_a_network_gets_a_nic(world, fleet, desk):
    handle = await started(fleet, network="none")
    await desk.connect(handle, BACK)
    assert links(world, handle) == [("eth1", True)]
    await handle.stop(timeout_s=0)
    world.require_nothing_left_of(handle)
    await handle.start()
    assert links(world, handle) == [("eth0", True)]


async def test_a_guest_that_does_not_let_go_is_off_the_network_all_the_same_and_that_is_told(
    world, fleet, desk
):
    handle = await started(fleet)
    sandbox_id = handle.record.sandbox_id
    await desk.connect(handle, BACK)
    world.hypervisor.clinging.add(sandbox_id)
    world.agent(handle).fail_next("rewire", UnavailableError("does not listen"))
    (told,) = await desk.disconnect(handle, "back", force=False)
    assert "not let go" in told
    assert "back" not in world.network.leases[sandbox_id]
    await desk.connect(handle, Endpoint("zone"))
    assert links(world, handle)[1][0] == "eth2", "the other may still be let go of"
    await handle.stop(timeout_s=0)
    world.require_nothing_left_of(handle)


async def test_forced_off_a_guest_is_neither_told_nor_waited_for(world, fleet, desk):
    handle = await started(fleet)
    await desk.connect(handle, BACK)
    wiring = world.agent(handle).wiring
    assert await desk.disconnect(handle, "back", force=True) == []
    assert world.agent(handle).wiring == wiring
    assert names(handle) == ["bridge"]


@pytest.mark.parametrize("joins", [True, False])
async def test_ports_that_could_not_be_led_elsewhere_are_told_of(world, fleet, desk, joins):
    handle = await started(fleet, ports=(PortRequest(80, host_port=8080),))
    if not joins:
        await desk.connect(handle, BACK)
    world.network.fail_next_lead = ExistsError("is in use by nginx", subject="port 0.0.0.0:8080/tcp")
    (told,) = await (desk.connect(handle, BACK) if joins else desk.disconnect(handle, "bridge", force=False))
    assert "published no more: 0.0.0.0:8080->80/tcp" in told
    assert "is in use by nginx" in told


async def test_one_at_rest_joins_and_leaves_for_its_next_start(world, fleet, desk):
    handle = await created(fleet)
    await desk.connect(handle, BACK)
    await desk.disconnect(handle, "bridge", force=False)
    await handle.start()
    assert names(handle) == ["back"]
    await handle.stop(timeout_s=0)
    await desk.disconnect(handle, "back", force=False)
    assert handle.record.sandbox_id not in world.network.leases
    await handle.start()
    assert names(handle) == []


async def test_one_that_stands_still_is_on_the_networks_that_it_is_on(fleet, desk):
    handle = await started(fleet)
    await handle.pause()
    with pytest.raises(WrongStateError, match="is paused"):
        await desk.connect(handle, BACK)
    await handle.unpause()
    await handle.hibernate()
    with pytest.raises(WrongStateError, match="is hibernated"):
        await desk.disconnect(handle, "bridge", force=False)


async def test_what_has_further_nics_is_not_saved(world, fleet, desk):
    handle = await started(fleet, name="web", networks=(BACK,))
    with pytest.raises(UnsupportedError, match="and no other"):
        await handle.snapshot()
    with pytest.raises(UnsupportedError, match="and no other"):
        await handle.hibernate()
    with pytest.raises(UnsupportedError, match="and no other"):
        await fleet.fork("web", CloneOptions())
    world.hypervisor.clinging.add(handle.record.sandbox_id)
    await desk.disconnect(handle, "back", force=False)
    with pytest.raises(UnsupportedError):
        await handle.snapshot()
    world.hypervisor.clinging.clear()
    await desk.connect(handle, BACK)
    await desk.disconnect(handle, "back", force=False)
    await handle.snapshot()


async def test_a_taken_address_or_mac_is_refused_and_nothing_changes(world, fleet, desk):
    await started(fleet, network="back", mac_address=MAC)
    handle = await started(fleet)
    before = world.network.taps[handle.record.sandbox_id].copy()
    with pytest.raises(ExistsError):
        await desk.connect(handle, Endpoint("back", mac_address=MAC))
    assert names(handle) == ["bridge"]
    assert world.network.taps[handle.record.sandbox_id] == before


def test_a_run_that_ended_is_on_no_other_networks():
    for state in (machine.Created(), machine.Removing()):
        assert machine.step(state, machine.Rewired(())) == state
