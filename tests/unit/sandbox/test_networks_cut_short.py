# SPDX-License-Identifier: Apache-2.0
"""Joining and leaving networks, cut off on the way: by a stop, a failure, the end of hyperd."""

import asyncio

import pytest

from hyperd.errors import (
    UnavailableError,
    WrongStateError,
)
from hyperd.model.network import (
    Endpoint,
    NetworkSpec,
    PortRequest,
    Protocol,
    PublishedPort,
)
from hyperd.sandbox import NetworkDesk, endpoints
from tests.fakes.world import eventually, started
from tests.unit.sandbox.networked import desk_of, links, names

MAC = "02:00:00:00:00:01"
BACK = Endpoint("back")
TO_WEB = PublishedPort(80, Protocol.TCP, "0.0.0.0", 8080)
CONNECT_STEPS = ("attach", "attach_nic", "rewire", "save_state")


@pytest.fixture
async def desk(world, fleet):
    return await desk_of(world, fleet)


async def test_a_stop_in_the_middle_leaves_nothing(world, fleet, desk):
    handle = await started(fleet)
    agent = world.agent(handle)
    gate = agent.hold("rewire")
    connecting = asyncio.create_task(desk.connect(handle, BACK))
    await eventually(lambda: "rewire" in agent.calls)
    removing = asyncio.create_task(handle.remove(force=True))
    await eventually(lambda: agent.calls.count("rewire") == 2)  # that takes it back
    gate.set()
    await removing
    with pytest.raises(WrongStateError):
        await connecting
    assert handle.record.sandbox_id not in world.network.leases


@pytest.mark.parametrize("step", CONNECT_STEPS)
async def test_a_join_that_fails_is_taken_back(world, fleet, desk, step):
    handle = await started(fleet)
    sandbox_id = handle.record.sandbox_id
    before = (names(handle), links(world, handle), world.network.taps[sandbox_id].copy(), handle.record)
    with failing(world, handle, step, times=1), pytest.raises(UnavailableError, match="killed"):
        await desk.connect(handle, BACK)
    assert (names(handle), links(world, handle), world.network.taps[sandbox_id], handle.record) == before
    assert not world.hypervisor.plugged.get(sandbox_id)
    assert set(world.network.leases[sandbox_id]) == {"bridge"}


@pytest.mark.parametrize("step", [*CONNECT_STEPS, "lead_ports"])
async def test_a_hyperd_that_is_killed_while_one_joins_leaves_it_off_or_on(world, step):
    async with world.daemon() as fleet:
        desk = NetworkDesk(world.network, fleet.views, fleet.records)
        await desk.create(NetworkSpec("a-back"))
        handle = await started(fleet, name="web", ports=(PortRequest(80, host_port=8080),))
        with failing(world, handle, step):
            try:
                await desk.connect(handle, Endpoint("a-back"))
            except UnavailableError:
                assert step != "lead_ports"
    await require_whole(world, {"bridge", "a-back"} if step == "lead_ports" else {"bridge"})


@pytest.mark.parametrize(
    "step", ["save_state", "rewire", "lead_ports", "disconnect", "detach_nic", "remove_parked"]
)
async def test_a_hyperd_that_is_killed_while_one_leaves_leaves_it_off_or_on(world, step):
    async with world.daemon() as fleet:
        desk = NetworkDesk(world.network, fleet.views, fleet.records)
        await desk.create(NetworkSpec("a-back"))
        handle = await started(
            fleet, name="web", networks=(Endpoint("a-back"),), ports=(PortRequest(80, host_port=8080),)
        )
        with failing(world, handle, step), pytest.raises(UnavailableError):
            await desk.disconnect(handle, "a-back", force=False)
    await require_whole(world, {"bridge", "a-back"} if step == "save_state" else {"bridge"})


async def require_whole(world, on):
    """What the next hyperd makes of it."""
    async with world.daemon() as fleet:
        handle = fleet.get("web")
        sandbox_id = handle.record.sandbox_id
        await eventually(lambda: len(links(world, handle)) == len(on))
        await eventually(lambda: len(world.network.taps[sandbox_id]) == len(on))
        await eventually(lambda: TO_WEB in world.network.ports)
        assert set(names(handle)) == set(world.network.leases[sandbox_id]) == on
        assert {at.network for at in endpoints.endpoints_of(handle.record.spec)} == on
        assert len(world.hypervisor.taps_of(sandbox_id)) == len(on)
        await eventually(lambda: world.network.ports[TO_WEB][2] == min(on))
        await handle.stop(timeout_s=0)
        world.require_nothing_left_of(handle)


class failing:  # noqa: N801 - read as a word
    """From its first ``step`` on no call of the rooms, the agent or the records does anything: as after kill -9.

    ``times``: only so many fail.
    """

    ROOMS = (
        ("network", ("attach", "disconnect", "lead_ports", "remove_parked")),
        ("hypervisor", ("attach_nic", "detach_nic", "destroy")),
        ("records", ("save_state",)),
    )

    def __init__(self, world, handle, step, times=1 << 30):
        self._subjects = [(getattr(world, room), verbs) for room, verbs in self.ROOMS]
        self._agent = world.agent(handle)
        self._step, self._left, self._begun = step, times, False

    def __enter__(self):
        self._agent.on_call = self._call
        for subject, verbs in self._subjects:
            for verb in verbs:
                self._wrap(subject, verb)

    def __exit__(self, *_):
        self._agent.on_call = lambda _: None
        for subject, verbs in self._subjects:
            for verb in verbs:
                delattr(subject, verb)

    def _call(self, called):
        self._begun = self._begun or called == self._step
        if self._begun and self._left:
            self._left -= 1
            raise UnavailableError("killed")

    def _wrap(self, subject, verb):
        real = getattr(subject, verb)

        async def call(*args, **kwargs):
            self._call(verb)
            return await real(*args, **kwargs)

        setattr(subject, verb, call)
