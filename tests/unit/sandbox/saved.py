# SPDX-License-Identifier: Apache-2.0
"""What tests of saving a sandbox ask of it and of the snapshots."""

from hyperd.errors import HyperError, UnavailableError
from hyperd.model.container import ContainerState
from hyperd.sandbox import SandboxHandle
from tests.fakes.world import World
from tests.unit.sandbox.lives import state

BROKEN = UnavailableError("boom")


def require_going_on(world: World, handle: SandboxHandle) -> None:
    sandbox_id = handle.record.sandbox_id
    assert state(handle) is ContainerState.RUNNING
    assert not world.hypervisor.running[sandbox_id].paused
    assert not world.agent(handle).frozen


def require_no_snapshot(world: World) -> None:
    assert not world.snapshots.everything()
    assert not world.snapshots.drafts


async def expect_failure(handle: SandboxHandle) -> None:
    try:
        await handle.snapshot()
    except HyperError:
        return
