# SPDX-License-Identifier: Apache-2.0
"""A host that keeps a spare, and what is asked of one."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hyperd.model.container import Sizing, StartReport
from hyperd.model.guest import ProcessExit
from hyperd.model.vm import Accelerator, SandboxId
from hyperd.sandbox import Fleet, SandboxHandle, Shape
from hyperd.sandbox.spares import Spare
from hyperd.sandbox.spares.rehearsal import PROGRAM
from tests.fakes.guest_process import Script
from tests.fakes.world import World, eventually

SHAPE = Shape(Sizing(1, 256), has_nic=True, accelerator=Accelerator.TCG)
LARGE = Shape(Sizing(1, 512), has_nic=True, accelerator=Accelerator.TCG)


def keep_one(world: World) -> None:
    world.templates_enabled = True
    world.spares_wanted = 1
    world.script(PROGRAM[0], Script(exit=ProcessExit(0)))


@pytest.fixture(autouse=True)
def keeping_one(world: World) -> None:
    keep_one(world)


@pytest_asyncio.fixture
async def ready(world: World) -> AsyncIterator[Fleet]:
    """A fleet with a spare."""
    async with world.daemon() as fleet:
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        await spare_of(world)
        yield fleet


async def spare_of(world: World) -> Spare:
    await eventually(lambda: len(world.spares.ready) == 1)
    return world.spares.ready[0]


def report(handle: SandboxHandle) -> StartReport:
    start = handle.view().start
    assert start is not None
    return start


def require_nothing_of(world: World, sandbox_id: SandboxId) -> None:
    assert sandbox_id not in world.hypervisor.running
    assert sandbox_id not in world.network.taps
    assert sandbox_id not in world.network.leases
    assert sandbox_id not in world.storage.disks
    for place in ("sandboxes", "run"):
        assert not list((world.root / place).glob(f"{sandbox_id[:12]}*"))
