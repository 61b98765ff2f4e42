# SPDX-License-Identifier: Apache-2.0
"""What tests of templates look at, and what they do to the agent of a clone."""

from hyperd.model.container import Sizing, StartReport
from hyperd.model.snapshot import Snapshot, SnapshotKind
from hyperd.model.vm import Accelerator, VmDefinition
from hyperd.sandbox import SandboxHandle, Shape
from tests.fakes.world import World

SHAPE = Shape(Sizing(1, 256), has_nic=True, accelerator=Accelerator.TCG)


def report(handle: SandboxHandle) -> StartReport:
    start = handle.view().start
    assert start is not None
    return start


def templates(world: World) -> list[Snapshot]:
    return world.snapshots.list(SnapshotKind.TEMPLATE)


def is_of_template(definition: VmDefinition) -> bool:
    return any(disk.path.name == "image.img" for disk in definition.disks)


def on_clone(world: World, act) -> None:
    """Let ``act`` do something to the agent of the next VM that starts from a template."""
    start = world.hypervisor.start

    async def start_and_act(definition: VmDefinition):
        status = await start(definition)
        if definition.restore_from is not None:
            world.hypervisor.start = start  # type: ignore[method-assign]
            act(world.hypervisor.agents[definition.sandbox_id])
        return status

    world.hypervisor.start = start_and_act  # type: ignore[method-assign]


def require_nothing_left(world: World) -> None:
    assert not world.hypervisor.running
    assert not world.network.leases
    assert not world.network.taps
    assert not world.snapshots.drafts
    assert not list((world.root / "snapshots").glob(".draft-*"))
    for place in ("sandboxes", "run"):
        assert not (world.root / place).exists() or not list((world.root / place).iterdir())
