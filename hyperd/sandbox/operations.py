# SPDX-License-Identifier: Apache-2.0
"""What is done to a sandbox's VM as a whole while its container runs: pause it, let it go on.

One operation at a time, in the order of asking, each as a task of the driver's: a stop or the end of the run breaks it
off. An operation acts and then has the driver settle what it made true.
"""

import asyncio

from hyperd.errors import HyperError, WrongStateError
from hyperd.model.vm import VmStatus
from hyperd.sandbox import machine
from hyperd.sandbox.instance import SandboxInstance
from hyperd.sandbox.message import AskPause, AskUnpause, Operation, Settle
from hyperd.vm.base import Hypervisor


class SandboxOperations(SandboxInstance):
    def _on_operation(self, ask: Operation) -> None:
        task = self._spawn(self._operate(ask))
        self._operations.add(task)

        def over(task: "asyncio.Task[None]") -> None:
            # Also when it was cancelled before its first step: nobody may wait for ever.
            self._operations.discard(task)
            if not ask.done.done():
                ask.done.set_exception(WrongStateError("ended meanwhile", subject=self.subject))
                ask.done.exception()

        task.add_done_callback(over)

    async def _on_settle(self, settle: Settle) -> None:
        await self._advance(settle.event)
        if self.tenure is not None:
            self.tenure.paused = isinstance(self.state, machine.Paused)
        if not settle.done.done():
            settle.done.set_result(None)

    @property
    def _hypervisor(self) -> Hypervisor:
        return self.services.runner.rooms.hypervisor

    async def _operate(self, ask: Operation) -> None:
        try:
            async with self._one_at_a_time:
                await self._carry_out(ask)
        except HyperError as error:
            if not ask.done.done():
                ask.done.set_exception(error)
            return
        if not ask.done.done():
            ask.done.set_result(None)

    async def _carry_out(self, ask: Operation) -> None:
        match ask:
            case AskPause():
                await self._pause()
            case AskUnpause():
                await self._unpause()

    async def _pause(self) -> None:
        if isinstance(self.state, machine.Paused):
            raise WrongStateError("is already paused", subject=self.subject)
        machine.require_running(self.state, self.record.name)
        await self._hypervisor.pause(self.record.sandbox_id)
        await self._settle(machine.Pause())

    async def _unpause(self) -> None:
        machine.require_paused(self.state, self.record.name)
        await self._hypervisor.resume(self.record.sandbox_id)
        await self._settle(machine.Unpause())
        if self.tenure is not None:
            await self.tenure.unpause()
        elif isinstance(self.state, machine.Running):
            self._take_over_again(self.state.facts)

    def _take_over_again(self, facts: machine.RunFacts) -> None:
        """Of one that this hyperd found paused and has not spoken to."""
        vm = VmStatus(self.record.sandbox_id, facts.vm_pid, paused=True)
        self._come_up(lambda: self._errands.take_over(vm, facts, self._tell_trouble))

    async def _settle(self, event: machine.Event) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._post(self._run, Settle(event, done))
        await done
