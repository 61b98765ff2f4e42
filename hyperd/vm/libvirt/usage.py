# SPDX-License-Identifier: Apache-2.0
"""What a VM uses, as the host counts it: its process from /proc, its disks from libvirt."""

import asyncio
import os
import re
import time
from pathlib import Path

import libvirt

from hyperd.errors import HyperError, NotFoundError
from hyperd.host.workers import Workers
from hyperd.model.stats import VmUsage
from hyperd.model.vm import SandboxId
from hyperd.vm.libvirt import domain
from hyperd.vm.libvirt.bridge import Lane, LibvirtBridge
from hyperd.vm.libvirt.errors import libvirt_errors
from hyperd.vm.libvirt.process import QemuProcess
from hyperd.vm.libvirt.xml import domain_name

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PSS = re.compile(rb"^Pss: +(\d+) kB$", re.MULTILINE)
_BLOCK_S = 1.0  # for QEMU's answer; one that does not answer keeps nobody else from being seen


class Usages:
    """A QEMU that has not answered the last question is not asked another: it would hold a thread each time."""

    def __init__(self, bridge: LibvirtBridge) -> None:
        self._bridge = bridge
        self._proc = Workers("usage", 2)
        self._asked: set[SandboxId] = set()

    async def read(self, sandbox_id: SandboxId, process: QemuProcess | None) -> VmUsage:
        """Raises NotFoundError when it has ended."""
        name = domain_name(sandbox_id)
        if process is None:
            raise NotFoundError("no such VM", subject=name)
        blocks = await self._blocks(sandbox_id)
        try:
            cpu_ns, memory_bytes, read_at_ns = await self._proc.call(_of_process, process.pid)
        except (OSError, ValueError) as error:
            raise NotFoundError("has ended", subject=name, evidence=str(error)) from error
        return VmUsage(read_at_ns, cpu_ns, memory_bytes, *blocks)

    def close(self) -> None:
        self._proc.close()

    async def _blocks(self, sandbox_id: SandboxId) -> tuple[int | None, int | None]:
        if sandbox_id in self._asked:
            return None, None

        def ask(connection: libvirt.virConnect) -> tuple[int, int]:
            try:
                return domain.block_bytes(connection, sandbox_id)
            finally:
                self._asked.discard(sandbox_id)

        self._asked.add(sandbox_id)
        try:
            async with asyncio.timeout(_BLOCK_S):
                with libvirt_errors(domain_name(sandbox_id)):
                    return await self._bridge.call(ask, lane=Lane.LOOK)
        except (HyperError, TimeoutError):
            return None, None


def _of_process(pid: int) -> tuple[int, int, int]:
    """CPU time, PSS, and when that was. Raises OSError, ValueError. See proc(5)."""
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_bytes().rpartition(b")")[2].split()  # its name may hold anything
    read_at_ns = time.monotonic_ns()
    match = _PSS.search((process / "smaps_rollup").read_bytes())
    if match is None:
        raise ValueError("has no memory any more")
    return (int(fields[11]) + int(fields[12])) * _NS_PER_TICK, int(match[1]) * 1024, read_at_ns
