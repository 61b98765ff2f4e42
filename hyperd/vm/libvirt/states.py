# SPDX-License-Identifier: Apache-2.0
"""Pause, resume and save of one bridge's VMs: ``saving``'s calls, put in order and given deadlines.

The waiting is done on the loop. A thread is held for single questions to QEMU, never for the time that a disk takes,
unless QEMU itself stands still with it.

What a cancelled caller began runs to its end in its thread. What is asked of the VM next comes after that: a late pause
would stop for good what was just let go on. Only an end waits for nothing.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

import libvirt

from hyperd.errors import UnavailableError
from hyperd.host.workers import Wanted
from hyperd.model.vm import Disk, Nic, SandboxId, SharePort
from hyperd.vm.libvirt import domain, saving
from hyperd.vm.libvirt.bridge import Call, Lane, LibvirtBridge
from hyperd.vm.libvirt.errors import errors_of_existing
from hyperd.vm.libvirt.limits import require_disk
from hyperd.vm.libvirt.settings import LibvirtSettings
from hyperd.vm.libvirt.xml import domain_name

R = TypeVar("R")


class VmStates:
    def __init__(self, bridge: LibvirtBridge, settings: LibvirtSettings) -> None:
        self._bridge = bridge
        self._settings = settings
        self._under_way: dict[SandboxId, asyncio.Task[object]] = {}

    async def pause(self, sandbox_id: SandboxId) -> None:
        name, wanted = domain_name(sandbox_id), Wanted()
        with errors_of_existing(name), _deadline_errors(name, "does not stand still"):
            async with asyncio.timeout(self._settings.steer_timeout_s):
                await self._in_turn(
                    sandbox_id, lambda connection: saving.pause(connection, wanted, sandbox_id), wanted=wanted
                )

    async def resume(self, sandbox_id: SandboxId) -> None:
        """A save under way that nobody waits for any more is broken off."""
        name = domain_name(sandbox_id)

        def ask(question: Call[bool]) -> Awaitable[bool]:
            return self._in_turn(sandbox_id, question, lane=Lane.RESUME)

        with errors_of_existing(name), _deadline_errors(name, "does not go on"):
            async with asyncio.timeout(self._settings.steer_timeout_s):
                await self._bridge.until(lambda connection: saving.resume(connection, sandbox_id), call=ask)

    async def attach_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        await self._steer(
            sandbox_id, "takes no disk", lambda connection: domain.attach_disk(connection, sandbox_id, disk)
        )

    async def attach_share(self, sandbox_id: SandboxId, share: SharePort) -> None:
        await self._steer(
            sandbox_id,
            "takes no share",
            lambda connection: domain.attach_share(connection, sandbox_id, share),
        )

    async def resize_disk(self, sandbox_id: SandboxId, path: Path, size_bytes: int) -> None:
        await self._steer(
            sandbox_id,
            "does not let its disk grow",
            lambda connection: domain.resize_disk(connection, sandbox_id, path, size_bytes),
        )

    async def attach_nic(self, sandbox_id: SandboxId, nic: Nic) -> None:
        await self._steer(
            sandbox_id, "takes no NIC", lambda connection: domain.attach_nic(connection, sandbox_id, nic)
        )

    async def detach_nic(self, sandbox_id: SandboxId, tap: str) -> bool:
        return await self._detach(
            sandbox_id,
            "gives back no NIC",
            lambda connection: domain.ask_for_nic(connection, sandbox_id, tap),
            lambda connection: not domain.has_nic(connection, sandbox_id, tap),
        )

    async def detach_disk(self, sandbox_id: SandboxId, serial: str) -> bool:
        return await self._detach(
            sandbox_id,
            "gives back no disk",
            lambda connection: domain.ask_for_disk(connection, sandbox_id, serial),
            lambda connection: not domain.has_disk(connection, sandbox_id, serial),
        )

    async def list_plugged(self, sandbox_id: SandboxId) -> list[str]:
        return await self._steer(
            sandbox_id,
            "does not tell its devices",
            lambda connection: domain.list_plugged(connection, sandbox_id),
        )

    async def _detach(
        self, sandbox_id: SandboxId, failure: str, ask: Call[bool], is_gone: Call[bool]
    ) -> bool:
        name = domain_name(sandbox_id)
        with errors_of_existing(name), _deadline_errors(name, failure):
            async with asyncio.timeout(self._settings.steer_timeout_s):
                is_asked = await self._in_turn(sandbox_id, ask)
                if not is_asked:
                    return await self._bridge.call(is_gone)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.unplug_timeout_s):
                    await self._bridge.until(is_gone)
                return True
            return False

    async def replace_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        require_disk(disk)
        await self._steer(
            sandbox_id,
            "takes no other disk",
            lambda connection: domain.replace_disk(connection, sandbox_id, disk),
        )

    async def save(self, sandbox_id: SandboxId, state: Path) -> None:
        """A cancelled caller stops waiting; ``resume`` or ``destroy`` ends the writing."""
        name, wanted = domain_name(sandbox_id), Wanted()
        with errors_of_existing(name):
            limit = self._settings.save_bytes_per_s
            try:
                async with asyncio.timeout(self._settings.save_timeout_s):
                    await self._in_turn(
                        sandbox_id,
                        lambda connection: saving.begin_save(
                            connection, wanted, sandbox_id, state, bytes_per_s=limit
                        ),
                        wanted=wanted,
                    )
                    await self._wait_saved(sandbox_id)
            except TimeoutError as error:
                # ``resume`` breaks it off: QEMU may not answer now.
                brief = f"was not saved in {self._settings.save_timeout_s:g} s"
                raise UnavailableError(brief, subject=name, hint="is the disk too slow?") from error

    async def _wait_saved(self, sandbox_id: SandboxId) -> None:
        """Raises UnavailableError when QEMU writes nothing any more, or answers nothing."""
        now = asyncio.get_running_loop().time
        stall_s = self._settings.save_stall_s
        stalled = UnavailableError(f"nothing was written for {stall_s:g} s", subject=domain_name(sandbox_id))
        seen, seen_at = -1, now()

        def saved(connection: libvirt.virConnect) -> bool:
            nonlocal seen, seen_at
            progress = saving.progress_of_save(connection, sandbox_id)
            if progress.written_bytes != seen:
                seen, seen_at = progress.written_bytes, now()
            elif not progress.done and now() - seen_at > stall_s:
                saving.cancel_save(connection, sandbox_id)
                raise stalled
            return progress.done

        async def ask(question: Call[bool]) -> bool:
            try:
                async with asyncio.timeout(stall_s):
                    return await self._bridge.call(question)
            except TimeoutError as error:
                raise stalled from error

        await self._bridge.until(saved, call=ask)

    async def _steer(self, sandbox_id: SandboxId, failure: str, call: Call[R]) -> R:
        """``failure``: what it does not do when the deadline has passed."""
        name = domain_name(sandbox_id)
        with errors_of_existing(name), _deadline_errors(name, failure):
            async with asyncio.timeout(self._settings.steer_timeout_s):
                return await self._in_turn(sandbox_id, call)

    async def _in_turn(
        self,
        sandbox_id: SandboxId,
        function: Call[R],
        *,
        lane: Lane = Lane.CALL,
        wanted: Wanted | None = None,
    ) -> R:
        """After what is under way for this VM, whoever began it. Of a caller who has gone it is ``wanted`` no more."""
        while (before := self._under_way.get(sandbox_id)) is not None:
            await asyncio.wait((before,))
        task = asyncio.get_running_loop().create_task(self._bridge.call(function, lane=lane))
        self._under_way[sandbox_id] = task

        def over(task: "asyncio.Task[R]") -> None:
            del self._under_way[sandbox_id]
            if not task.cancelled():
                task.exception()  # heard, if not told

        task.add_done_callback(over)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if wanted is not None:
                wanted.withdraw()
            raise


@contextlib.contextmanager
def _deadline_errors(name: str, brief: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        hint = "its QEMU does not answer, or cannot leave a save: does a disk hang?"
        raise UnavailableError(f"{brief} in time", subject=name, hint=hint) from error
