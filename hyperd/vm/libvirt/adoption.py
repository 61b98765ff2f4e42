# SPDX-License-Identifier: Apache-2.0
"""VMs of an earlier process, when libvirt has reconnected to the QEMU of each, or found that it is gone.

It reconnects in the background: a destroy in that very moment fails with "Domain not found". So each is asked something
that has to wait for that, all at once and for so long: a QEMU that answers nothing holds up neither the others nor
hyperd. It is taken over as it is listed, its agent will not be reached either, and a destroy needs nobody's answer.
"""

import asyncio
import logging
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt

from hyperd.errors import HyperError
from hyperd.model.vm import SandboxId
from hyperd.vm.libvirt import monitor
from hyperd.vm.libvirt.bridge import Lane, LibvirtBridge, answered_within
from hyperd.vm.libvirt.domain import OurDomain, find_ours, list_ours, look_up
from hyperd.vm.libvirt.errors import is_gone, libvirt_errors
from hyperd.vm.libvirt.xml import domain_name

_log = logging.getLogger(__name__)

SETTLE_TIMEOUT_S = 10.0
LIST_TIMEOUT_S = 30.0


async def settle_ours(bridge: LibvirtBridge, uri: str) -> list[OurDomain]:
    """As ``list_ours``, each with its console where libvirt could tell. Raises what listing raises."""
    listed = await listed_ours(bridge, uri)
    async with asyncio.TaskGroup() as tasks:
        settling = [tasks.create_task(_settle(bridge, ours)) for ours in listed]
    return [settled for task in settling if (settled := task.result()) is not None]


async def listed_ours(bridge: LibvirtBridge, uri: str) -> list[OurDomain]:
    """Raises TimeoutExpiredError when libvirt does not answer."""
    async with answered_within(LIST_TIMEOUT_S, "listed its VMs", uri):
        with libvirt_errors(uri):
            return await bridge.call(list_ours, lane=Lane.URGENT)


async def found_ours(bridge: LibvirtBridge, sandbox_id: SandboxId) -> OurDomain | None:
    """Raises TimeoutExpiredError when libvirt does not answer."""
    name = domain_name(sandbox_id)
    async with answered_within(LIST_TIMEOUT_S, "looked it up", name):
        with libvirt_errors(name):
            return await bridge.call(lambda connection: find_ours(connection, sandbox_id), lane=Lane.URGENT)


async def _settle(bridge: LibvirtBridge, ours: OurDomain) -> OurDomain | None:
    name = domain_name(ours.sandbox_id)
    try:
        async with answered_within(SETTLE_TIMEOUT_S, "reconnected to its QEMU", name):
            with libvirt_errors(name):
                settled = await bridge.call(lambda connection: _settled(connection, ours))
                if settled is not None:
                    await _put_away_strays(bridge, ours.sandbox_id)
                return settled
    except HyperError as error:
        _log.warning("a VM is taken over as it is listed", extra={"error": str(error)})
        return ours


async def _put_away_strays(bridge: LibvirtBridge, sandbox_id: SandboxId) -> None:
    """Disks that an earlier process was plugging in when it was killed: QEMU has them, libvirt does not know them."""
    strays = await bridge.call(lambda connection: _ask_for_strays(look_up(connection, sandbox_id)))
    if strays:
        _log.warning("taking out disks that a killed hyperd left", extra={"sandbox": sandbox_id})
        await bridge.until(lambda connection: not _find_strays(look_up(connection, sandbox_id)).devices)
        await bridge.call(lambda connection: monitor.close_strays(look_up(connection, sandbox_id), strays))


def _ask_for_strays(domain: libvirt.virDomain) -> monitor.Strays:
    strays = _find_strays(domain)
    monitor.ask_for_strays(domain, strays)
    return strays


def _find_strays(domain: libvirt.virDomain) -> monitor.Strays:
    described = ET.fromstring(domain.XMLDesc())  # noqa: S314 - libvirt's own
    aliases = {alias.get("name", "") for alias in described.iter("alias")}
    indexes = {index for source in described.iter("source") if (index := source.get("index"))}
    return monitor.find_strays(domain, aliases, indexes)


def _settled(connection: libvirt.virConnect, ours: OurDomain) -> OurDomain | None:
    try:
        domain = look_up(connection, ours.sandbox_id)
        domain.memoryStats()  # a job of the domain: waits for the job that reconnects it
        source = ET.fromstring(domain.XMLDesc()).find("devices/serial/source")  # noqa: S314 - libvirt's own
    except libvirt.libvirtError as error:
        if is_gone(error):  # its QEMU had ended while nobody looked
            return None
        raise
    path = source.get("path") if source is not None else None
    return OurDomain(ours.sandbox_id, ours.paused, Path(path) if path else None)
