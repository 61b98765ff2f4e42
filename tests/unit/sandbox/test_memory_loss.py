# SPDX-License-Identifier: Apache-2.0
"""The memory of a hibernated sandbox is there until it runs again, whatever fails in between."""

import asyncio
import os

import pytest

from hyperd.errors import ExhaustedError, HyperError, UnavailableError
from hyperd.model.container import ContainerState
from hyperd.model.snapshot import SnapshotKind
from hyperd.sandbox import machine
from hyperd.sandbox.records import Records
from hyperd.sandbox.tenure import Tenure
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.lives import state

FULL = ExhaustedError("no space left for records")


def hibernations(world: World) -> int:
    return len(world.snapshots.list(SnapshotKind.HIBERNATION))


class FailingRecords:
    """Refuses to write one kind of state down, or holds it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type[machine.State]) -> None:
        self.error: HyperError | None = None
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.lasting: list[bool] = []
        real = Records.save_state

        async def save_state(records, sandbox_id, state, generation, *, lasting=False, **fields):
            if isinstance(state, kind):
                self.reached.set()
                self.lasting.append(lasting)
                await self.gate.wait()
                if self.error is not None:
                    raise self.error
            await real(records, sandbox_id, state, generation, lasting=lasting, **fields)

        monkeypatch.setattr(Records, "save_state", save_state)


async def test_what_cannot_be_recorded_as_asleep_stays_awake(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        FailingRecords(monkeypatch, machine.Hibernated).error = FULL
        with pytest.raises(ExhaustedError):
            await handle.hibernate()
        assert state(handle) is ContainerState.RUNNING
        assert not world.agent(handle).frozen
        assert not world.hypervisor.running[handle.record.sandbox_id].paused
        assert hibernations(world) == 0


async def test_falling_asleep_and_waking_survive_a_power_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        asleep = FailingRecords(monkeypatch, machine.Hibernated)
        await handle.hibernate()
        running = FailingRecords(monkeypatch, machine.Running)
        await handle.wake()
        assert (asleep.lasting, running.lasting) == ([True], [True])


async def test_a_daemon_that_ends_while_it_records_the_sleep_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = FailingRecords(monkeypatch, machine.Hibernated)
    records.gate.clear()
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        hibernating = asyncio.get_running_loop().create_task(_error_of(handle.hibernate()))
        await records.reached.wait()
        asyncio.get_running_loop().call_later(0.05, records.gate.set)  # hyperd is ending by then
    await hibernating
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        assert state(handle) is ContainerState.HIBERNATED
        assert hibernations(world) == 1
        await handle.wake()


async def test_the_memory_of_one_whose_record_cannot_be_read_stays(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        await handle.hibernate()
    async with world.stored() as records:
        await records._database.transaction(
            lambda connection: connection.execute("UPDATE sandbox SET spec = json_set(spec, '$.later', 1)")
        )
    async with world.daemon() as fleet:
        assert state(fleet.get(reference)) is ContainerState.FAILED
        assert hibernations(world) == 1
    async with world.stored() as records:
        await records._database.transaction(
            lambda connection: connection.execute("UPDATE sandbox SET spec = json_remove(spec, '$.later')")
        )
    async with world.daemon() as fleet:
        await fleet.get(reference).wake()


@pytest.mark.parametrize("went_on", [False, True])
async def test_one_that_lost_its_vm_when_it_was_saved_whole_sleeps(world: World, went_on: bool) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        running = handle._driver.state
        await handle.hibernate()
    async with world.stored() as records:  # as after a power cut before it was recorded
        await records.save_state(reference, running, 99)
    if went_on:
        later = world.snapshots.list(SnapshotKind.HIBERNATION)[0].manifest.created_at.timestamp() + 1
        os.utime(world.storage.disks[reference], (later, later))
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        if went_on:  # its disk is not the one that its memory knows
            await eventually(lambda: state(handle) is ContainerState.FAILED)
            assert hibernations(world) == 0
        else:
            assert state(handle) is ContainerState.HIBERNATED
            await handle.wake()
            assert state(handle) is ContainerState.RUNNING


async def test_one_that_cannot_be_thawed_keeps_its_memory_until_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.operations.RETRY_DELAY_S", 0.001)
    busy, real = UnavailableError("the host is busy"), Tenure.thaw
    answers = False

    async def thaw(tenure: Tenure) -> None:
        await asyncio.sleep(0)
        if not answers:
            raise busy
        await real(tenure)

    monkeypatch.setattr(Tenure, "thaw", thaw)
    async with world.daemon() as fleet:
        handle = await started(fleet)
        await handle.hibernate()
        with pytest.raises(UnavailableError, match="busy"):
            await handle.wake()
        await eventually(lambda: handle.view().trouble)
        assert state(handle) is ContainerState.RUNNING
        assert hibernations(world) == 1
        answers = True
        await eventually(lambda: not world.agent(handle).frozen)
        await eventually(lambda: hibernations(world) == 0)
        await eventually(lambda: not handle.view().trouble)


async def test_one_whose_waking_cannot_be_recorded_sleeps_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        await handle.hibernate()
        records = FailingRecords(monkeypatch, machine.Running)
        records.error = FULL
        with pytest.raises(ExhaustedError):
            await handle.wake()
        assert state(handle) is ContainerState.HIBERNATED
        assert hibernations(world) == 1
        world.require_nothing_left_of(handle)
        records.error = None
        await handle.wake()
        assert not world.agent(handle).frozen


async def test_one_that_wakes_is_not_thawed_before_that_is_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        await handle.hibernate()
        records = FailingRecords(monkeypatch, machine.Running)
        records.gate.clear()
        waking = asyncio.get_running_loop().create_task(handle.wake())
        await records.reached.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert world.agent(handle).frozen
        assert hibernations(world) == 1
        records.gate.set()
        await waking


async def _error_of(work) -> BaseException | None:
    try:
        await work
    except HyperError as error:
        return error
    return None
