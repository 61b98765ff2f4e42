# SPDX-License-Identifier: Apache-2.0
"""What a hyperd finds of an earlier one: taken over, brought to rest, or removed."""

import asyncio
from datetime import UTC, datetime

import pytest

from hyperd.errors import (
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
)
from hyperd.model.container import ContainerState, ExecSpec, Exit, ExitReason
from hyperd.model.guest import FIRST_PROCESS, ProcessExit
from hyperd.model.vm import SandboxId, VmStatus
from hyperd.sandbox import SandboxHandle, machine
from hyperd.sandbox.execs import STOPPED_BY_FORCE
from hyperd.sandbox.machine import RunFacts
from tests.fakes.world import World, created, eventually, started

NOW = datetime(2026, 1, 1, tzinfo=UTC)


FACTS = RunFacts(NOW, 4242, 17, "tcg", "6.12", 90, None)


async def test_a_killed_hyperd_finds_its_running_container_again(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet, name="web")
        exec_ = await handle.exec(ExecSpec(("tail",)))
        world.process(handle).emit(b"before ")
        await eventually(lambda: handle.journal.end_offset == 7)
        facts = handle.view()
    agent, process = world.agent(handle), world.process(handle)
    process.emit(b"between ")
    orphan = next(iter(agent.containers.values())).processes
    orphan[next(key for key in orphan if key != FIRST_PROCESS)].emit(b"o" * 1_000_000)
    async with world.daemon() as fleet:
        handle = fleet.get("web")
        assert handle.view().state is ContainerState.RUNNING
        assert handle.view().vm_pid == facts.vm_pid
        session = await handle.exec(ExecSpec(("ls",)))
        await session.aclose()
        process.emit(b"after")
        await eventually(lambda: handle.journal.end_offset == 20)
        assert b"".join([entry.data async for entry in handle.journal.read()]) == b"before between after"
        # what was exec'd by the earlier hyperd is not held up by its unread output
        orphaned = orphan[exec_.exec_id]  # type: ignore[index]
        await eventually(lambda: orphaned.start_offset == 1_000_000)
        assert dict(world.ledger.admission.held)[handle.record.sandbox_id].memory_mib == 256
        await handle.stop()
        assert handle.view().exit == Exit(143, ExitReason.STOPPED, signal=15)
    world.require_nothing_left_of(handle)


async def test_an_end_while_hyperd_was_away_is_told_with_its_status(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet, name="web")
    world.process(handle).emit(b"last words")
    world.process(handle).finish(ProcessExit(7))
    async with world.daemon() as fleet:
        handle = fleet.get("web")
        async with asyncio.timeout(5):
            assert await handle.wait_ended() == Exit(7, ExitReason.EXITED)
        assert [entry.data async for entry in handle.journal.read()] == [b"last words"]


async def test_a_vm_that_went_while_hyperd_was_away_is_lost(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet, name="web")
    world.hypervisor.lose(handle.record.sandbox_id)
    async with world.daemon() as fleet:
        handle = fleet.get("web")
        async with asyncio.timeout(5):
            assert (await handle.wait_ended()).reason is ExitReason.VM_LOST
        world.require_nothing_left_of(handle)
        await handle.start()


async def test_an_agent_that_is_late_for_a_new_hyperd_keeps_its_vm(world: World) -> None:
    async with world.daemon() as fleet:
        pid = (await started(fleet, name="web")).view().vm_pid
    world.dialer.fail_connects = [TimeoutExpiredError("no agent answered within 10 s")] * 3
    world.dialer.gate.clear()
    async with world.daemon() as fleet:
        handle = fleet.get("web")
        world.dialer.gate.set()
        await eventually(lambda: handle.view().trouble)
        assert handle.view().state is ContainerState.RUNNING
        session = await handle.exec(ExecSpec(("ls",)))  # waits until it is reached
        await session.aclose()
        assert not world.dialer.fail_connects
        assert (handle.view().vm_pid, handle.view().trouble) == (pid, "")
        assert not world.hypervisor.destroyed


async def test_an_agent_of_another_protocol_keeps_its_vm_and_says_so(world: World) -> None:
    async with world.daemon() as fleet:
        await started(fleet, name="web")
    world.dialer.fail_connects = [UnsupportedError("speaks protocol 1, this hyperd speaks 2")] * 9
    async with world.daemon() as fleet:
        handle = fleet.get("web")
        with pytest.raises(UnsupportedError, match="protocol 1"):
            await handle.exec(ExecSpec(("ls",)))
        assert handle.view().state is ContainerState.RUNNING
        assert "protocol 1" in handle.view().trouble
        assert not world.hypervisor.destroyed
        async with asyncio.timeout(5):
            await handle.stop(timeout_s=0)
        assert handle.view().exit == STOPPED_BY_FORCE
        world.require_nothing_left_of(handle)


@pytest.mark.parametrize("ask", ["stop", "remove", "nothing"])
async def test_a_vm_whose_agent_is_not_reached_ends_when_asked_or_by_itself(world: World, ask: str) -> None:
    async with world.daemon() as fleet:
        await started(fleet, name="web")
    world.dialer.fail_connects = [UnavailableError("refused")] * 99
    async with world.daemon() as fleet, asyncio.timeout(5):
        handle = fleet.get("web")
        await eventually(lambda: handle.view().trouble)
        if ask == "stop":
            await handle.stop(timeout_s=0)
        elif ask == "remove":
            await handle.remove(force=True)
        else:
            del world.hypervisor.running[handle.record.sandbox_id]  # and no event of it
            assert (await handle.wait_ended()).reason is ExitReason.VM_LOST
        world.require_nothing_left_of(handle)


async def test_a_hyperd_that_ends_while_a_container_goes_down_leaves_that_to_the_next(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet, name="web")
        agent = world.agent(handle)
        gate = agent.hold("shutdown")
        world.process(handle).emit(b"last words")
        world.process(handle).finish(ProcessExit(7))
        await agent.wait_called("shutdown")
    assert handle.record.sandbox_id in world.hypervisor.running
    assert not world.hypervisor.destroyed
    gate.set()
    async with world.daemon() as fleet, asyncio.timeout(5):
        handle = fleet.get("web")
        assert await handle.wait_ended() == Exit(7, ExitReason.EXITED)
        assert agent.calls.count("shutdown") == 2  # synced before it was destroyed
        assert [entry.data async for entry in handle.journal.read()] == [b"last words"]
        world.require_nothing_left_of(handle)


async def test_output_of_a_container_that_was_going_down_is_still_read(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet, name="web")
        facts = machine.RunFacts(NOW, handle.view().vm_pid, 17, "tcg", "6.12", 90, handle.view().attachment)
    async with world.stored() as records:
        await records.save_state(handle.record.sandbox_id, machine.Stopping(facts, KNOWN_EXIT), 9)
    process = world.process(handle)
    process.emit(b"last words")
    process.finish(ProcessExit(7))
    async with world.daemon() as fleet, asyncio.timeout(5):
        handle = fleet.get("web")
        assert await handle.wait_ended() == KNOWN_EXIT
        assert [entry.data async for entry in handle.journal.read()] == [b"last words"]
        assert "shutdown" in world.agent(handle).calls


@pytest.mark.parametrize("ask", ["stop", "remove", "kill"])
async def test_requests_during_the_adoption_are_answered(world: World, ask: str) -> None:
    async with world.daemon() as fleet:
        await started(fleet, name="web")
    world.dialer.gate.clear()
    async with world.daemon() as fleet, asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        handle = fleet.get("web")
        work = {
            "stop": handle.stop,
            "remove": lambda: handle.remove(force=True),
            "kill": lambda: handle.kill(15),
        }
        asked = tasks.create_task(work[ask]())
        for _ in range(20):
            await asyncio.sleep(0)
        world.dialer.gate.set()
        await asked
        if ask == "remove":
            assert fleet.list_views((), everything=True) == []
        else:
            assert (await handle.wait_ended()).signal == 15
        world.require_nothing_left_of(handle)


async def test_a_vm_that_was_going_down_ends_even_when_nobody_answers_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.beginning.FINISH_TIMEOUT_S", 0.02)
    async with world.daemon() as fleet:
        handle = await started(fleet, name="web")
        facts = machine.RunFacts(NOW, handle.view().vm_pid, 17, "tcg", "6.12", 90, handle.view().attachment)
    async with world.stored() as records:
        await records.save_state(handle.record.sandbox_id, machine.Stopping(facts, KNOWN_EXIT), 9)
    world.dialer.fail_connects = [UnavailableError("refused")] * 99
    async with world.daemon() as fleet, asyncio.timeout(5):
        assert await fleet.get("web").wait_ended() == KNOWN_EXIT
        world.require_nothing_left_of(handle)


async def record_of(world: World, state: machine.State, **fields: object) -> SandboxHandle:
    """A record as an earlier hyperd left it."""
    async with world.daemon() as fleet:
        handle = await created(fleet, name="web", **fields)
        await world.records.save_state(handle.record.sandbox_id, state, 5)
    return handle


KNOWN_EXIT = Exit(7, ExitReason.EXITED)


@pytest.mark.parametrize(
    ("recorded", "expected", "reason"),
    [
        (machine.Created(), ContainerState.CREATED, None),
        (machine.Starting(NOW), ContainerState.FAILED, ExitReason.START_FAILED),
        (machine.Running(FACTS), ContainerState.FAILED, ExitReason.VM_LOST),
        (machine.Stopping(FACTS), ContainerState.FAILED, ExitReason.VM_LOST),
        (machine.Stopping(FACTS, KNOWN_EXIT), ContainerState.EXITED, ExitReason.EXITED),
        (machine.Exited(KNOWN_EXIT, NOW, NOW), ContainerState.EXITED, ExitReason.EXITED),
        (machine.Failed(KNOWN_EXIT, None, NOW), ContainerState.FAILED, ExitReason.EXITED),
    ],
)
@pytest.mark.parametrize("vm", [False, True])
async def test_each_recorded_state_is_brought_to_rest(
    world: World, recorded: machine.State, expected: ContainerState, reason: ExitReason | None, *, vm: bool
) -> None:
    handle = await record_of(world, recorded)
    sandbox_id = handle.record.sandbox_id
    if vm and not isinstance(recorded, machine.Running) and recorded != machine.Stopping(FACTS):
        world.hypervisor.running[sandbox_id] = VmStatus(sandbox_id, 4242)
    async with world.daemon() as fleet:
        await eventually(lambda: fleet.get("web").view().state is expected)
        await eventually(lambda: sandbox_id not in world.hypervisor.running)
        exit_ = fleet.get("web").view().exit
        assert (exit_.reason if exit_ else None) is reason
        await fleet.get("web").start()


async def test_a_removal_that_was_cut_short_is_finished(world: World) -> None:
    await record_of(world, machine.Removing())
    async with world.daemon() as fleet:
        await eventually(lambda: not fleet.list_views((), everything=True))


async def test_an_ended_container_that_should_have_been_removed_is(world: World) -> None:
    await record_of(world, machine.Exited(KNOWN_EXIT, NOW, NOW), auto_remove=True)
    async with world.daemon() as fleet:
        await eventually(lambda: not fleet.list_views((), everything=True))


async def test_what_no_record_knows_is_removed(world: World) -> None:
    vm, disk, lease = (SandboxId(digit * 64) for digit in "abc")
    world.hypervisor.running[vm] = VmStatus(vm, 1)
    await world.storage.create_writable(disk)
    await world.network.attach(lease)
    world.network.fail_next_release = UnavailableError(
        "netlink is busy"
    )  # one that fails does not stop the others
    async with world.daemon():
        assert not world.hypervisor.running
    async with world.daemon():
        assert not world.storage.disks
        assert not world.network.leases


async def test_a_record_that_cannot_be_read_is_set_aside_and_stops_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.daemon() as fleet:
        odd = await started(fleet, name="odd")
        await started(fleet, name="web")
        spoil = "UPDATE sandbox SET spec = '[1]' WHERE name = 'odd'"
        await world.records._database.transaction(lambda connection: connection.execute(spoil).rowcount)
    async with world.daemon() as fleet:
        await (await fleet.get("web").exec(ExecSpec(("ls",)))).aclose()
        handle = fleet.get("odd")
        assert odd.record.sandbox_id in caplog.text or any(
            vars(record).get("id") == odd.record.sandbox_id for record in caplog.records
        )
        assert handle.view().state is ContainerState.FAILED
        assert "cannot be read" in (await handle.wait_ended()).message
        with pytest.raises(UnavailableError, match="cannot be read"):
            await handle.start()
        for _ in range(2):
            await fleet.reconcile()
        assert odd.record.sandbox_id in world.hypervisor.running  # not ours to end
        await handle.remove(force=False)
        world.require_nothing_left_of(odd)
        assert [view.record.name for view in fleet.list_views((), everything=True)] == ["web"]
