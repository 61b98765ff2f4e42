# SPDX-License-Identifier: Apache-2.0
"""A VM between two places: on its way up, or on its way out. Made in the loop that waits for it."""

import asyncio
from dataclasses import dataclass, field

from hyperd.model.vm import VmStatus
from hyperd.vm.libvirt.process import QemuProcess


@dataclass(frozen=True, slots=True)
class Starting:
    """A VM that libvirt is making. Cancelled outcome: nobody waits for it any more."""

    outcome: "asyncio.Future[VmStatus]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Ending:
    """A VM whose process is killed: what is still to come."""

    process: QemuProcess
    stopped: asyncio.Event = field(default_factory=asyncio.Event)  # libvirt's event
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)  # the name can be used again
