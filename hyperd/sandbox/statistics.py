# SPDX-License-Identifier: Apache-2.0
"""What containers use: counted by the host, but for what only a guest knows of itself."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from hyperd.errors import HyperError
from hyperd.model.stats import ContainerStats, WireUsage
from hyperd.model.vm import SandboxId
from hyperd.network.base import Network
from hyperd.sandbox import filters
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
            vm = await _told(hypervisor.usage(record.sandbox_id))
            guest = await _told(handle.guest_stats())
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


async def _told(question: Awaitable[R]) -> R | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await question
    except (HyperError, TimeoutError) as error:
        log.debug("not told", extra={"error": str(error)})
        return None
