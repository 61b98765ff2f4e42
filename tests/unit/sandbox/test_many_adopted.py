# SPDX-License-Identifier: Apache-2.0
"""A hyperd that finds many VMs: what that costs grows with their number and no faster."""

import asyncio

import pytest

from tests.fakes.world import World, eventually, started


async def test_each_asks_for_its_own_vm_alone(world: World) -> None:
    async with world.daemon() as fleet:
        for _ in range(10):
            await started(fleet)
    world.hypervisor.listed = 0
    async with world.daemon() as fleet:
        drivers = fleet._drivers.values()
        await eventually(lambda: all(driver.tenure is not None for driver in drivers))
    assert world.hypervisor.listed == 1


async def test_so_many_are_dialled_at_a_time_and_all_are_reached(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.run.TAKEN_OVER_AT_A_TIME", 3)
    async with world.daemon() as fleet:
        for _ in range(10):
            await started(fleet)
    connect, dialling, most = world.dialer.connect, 0, 0

    async def counted(*args, **kwargs):
        nonlocal dialling, most
        dialling += 1
        most = max(most, dialling)
        try:
            await asyncio.sleep(0)
            return await connect(*args, **kwargs)
        finally:
            dialling -= 1

    world.dialer.connect = counted  # type: ignore[method-assign]
    async with world.daemon() as fleet:
        drivers = fleet._drivers.values()
        await eventually(lambda: all(driver.tenure is not None for driver in drivers))
    assert most == 3
