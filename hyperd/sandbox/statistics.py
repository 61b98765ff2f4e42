# SPDX-License-Identifier: Apache-2.0
"""What containers use: counted by the host, but for what only a guest knows of itself."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from hyperd.errors import HyperError
from hyperd.model.guest import GuestStats
from hyperd.model.stats import ContainerStats, VmUsage, WireUsage
from hyperd.model.vm import SandboxId
from hyperd.network.base import Network
from hyperd.sandbox import filters
from hyperd.sandbox.endpoints import carrier_of
from hyperd.sandbox.handle import SandboxHandle
from hyperd.vm import Hypervisor

log = logging.getLogger(__name__)

R = TypeVar("R")
ANSWER_S = 2.0
_AT_ONCE = 16


async def read(
    handles: Sequence[SandboxHandle], hypervisor: Hypervisor, network: Network
) -> list[ContainerStats]:
    """In their order. What cannot be told in time is None; over no tap nothing has gone."""
    wires = await _told(network.usage([handle.record.sandbox_id for handle in handles]))
    turns = asyncio.Semaphore(_AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(_of(handle, hypervisor, wires, turns)) for handle in handles]
    return [task.result() for task in found]


async def _of(
    handle: SandboxHandle,
    hypervisor: Hypervisor,
    wires: dict[SandboxId, WireUsage] | None,
    turns: asyncio.Semaphore,
) -> ContainerStats:
    record, is_running = handle.record, handle.view().state in filters.UP
    vm, guest = None, None
    if is_running:
        async with turns:
            guest = await _told(handle.guest_stats())
            if carrier_of(record.spec) is None:
                vm = await _told(hypervisor.usage(record.sandbox_id))
            elif guest is not None:  # the VM is another's: what its guest counts of it
                vm = _usage_of(guest[0])
                guest = guest[0], guest[0]
    return ContainerStats(
        sandbox_id=record.sandbox_id,
        name=record.name,
        is_running=is_running,
        memory_limit_bytes=record.sizing.memory_mib << 20,
        vm=vm,
        wire=None if wires is None else wires.get(record.sandbox_id, WireUsage()),
        memory_bytes=guest[1].memory_usage_bytes if guest else None,
        pids=guest[0].pids if guest else None,
    )


def _usage_of(counted: GuestStats) -> VmUsage:
    read, written = counted.io_read_bytes, counted.io_write_bytes
    return VmUsage(time.monotonic_ns(), counted.cpu_usage_ns, None, read, written)


async def _told(question: Awaitable[R]) -> R | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await question
    except (HyperError, TimeoutError) as error:
        log.debug("not told", extra={"error": str(error)})
        return None
