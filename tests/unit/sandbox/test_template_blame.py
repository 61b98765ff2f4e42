# SPDX-License-Identifier: Apache-2.0
"""Whose fault it is that a start from a template failed: a template goes only for its own."""

from collections.abc import Callable

import pytest

from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    ExistsError,
    HyperError,
    TimeoutExpiredError,
    UnavailableError,
)
from hyperd.model.container import Sizing, StartPath
from hyperd.model.snapshot import SnapshotKind
from hyperd.model.vm import Accelerator
from hyperd.sandbox import Fleet, Shape
from hyperd.sandbox.template import STRIKES
from tests.fakes.world import World, created, started

SHAPE = Shape(Sizing(1, 256), has_nic=True, accelerator=Accelerator.TCG)


@pytest.fixture
def world(world: World) -> World:
    world.templates_enabled = True
    return world


async def test_a_template_stays_while_booting_fails_as_well(world: World, fleet: Fleet) -> None:
    snapshot = await world.templates.build(SHAPE)
    handle = await created(fleet)
    connect = world.dialer.connect

    async def nobody_answers(*_: object, **__: object) -> object:
        raise TimeoutExpiredError("no hello: the host is too busy")

    world.dialer.connect = nobody_answers  # type: ignore[method-assign,assignment]
    for _ in range(STRIKES + 2):
        with pytest.raises(TimeoutExpiredError):
            await handle.start()
    assert world.snapshots.list(SnapshotKind.TEMPLATE) == [snapshot]
    world.dialer.connect = connect  # type: ignore[method-assign]
    await handle.start()
    start = handle.view().start
    assert start is not None
    assert start.path is StartPath.TEMPLATE


@pytest.mark.parametrize(
    "error",
    [
        ExistsError("the VM exists"),
        ExhaustedError("cannot allocate memory"),
        DeniedError("may not open it"),
    ],
)
async def test_what_the_host_has_or_lacks_is_no_fault_of_a_template(
    world: World, fleet: Fleet, error: HyperError
) -> None:
    snapshot = await world.templates.build(SHAPE)
    for _ in range(STRIKES + 1):
        world.hypervisor.fail_next_start = error
        await started(fleet)
    assert world.snapshots.list(SnapshotKind.TEMPLATE) == [snapshot]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda world: setattr(world.dialer, "fail_next_connect", TimeoutExpiredError("no hello")),
        lambda world: setattr(world.hypervisor, "fail_next_start", UnavailableError("QEMU ended")),
    ],
)
async def test_one_goes_when_starts_fail_with_it_and_come_up_without(
    world: World, fleet: Fleet, spoil: Callable[[World], None]
) -> None:
    snapshot = await world.templates.build(SHAPE)
    notes = []
    for _ in range(STRIKES):
        spoil(world)
        start = (await started(fleet)).view().start
        assert start is not None
        notes.append("is removed" in start.note)
    assert notes == [False] * (STRIKES - 1) + [True]
    assert snapshot not in world.snapshots.list(SnapshotKind.TEMPLATE)
