# SPDX-License-Identifier: Apache-2.0
"""What is asked of a VM by callers who go, and of a QEMU that does not answer. libvirt itself is a few lines here."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from hyperd.errors import UnavailableError
from hyperd.model.vm import SandboxId
from hyperd.vm.libvirt.bridge import Lane, LibvirtBridge
from hyperd.vm.libvirt.settings import LibvirtSettings
from hyperd.vm.libvirt.states import VmStates

BOX = SandboxId("a" * 64)
# For what does not come: the deadline is what a test waits for. What comes may take its time on a busy host.
SETTINGS = LibvirtSettings(root=Path("/nowhere"), steer_timeout_s=0.1, save_stall_s=0.1)
PATIENT = replace(SETTINGS, steer_timeout_s=30.0)


class Domain:
    """A QEMU whose disk can be told to hang: it stops its CPUs when the disk is there again."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paused = False
        self.migration = "none"
        self.began = threading.Event()
        self.disk = threading.Event()
        self.disk.set()
        self.monitor = threading.Event()
        self.monitor.set()

    def suspend(self) -> None:
        self.began.set()
        assert self.disk.wait(10)
        self.paused = True
        self.calls.append("suspend")

    def resume(self) -> None:
        self.paused = False
        self.calls.append("resume")

    def state(self) -> list[int]:
        return [libvirt.VIR_DOMAIN_PAUSED if self.paused else libvirt.VIR_DOMAIN_RUNNING]


class Connection:
    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def lookupByUUIDString(self, _: str) -> Domain:  # noqa: N802 - libvirt's name
        return self._domain


class Bridge(LibvirtBridge):
    def __init__(self, domain: Domain) -> None:
        super().__init__("", lambda _: None)
        self._fake = Connection(domain)

    def _opened(self) -> Connection:  # type: ignore[override]
        return self._fake

    def close(self) -> None:
        for workers in self._lanes.values():
            workers.close()


def ask_monitor(domain: Domain, request: str, _: int) -> str:
    command = json.loads(request)["execute"]
    assert domain.monitor.wait(10)
    domain.calls.append(command)
    if command == "migrate":
        domain.migration = "active"
    return json.dumps({"return": {"status": domain.migration} if command == "query-migrate" else {}})


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Domain:
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", ask_monitor)
    return Domain()


@pytest.fixture
async def bridge(domain: Domain) -> AsyncIterator[Bridge]:
    opened = Bridge(domain)
    yield opened
    domain.disk.set()
    domain.monitor.set()
    opened.close()


@pytest.mark.parametrize("verb", ["pause", "save"])
async def test_what_a_cancelled_caller_began_has_ended_before_the_vm_is_let_go_on(
    domain: Domain, bridge: Bridge, verb: str
) -> None:
    states = VmStates(bridge, PATIENT)
    domain.disk.clear()
    work = states.pause(BOX) if verb == "pause" else states.save(BOX, Path("/nowhere/state"))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        caller = tasks.create_task(work)
        await asyncio.to_thread(domain.began.wait, 10)
        caller.cancel()
        resuming = tasks.create_task(states.resume(BOX))
        await asyncio.wait((resuming,), timeout=0.01)
        domain.disk.set()
        await resuming
    assert not domain.paused
    assert "migrate" not in domain.calls
    assert (domain.calls[0], domain.calls[-1]) == ("suspend", "resume")


@pytest.mark.parametrize("phase", ["active", "cancelling"])
async def test_a_qemu_that_never_leaves_its_save_is_waited_for_only_so_long(
    domain: Domain, bridge: Bridge, phase: str
) -> None:
    domain.paused, domain.migration = True, phase
    with pytest.raises(UnavailableError, match="does not go on in time"):
        await asyncio.wait_for(VmStates(bridge, SETTINGS).resume(BOX), 5)
    assert "resume" not in domain.calls


async def test_a_qemu_that_does_not_answer_is_waited_for_only_so_long(domain: Domain, bridge: Bridge) -> None:
    states = VmStates(bridge, SETTINGS)
    domain.paused = True
    domain.monitor.clear()
    with pytest.raises(UnavailableError, match="does not go on in time"):
        await asyncio.wait_for(states.resume(BOX), 5)


async def test_a_pause_that_a_disk_holds_up_is_waited_for_only_so_long_and_does_not_come_late(
    domain: Domain, bridge: Bridge
) -> None:
    states = VmStates(bridge, SETTINGS)
    domain.disk.clear()
    with pytest.raises(UnavailableError, match="does not stand still in time"):
        await asyncio.wait_for(states.pause(BOX), 5)
    domain.disk.set()
    states._settings = PATIENT
    await states.resume(BOX)
    assert not domain.paused


async def test_a_save_of_which_nothing_is_heard_any_more_is_given_up(domain: Domain, bridge: Bridge) -> None:
    states = VmStates(bridge, SETTINGS)
    saving = asyncio.create_task(states.save(BOX, Path("/nowhere/state")))
    while "query-migrate" not in domain.calls:
        await asyncio.wait((saving,), timeout=0.001)
    domain.monitor.clear()
    with pytest.raises(UnavailableError, match="nothing was written"):
        await asyncio.wait_for(saving, 5)


async def test_states_that_hang_while_they_are_read_keep_no_other_vm_standing(
    domain: Domain, bridge: Bridge
) -> None:
    release = threading.Event()
    async with asyncio.TaskGroup() as tasks:
        for lane in (Lane.RESTORE, Lane.CALL):
            for _ in range(2 * lane.value[1]):
                tasks.create_task(bridge.call(lambda _: release.wait(60), lane=lane))
        domain.paused = True
        try:
            await VmStates(bridge, PATIENT).resume(BOX)
        finally:
            release.set()
    assert not domain.paused
