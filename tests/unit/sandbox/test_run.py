# SPDX-License-Identifier: Apache-2.0
"""One run of a VM: paths, evidence, and files that are in the way."""

from pathlib import Path

import pytest

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError
from hyperd.model.container import ContainerState
from hyperd.sandbox import Fleet
from tests.fakes.world import World, created, eventually, started


async def test_sockets_have_room_in_a_unix_address(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    paths = world.runner.settings.paths(handle.record.sandbox_id)
    assert len(str(paths.control_socket.relative_to(world.root))) < 40


async def test_a_guest_that_does_not_come_up_shows_its_console(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    console = world.runner.settings.paths(handle.record.sandbox_id).console_log
    start = world.hypervisor.start

    async def start_and_panic(definition):
        status = await start(definition)
        console.write_bytes(b"x" * 5000 + b"\n\x1b[31mKernel panic\x07 - no init\n")
        return status

    world.hypervisor.start = start_and_panic  # type: ignore[method-assign]
    world.dialer.fail_next_connect = TimeoutExpiredError("no hello in 5 s")
    with pytest.raises(TimeoutExpiredError, match="did not come up: no hello in 5 s") as caught:
        await handle.start()
    assert caught.value.evidence.endswith("�[31mKernel panic� - no init")
    assert len(caught.value.evidence) < 2100
    assert "hyper doctor" in caught.value.hint


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")


async def test_directories_that_cannot_be_made_are_an_error_and_no_bug(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    put(world.root / "run")
    with pytest.raises(HyperError) as caught:
        await handle.start()
    assert type(caught.value) is not HyperError
    assert handle.view().state is ContainerState.FAILED


async def test_without_a_network_there_is_no_lease_and_no_nic(world: World, fleet: Fleet) -> None:
    handle = await started(fleet, network="none")
    assert world.hypervisor.definitions[-1].nics == ()
    assert not world.network.leases
    assert handle.view().attachment is None


async def test_a_restart_keeps_address_and_disk(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    before = handle.view().attachment
    await handle.stop()
    assert not world.network.taps
    await handle.start()
    assert handle.view().attachment == before


async def test_a_destroy_that_fails_still_ends_the_run_and_is_made_good(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).fail_next("shutdown", UnavailableError("gone"))
    world.hypervisor.fail_next_destroy = UnavailableError("libvirt is busy")
    await handle.stop()
    assert handle.view().state is ContainerState.EXITED
    assert not world.network.taps
    await fleet.reconcile()
    await fleet.reconcile()
    await eventually(lambda: handle.record.sandbox_id not in world.hypervisor.running)
    world.require_nothing_left_of(handle)
