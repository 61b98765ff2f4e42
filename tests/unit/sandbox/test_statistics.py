# SPDX-License-Identifier: Apache-2.0
"""What containers use is told whoever else does not answer."""

import asyncio

import pytest

from hyperd.api.stats import encode
from hyperd.errors import NotFoundError, UnavailableError
from hyperd.model.vm import SandboxId
from hyperd.sandbox import Fleet, statistics
from tests.fakes.world import World, created, started


async def test_one_that_runs_has_numbers_of_its_host_and_of_its_guest(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    (stats,) = await fleet.stats((), everything=False)
    assert stats.is_running
    assert stats.vm is not None
    assert stats.vm.cpu_ns > 0
    assert stats.wire is not None
    assert stats.pids is not None
    assert stats.memory_bytes is not None
    assert stats.memory_limit_bytes == handle.record.sizing.memory_mib << 20


async def test_one_that_does_not_run_has_none_and_is_shown_when_asked_for(world: World, fleet: Fleet) -> None:
    handle = await created(fleet, name="old")
    assert await fleet.stats((), everything=False) == []
    for found in (await fleet.stats((), everything=True), await fleet.stats(("old",), everything=False)):
        (stats,) = found
        assert (stats.sandbox_id, stats.is_running) == (handle.record.sandbox_id, False)
        assert (stats.vm, stats.pids, stats.memory_bytes) == (None, None, None)
    with pytest.raises(NotFoundError):
        await fleet.stats(("nobody",), everything=False)


async def test_one_that_is_paused_is_asked_nothing(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.pause()
    (stats,) = await fleet.stats((), everything=False)
    assert stats.vm is not None
    assert stats.pids is None


async def test_what_fails_is_not_told_and_the_rest_is(world: World, fleet: Fleet) -> None:
    handle, other = await started(fleet), await started(fleet)
    world.hypervisor.agents[handle.record.sandbox_id].fail_next("stats", UnavailableError("gone"))
    found = {each.sandbox_id: each for each in await fleet.stats((), everything=False)}
    assert found[handle.record.sandbox_id].pids is None
    assert found[handle.record.sandbox_id].vm is not None
    assert found[other.record.sandbox_id].pids is not None


async def test_what_has_gone_over_the_network_is_not_told_where_nobody_knows(
    world: World, fleet: Fleet
) -> None:
    await started(fleet)
    world.network.fail_next_usage = UnavailableError("gone")
    (stats,) = await fleet.stats((), everything=False)
    assert stats.wire is None
    assert not encode(stats).HasField("received_bytes")


async def test_one_without_a_network_has_sent_and_received_nothing(world: World, fleet: Fleet) -> None:
    await started(fleet, network="none")
    (stats,) = await fleet.stats((), everything=False)
    assert encode(stats).HasField("sent_bytes")
    assert encode(stats).sent_bytes == 0


async def test_an_agent_that_never_answers_keeps_nobody_waiting(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "ANSWER_S", 0.05)
    handle = await started(fleet)
    world.hypervisor.agents[handle.record.sandbox_id].hold("stats")
    async with asyncio.timeout(10):
        (stats,) = await fleet.stats((handle.record.name,), everything=False)
    assert stats.pids is None
    assert stats.vm is not None


async def test_counters_of_the_host_only_grow(world: World, fleet: Fleet) -> None:
    await started(fleet)
    first, second = [(await fleet.stats((), everything=False))[0].vm for _ in range(2)]
    assert first is not None
    assert second is not None
    assert second.cpu_ns > first.cpu_ns
    assert second.read_at_ns > first.read_at_ns
    with pytest.raises(NotFoundError):
        await world.hypervisor.usage(SandboxId("0" * 64))
