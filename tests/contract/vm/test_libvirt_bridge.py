# SPDX-License-Identifier: Apache-2.0
"""The seam to libvirt, on its built-in test driver: calls, events and errors cross it, and nothing blocks a kill."""

import asyncio
import threading
from collections.abc import AsyncIterator

import libvirt
import pytest

from hyperd.errors import NotFoundError, UnavailableError, WrongStateError
from hyperd.vm.libvirt.bridge import Lane, LibvirtBridge, LifecycleEvent
from hyperd.vm.libvirt.errors import libvirt_errors

Events = asyncio.Queue[LifecycleEvent]


@pytest.fixture
async def opened() -> AsyncIterator[tuple[LibvirtBridge, Events]]:
    events: Events = asyncio.Queue()
    async with LibvirtBridge("test:///default", events.put_nowait) as bridge:
        yield bridge, events


def destroy(connection: libvirt.virConnect) -> None:
    connection.lookupByName("test").destroy()


async def test_a_call_is_made_and_its_event_arrives_on_the_loop(opened: tuple[LibvirtBridge, Events]) -> None:
    bridge, events = opened
    await bridge.call(destroy)
    assert await asyncio.wait_for(events.get(), 5) == LifecycleEvent(
        "test", libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED
    )


async def test_errors_are_ours_and_keep_their_cause(opened: tuple[LibvirtBridge, Events]) -> None:
    bridge, _ = opened
    await bridge.call(destroy)
    with pytest.raises(WrongStateError), libvirt_errors("test"):
        await bridge.call(destroy)
    with pytest.raises(NotFoundError) as caught, libvirt_errors("absent", evidence=lambda: "log"):
        await bridge.call(lambda connection: connection.lookupByName("absent"))
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)
    assert (caught.value.subject, caught.value.evidence) == ("absent", "log")


async def test_an_unknown_uri_is_unavailable_and_no_thread_stays() -> None:
    before = threading.active_count()
    with pytest.raises(UnavailableError):
        async with LibvirtBridge("nothing:///", lambda _: None):
            pass
    assert threading.active_count() == before


async def test_stuck_calls_do_not_keep_an_urgent_one_waiting(opened: tuple[LibvirtBridge, Events]) -> None:
    bridge, _ = opened
    release = threading.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(32):
            tasks.create_task(bridge.call(lambda _: release.wait(30)))
        async with asyncio.timeout(5):
            assert await bridge.call(lambda connection: connection.getHostname(), lane=Lane.URGENT)
        release.set()


async def test_a_question_that_is_asked_again_holds_no_thread_meanwhile(
    opened: tuple[LibvirtBridge, Events],
) -> None:
    bridge, _ = opened
    answer = threading.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for _ in range(32):
            tasks.create_task(bridge.until(lambda _: answer.is_set()))
        assert await bridge.call(lambda connection: connection.getHostname())
        answer.set()


async def test_the_event_thread_ends_with_its_last_user() -> None:
    def pumps() -> int:
        return sum(thread.name == "libvirt-events" for thread in threading.enumerate())

    async with LibvirtBridge("test:///default", lambda _: None):
        async with LibvirtBridge("test:///default", lambda _: None):
            assert pumps() == 1
        assert pumps() == 1
    assert pumps() == 0
