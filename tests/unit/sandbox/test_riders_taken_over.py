# SPDX-License-Identifier: Apache-2.0
"""What becomes of riders whose hyperd was killed."""

from datetime import UTC, datetime
from pathlib import Path

from hyperd.model.container import ContainerState, ExecSpec, ExitReason
from hyperd.model.guest import ProcessExit
from hyperd.model.vm import Accelerator, Channel, VmDefinition
from hyperd.sandbox import machine
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import ended, state
from tests.unit.sandbox.ridden import plugged, require_alone, rider_of


async def test_a_killed_hyperd_finds_a_rider_with_its_carrier(world: World) -> None:
    async with world.daemon() as fleet:
        web = await started(fleet, name="web")
        side = await rider_of(web, fleet, name="side")
        execed = await side.exec(ExecSpec(("sleep",)))
        await execed.aclose()
        world.process(side).emit(b"before ")
    async with world.daemon() as fleet:
        side = fleet.get("side")
        world.process(side).emit(b"after")
        await eventually(lambda: fleet._drivers[side.record.sandbox_id].tenure is not None)
        tenure = fleet._drivers[fleet.get("web").record.sandbox_id].tenure
        assert tenure is not None
        assert not tenure.execs.tasks  # what runs in the rider is not the carrier's
        assert len(fleet._drivers[side.record.sandbox_id].tenure.execs.tasks) == 1  # type: ignore[union-attr]
        world.process(side).finish(ProcessExit(6))
        assert (await ended(side)).code == 6
        require_alone(world, fleet.get("web"))
        assert state(fleet.get("web")) is ContainerState.RUNNING


async def test_a_rider_whose_start_was_cut_short_leaves_nothing(world: World) -> None:
    async with world.daemon() as fleet:
        web = await started(fleet, name="web")
        side = await rider_of(web, fleet, name="side")
    assert plugged(world, web) != []
    async with (
        world.stored() as records
    ):  # as a hyperd leaves it that is killed before it can say that it runs
        await records.save_state(side.record.sandbox_id, machine.Starting(datetime.now(UTC)), 99)
    async with world.daemon() as fleet:
        await eventually(lambda: state(fleet.get("side")) is ContainerState.FAILED)
        require_alone(world, fleet.get("web"))
        await fleet.get("side").start()


async def test_a_rider_whose_carriers_vm_went_or_is_another_is_lost(world: World) -> None:
    async with world.daemon() as fleet:
        web = await started(fleet, name="web")
        await rider_of(web, fleet, name="side")
    world.hypervisor.lose(web.record.sandbox_id)
    async with world.daemon() as fleet:
        exit_ = await ended(fleet.get("side"))
        assert exit_.reason is ExitReason.VM_LOST
        assert state(fleet.get("side")) is ContainerState.FAILED


async def test_a_rider_that_was_going_down_is_brought_to_its_end(world: World) -> None:
    async with world.daemon() as fleet:
        web = await started(fleet, name="web")
        side = await rider_of(web, fleet, name="side")
        gate = world.agent(web).hold("delete_container")
        world.process(side).finish(ProcessExit(7))
        await world.agent(web).wait_called("delete_container")
    gate.set()
    async with world.daemon() as fleet:
        await eventually(lambda: state(fleet.get("side")) is ContainerState.EXITED)
        exit_ = fleet.get("side").view().exit
        assert exit_ is not None
        assert (exit_.code, exit_.reason) == (7, ExitReason.EXITED)
        require_alone(world, fleet.get("web"))


async def test_a_vm_in_which_a_killed_hyperd_had_its_files_open_is_ended(world: World) -> None:
    async with world.daemon() as fleet:
        await started(fleet, name="web")
        side = await created(fleet, name="side", network="container:web")
    left = VmDefinition(
        side.record.sandbox_id, 1, 64, Accelerator.TCG, Path("/k"), Path("/i"), "", world.root / "console",
        channels=(Channel("hyper.control", world.root / "control"),),
    )  # fmt: skip
    await world.hypervisor.start(left)
    async with world.daemon() as fleet:
        await eventually(lambda: side.record.sandbox_id not in world.hypervisor.running)
        assert state(fleet.get("web")) is ContainerState.RUNNING
        await fleet.get("side").start()
