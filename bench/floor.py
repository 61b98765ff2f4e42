# SPDX-License-Identifier: Apache-2.0
"""The floors: what the same machine does without hyper in between."""

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.qemu import PLACE, BareVm, Machine, bare_vm

IGNORE_SHARED, MAPPED_RAM = "x-ignore-shared", "mapped-ram"


def boot_ms(accelerator: str) -> float:
    """A cold boot, from QEMU's fork to the agent's hello on both ports."""

    async def once() -> float:
        with bare_vm(Machine(accelerator)) as vm:
            async with vm.guest():
                return vm.age_ms

    return asyncio.run(once())


def agent_rss_mib(accelerator: str) -> float:
    async def once() -> float:
        with bare_vm(Machine(accelerator)) as vm:
            async with vm.guest() as guest:
                return (await guest.stats()).agent_rss_bytes / (1 << 20)

    return asyncio.run(once())


@dataclass(frozen=True, slots=True)
class SavedVm:
    """A booted guest in files, as hyperd would save it, and its restores by a bare QEMU."""

    machine: Machine
    capability: str
    state: Path

    @property
    def allocated_bytes(self) -> int:
        files = [self.state, *([self.machine.ram] if self.machine.ram else [])]
        return sum(path.stat().st_blocks * 512 for path in files)

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[tuple[BareVm, float]]:
        """One more, and the ms from QEMU's fork to the agent's hello on both ports."""
        with bare_vm(self.machine) as vm:
            await vm.restore(self.state, self.capability)
            async with vm.guest():
                hello_ms = vm.age_ms
            yield vm, hello_ms

    def restore_ms(self) -> float:
        async def once() -> float:
            async with self.restored() as (_, hello_ms):
                return hello_ms

        return asyncio.run(once())

    def restore_and_kill_many_ms(self, count: int, at_once: int) -> tuple[float, float]:
        """Until the last of ``count`` has said hello, ``at_once`` at a time; then until the last is gone."""
        return asyncio.run(self._many(count, at_once))

    async def _many(self, count: int, at_once: int) -> tuple[float, float]:
        free = asyncio.Semaphore(at_once)

        with ExitStack() as stack:
            vms: list[BareVm] = []

            async def start() -> None:
                async with free:
                    vm = stack.enter_context(bare_vm(self.machine))
                    vms.append(vm)
                    await vm.restore(self.state, self.capability)
                    async with vm.guest():
                        pass

            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(start())
            up = time.monotonic()
            for vm in vms:
                vm.kill()
            for vm in vms:
                vm.wait()
            return (up - began) * 1000, (time.monotonic() - up) * 1000


@contextmanager
def template(accelerator: str) -> Iterator[SavedVm]:
    """RAM as a file that restores map privately, and a small state beside it."""
    with tempfile.TemporaryDirectory(prefix="hyper-b-", dir=PLACE) as directory:
        ram, state = Path(directory) / "ram", Path(directory) / "state"
        with ram.open("wb") as file:
            file.truncate(Machine(accelerator).memory_mib << 20)
        source = Machine(accelerator, ram=ram, ram_shared=True, free_page_reporting=False)
        asyncio.run(_save(source, state, IGNORE_SHARED))
        yield SavedVm(replace(source, ram_shared=False, incoming=True), IGNORE_SHARED, state)


@contextmanager
def snapshot(accelerator: str) -> Iterator[SavedVm]:
    """All in one file: RAM, at offsets of its own, and devices."""
    with tempfile.TemporaryDirectory(prefix="hyper-b-", dir=PLACE) as directory:
        state = Path(directory) / "state"
        source = Machine(accelerator, free_page_reporting=False)
        asyncio.run(_save(source, state, MAPPED_RAM))
        yield SavedVm(replace(source, incoming=True), MAPPED_RAM, state)


async def _save(machine: Machine, state: Path, capability: str) -> None:
    with bare_vm(machine) as vm:
        async with vm.guest() as guest:
            await guest.release_devices()
        async with vm.monitor() as monitor:
            await monitor.command("stop")
            await monitor.enable(capability)
            await monitor.save(state)


class DirtyVm:
    """A running guest with that much of its memory in use besides its own, saved as often as is asked for."""

    def __init__(self, accelerator: str, dirty_mib: int) -> None:
        self._accelerator = accelerator
        self._dirty_mib = dirty_mib
        self.state_bytes = 0

    def pause_ms(self) -> float:
        """From `stop` to `cont`, with a whole save between them."""
        return asyncio.run(self._pause_ms())

    async def _pause_ms(self) -> float:
        with tempfile.TemporaryDirectory(prefix="hyper-b-", dir=PLACE) as directory:
            contents, state = Path(directory) / "contents", Path(directory) / "state"
            contents.write_bytes(os.urandom(1 << 20) * self._dirty_mib)
            machine = Machine(self._accelerator, contents=contents, free_page_reporting=False)
            with bare_vm(machine) as vm:
                async with vm.guest():
                    pass
                async with vm.monitor() as monitor:
                    await monitor.enable(MAPPED_RAM)
                    began = time.monotonic()
                    await monitor.command("stop")
                    await monitor.save(state)
                    await monitor.command("cont")
                    took = time.monotonic() - began
            self.state_bytes = state.stat().st_blocks * 512
            return took * 1000


def process_ms(argv: list[str]) -> float:
    """A whole process, from fork to reaped."""
    began = time.monotonic()
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=os.environ)
    return (time.monotonic() - began) * 1000
