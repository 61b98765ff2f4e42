# SPDX-License-Identifier: Apache-2.0
"""What a sandbox's driver does about calls that have its files open.

An end, a pause, sleep, a rollback of one that runs, and a removal by force break them off. A snapshot, a start and a
removal without force are refused while one is under way; one that has only to give back what it had is waited for.
"""

import asyncio

from hyperd.errors import HyperError
from hyperd.model.volume import Mount
from hyperd.sandbox import machine
from hyperd.sandbox.files_vm import FilesVm
from hyperd.sandbox.instance import SandboxInstance
from hyperd.sandbox.message import AskRollback, AskStart, OpenFiles


class OpenedSandbox(SandboxInstance):
    def files_vm(self, mounts: tuple[Mount, ...] = ()) -> FilesVm:
        """For one call. It ends with the driver."""
        return FilesVm(self.record, self.services, self.post, mounts)

    def _on_open_files(self, message: OpenFiles) -> None:
        if self.over or message.started.done():  # whoever asked has hung up
            message.work.close()
            if not message.started.done():
                message.started.set_exception(self._over_error())
        else:
            message.started.set_result(self._spawn(message.work))

    async def _close_files(self, brief: str) -> None:
        self.files.break_off(brief)
        await self.files.wait_gone()

    def _is_put_off(self, ask: AskStart | AskRollback) -> bool:
        """Of one that does not run. Whether it was refused, or comes again when the VM that there is has gone."""
        if not isinstance(self.state, machine.Created | machine.Exited | machine.Failed):
            return False
        try:
            self.files.require_none()
        except HyperError as error:
            if not ask.done.done():
                ask.done.set_exception(error)
            return True
        if not (self.files.are_there or self._operations):
            return False

        def again(_: "asyncio.Task[None]") -> None:
            self.post(ask)

        self._spawn(self._wait_alone()).add_done_callback(again)
        return True

    async def _wait_alone(self) -> None:
        await self.files.wait_gone(None)
        while self._operations:
            await self._changed.wait()
