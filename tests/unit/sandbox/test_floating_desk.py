# SPDX-License-Identifier: Apache-2.0
"""Which container has which floating address."""

import asyncio

import pytest

from hyperd.errors import InvalidError, NotFoundError, WrongStateError
from hyperd.model.network import Endpoint, NetworkSpec
from hyperd.sandbox import FloatingDesk
from tests.fakes.world import created, eventually, started


@pytest.fixture
def desk(world, fleet):
    return FloatingDesk(world.network, fleet)


async def test_an_address_is_lent_by_name_and_shown_with_its_container(fleet, desk):
    await started(fleet, name="web")
    ((first, nobody),) = await desk.allocate(1, "")
    assert nobody == ""
    await desk.name(first.address, "front")
    assert (await desk.attach("front", "web", force=False))[1] == "web"
    assert [(lent.address, name) for lent, name in await desk.list_all()] == [(first.address, "web")]
    with pytest.raises(WrongStateError) as refused:
        await desk.release("front")
    assert refused.value.brief == "is attached to web", "the network knows its id alone"
    had, name = await desk.detach("web")
    assert (had.address, name) == (first.address, "web")
    with pytest.raises(NotFoundError, match="has no floating address"):
        await desk.detach("web")
    await desk.release("front")
    assert await desk.list_all() == []


async def test_a_container_without_a_network_has_none(fleet, desk):
    await created(fleet, name="alone", network="none")
    ((address, _),) = await desk.allocate(1, "")
    with pytest.raises(InvalidError, match="has no network"):
        await desk.attach(address.address, "alone", force=False)
    with pytest.raises(NotFoundError):
        await desk.attach(address.address, "nobody", force=False)


async def test_a_container_on_internal_networks_alone_has_none_either(world, fleet, desk):
    await world.network.create_network(NetworkSpec("back", internal=True))
    await created(fleet, name="alone", network="back")
    await created(fleet, name="both", network="back", networks=(Endpoint("bridge"),))
    ((address, _),) = await desk.allocate(1, "")
    with pytest.raises(InvalidError, match="internal networks alone"):
        await desk.attach(address.address, "alone", force=False)
    assert (await desk.attach(address.address, "both", force=False))[1] == "both"


async def test_a_container_that_is_being_removed_gets_none(world, fleet, desk):
    handle = await created(fleet, name="web")
    ((address, _),) = await desk.allocate(1, "")
    world.network.release_gate.clear()
    removing = asyncio.create_task(handle.remove(force=True))
    await eventually(lambda: handle.is_being_removed)
    with pytest.raises(WrongStateError, match="is being removed"):
        await desk.attach(address.address, "web", force=False)
    world.network.release_gate.set()
    await removing
    assert [(known.sandbox_id, name) for known, name in await desk.list_all()] == [(None, "")]


async def test_one_that_a_container_had_whom_nobody_knows_is_free_with_the_next_hyperd(world):
    ((address),) = await world.network.floating.allocate(1)
    await world.network.floating.attach(address.address, "f" * 64)
    async with world.daemon():
        assert [known.sandbox_id for known in await world.network.floating.list_addresses()] == [None]


async def test_an_address_is_free_again_with_its_container_gone(fleet, desk):
    handle = await started(fleet, name="web")
    ((address, _),) = await desk.allocate(1, "")
    await desk.attach(address.address, "web", force=False)
    await handle.stop(timeout_s=0)
    assert (await desk.list_all())[0][1] == "web", "a stop changes nothing"
    await handle.remove(force=True)
    ((known, name),) = await desk.list_all()
    assert (known.sandbox_id, name) == (None, "")


async def test_no_view_of_all_is_made_for_each_address(world, fleet, desk, monkeypatch):
    handles = [await created(fleet, name=f"c{number}") for number in range(5)]
    for lent, handle in zip(await desk.allocate(5, ""), handles, strict=True):
        await desk.attach(lent[0].address, handle.record.name, force=False)
    views = 0

    def counted(sandbox_id):
        nonlocal views
        views += 1
        return ()

    monkeypatch.setattr(world.network, "published", counted)
    assert sorted(name for _, name in await desk.list_all()) == ["c0", "c1", "c2", "c3", "c4"]
    assert views == 0
