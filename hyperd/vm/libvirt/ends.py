# SPDX-License-Identifier: Apache-2.0
"""libvirt's lifecycle events -> one ``VmGone`` for each VM that ended, with the cause that was first.

    guest powers off, reboots or panics --libvirt says so--> noted --┐
                                        (or nothing is said) --------┴--stopped--> told

A guest that ends by itself may be destroyed before libvirt has tidied up, by whoever missed its agent; then `stopped`
says that we destroyed it, and only what was noted before says why it ended.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import libvirt

from hyperd.model.vm import SandboxId, VmGone, VmGoneCause
from hyperd.vm.libvirt.bridge import LifecycleEvent

_log = logging.getLogger(__name__)

_MAX_EVENTS = 4096
_NOTED = {
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: VmGoneCause.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_CRASHED: VmGoneCause.CRASHED,
}
_CAUSES = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: VmGoneCause.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: VmGoneCause.DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: VmGoneCause.CRASHED,
}


def cause_of(detail: int) -> VmGoneCause:
    """Of a lifecycle event `stopped`. All that is no one's wish is a loss."""
    return _CAUSES.get(detail, VmGoneCause.LOST)


class Ends:
    def __init__(self) -> None:
        self._told: asyncio.Queue[VmGone] = asyncio.Queue(_MAX_EVENTS)
        self._noted: dict[SandboxId, VmGoneCause] = {}  # each goes with the VM's end

    def note(self, sandbox_id: SandboxId, event: LifecycleEvent) -> None:
        """What a guest did, before its QEMU has gone. Only the first counts: a guest that panics is shut down, too."""
        if (cause := _NOTED.get(event.event)) is not None:
            self._noted.setdefault(sandbox_id, cause)

    def cause(self, sandbox_id: SandboxId, event: LifecycleEvent, *, destroyed: bool) -> VmGoneCause:
        """Of a VM that has stopped. ``destroyed``: by us, whatever libvirt makes of that."""
        noted = self._noted.pop(sandbox_id, None)
        if noted is not None:
            return noted
        return VmGoneCause.DESTROYED if destroyed else cause_of(event.detail)

    def forget(self, sandbox_id: SandboxId) -> None:
        """Its next VM is about to start."""
        self._noted.pop(sandbox_id, None)

    def tell(self, gone: VmGone) -> None:
        _log.info("VM gone", extra={"sandbox": gone.sandbox_id, "cause": gone.cause.value})
        try:
            self._told.put_nowait(gone)
        except asyncio.QueueFull:  # events are hints: who reconciles finds out
            _log.warning("nobody reads the hypervisor's events", extra={"sandbox": gone.sandbox_id})

    async def events(self) -> AsyncIterator[VmGone]:
        while True:
            yield await self._told.get()
