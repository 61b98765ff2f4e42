# SPDX-License-Identifier: Apache-2.0
"""What a container is shown as, when its VM is gone."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperd.model.container import (
    ContainerRecord,
    ContainerSpec,
    ContainerState,
    Exit,
    ExitReason,
    Sizing,
    StartPath,
    StartReport,
)
from hyperd.model.image import ImageId
from hyperd.model.snapshot import SnapshotId
from hyperd.model.vm import SandboxId
from hyperd.sandbox import Fleet, machine
from hyperd.sandbox.view import view_of
from tests.fakes.world import World, started

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RECORD = ContainerRecord(
    SandboxId("a" * 64), "web", ContainerSpec("alpine"), ImageId("sha256:0"), ("sh",), Sizing(1, 256), NOW
)
REPORT = StartReport(StartPath.TEMPLATE, "", {"prepare": 4, "vm": 45})
UP = machine.Running(machine.RunFacts(NOW, 7, 1, "tcg", "6.12", 300, None, REPORT))


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (machine.Gone(Exit(3, ExitReason.EXITED), NOW), ContainerState.EXITED),
        (machine.Lost(machine.lost(ExitReason.VM_LOST, ""), NOW), ContainerState.FAILED),
        (machine.Slept(SnapshotId("s"), NOW), ContainerState.HIBERNATED),
    ],
)
def test_how_it_started_is_still_shown_when_its_vm_is_gone(
    event: machine.Event, state: ContainerState
) -> None:
    shown = view_of(RECORD, machine.step(UP, event), 3, Path("/log"))
    assert (shown.state, shown.start, shown.vm_pid) == (state, REPORT, 0)


async def test_a_later_daemon_shows_how_what_has_ended_started(world: World) -> None:
    world.templates_enabled = True
    async with world.daemon() as fleet:
        handle = await started(fleet)
        before = handle.view().start
        await handle.stop()
        assert handle.view().start == before is not None
    async with world.daemon() as later:
        assert _only(later).start == before


def _only(fleet: Fleet):
    (view,) = fleet.list_views((), everything=True)
    return view
