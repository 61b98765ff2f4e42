# SPDX-License-Identifier: Apache-2.0
"""What tests ask of a VM in which others are, too."""

from hyperd.model.vm import Disk
from hyperd.sandbox import Fleet, SandboxHandle
from hyperd.sandbox.identity import container_id_of
from tests.fakes.world import World, started


async def rider_of(carrier: SandboxHandle, fleet: Fleet, **fields: object) -> SandboxHandle:
    return await started(fleet, network=f"container:{carrier.record.name}", **fields)


def plugged(world: World, carrier: SandboxHandle) -> list[str]:
    devices = world.hypervisor.plugged.get(carrier.record.sandbox_id, [])
    return [device.serial for device in devices if isinstance(device, Disk)]


def require_alone(world: World, carrier: SandboxHandle) -> None:
    """Nothing of another is in its VM."""
    assert plugged(world, carrier) == []
    assert list(world.agent(carrier).containers) == [container_id_of(carrier.record)]
