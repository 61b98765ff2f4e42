# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from hyperd.errors import ExistsError, InvalidError, NotFoundError, WrongStateError
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerIdentity,
    GuestContainerState,
    GuestIdentity,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    Stream,
    TerminalSize,
)
from tests.contract.guest.conftest import ABSENT, BOX, CAT, ENV, FLOOD, SLEEP, TRUE, TWO_STREAMS, collect
from tests.fakes.world import eventually

EXEC = ProcessId("exec-1")
RING_BYTES = 256 * 1024


async def test_the_agent_says_who_it_is(site):
    async with site.guest() as guest:
        assert guest.hello.agent_version
        assert guest.hello.kernel_release


async def test_output_comes_by_stream_and_the_exit_status_follows(site):
    async with site.guest() as guest:
        await site.run(guest, TWO_STREAMS)
        assert await collect(guest) == {Stream.STDOUT: b"hi\n", Stream.STDERR: b"oh\n"}
        assert await guest.wait_process(BOX, FIRST_PROCESS) == ProcessExit(3)


async def test_a_container_is_created_running_and_exited_in_turn(site):
    async with site.guest() as guest:
        pid = await guest.create_container(site.container(SLEEP))
        assert pid > 0
        assert [it.state for it in await guest.list_containers()] == [GuestContainerState.CREATED]
        await guest.start_container(BOX)
        assert [it.state for it in await guest.list_containers()] == [GuestContainerState.RUNNING]
        assert await guest.signal(BOX, FIRST_PROCESS, 9)
        await guest.wait_process(BOX, FIRST_PROCESS)
        (status,) = await guest.list_containers()
        assert status.container_id == BOX
        assert status.state is GuestContainerState.EXITED
        assert status.processes[0].exit == ProcessExit(137, signal=9)


async def test_a_killed_process_says_so_and_a_later_signal_is_not_delivered(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        assert await guest.signal(BOX, FIRST_PROCESS, 9)
        assert await guest.wait_process(BOX, FIRST_PROCESS) == ProcessExit(137, signal=9)
        assert not await guest.signal(BOX, FIRST_PROCESS, 9)


async def test_a_missing_executable_is_an_exit_status_with_a_reason(site):
    async with site.guest() as guest:
        await guest.create_container(site.container(ABSENT))
        refused = await guest.start_container(BOX)
        ended = await guest.wait_process(BOX, FIRST_PROCESS)
        assert ended == refused
        assert ended.code == 127
        assert ended.start_error


async def test_what_does_not_exist_is_not_found(site):
    async with site.guest() as guest:
        nobody = ContainerId("0" * 64)
        for call in (
            guest.start_container(nobody),
            guest.signal(nobody, FIRST_PROCESS, 15),
            guest.wait_process(nobody, FIRST_PROCESS),
            guest.stats(nobody),
            anext(aiter(guest.read_output(nobody, FIRST_PROCESS, 0))),
        ):
            with pytest.raises(NotFoundError):
                await call
        await guest.delete_container(nobody)


async def test_an_id_is_taken_and_a_container_starts_only_once(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        with pytest.raises(ExistsError):
            await guest.create_container(site.container(SLEEP))
        with pytest.raises(WrongStateError):
            await guest.start_container(BOX)
        await guest.delete_container(BOX)
        assert await guest.list_containers() == []
        await guest.delete_container(BOX)


async def test_a_process_without_arguments_is_invalid_and_leaves_nothing(site):
    async with site.guest() as guest:
        plan = dataclasses.replace(site.container(SLEEP), process=ProcessPlan((), ENV))
        with pytest.raises(InvalidError):
            await guest.create_container(plan)
        assert await guest.list_containers() == []


async def test_exec_runs_beside_the_first_process_and_is_forgotten(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        await guest.exec_process(BOX, EXEC, ProcessPlan(TWO_STREAMS.args, ENV))
        assert (await collect(guest, EXEC))[Stream.STDOUT] == b"hi\n"
        assert await guest.wait_process(BOX, EXEC) == ProcessExit(3)
        with pytest.raises(ExistsError):
            await guest.exec_process(BOX, EXEC, ProcessPlan(TRUE.args, ENV))
        await guest.forget_process(BOX, EXEC)
        await guest.forget_process(BOX, EXEC)
        with pytest.raises(NotFoundError):
            await guest.wait_process(BOX, EXEC)


async def test_exec_in_a_container_that_has_exited_is_the_wrong_state(site):
    async with site.guest() as guest:
        await site.run(guest, TRUE)
        await guest.wait_process(BOX, FIRST_PROCESS)
        with pytest.raises(WrongStateError):
            await guest.exec_process(BOX, EXEC, ProcessPlan(TRUE.args, ENV))


async def test_ten_megabytes_through_cat_come_back_whole(site):
    data = os.urandom(10_000_000)

    async def feed(guest):
        writer = guest.write_input(BOX, EXEC)
        for at in range(0, len(data), 100_000):
            await writer.write(data[at : at + 100_000])
        await writer.close(eof=True)

    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        await guest.exec_process(BOX, EXEC, ProcessPlan(CAT.args, ENV, stdin=True))
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(feed(guest))
            back = await collect(guest, EXEC)
        assert back[Stream.STDOUT] == data
        assert await guest.wait_process(BOX, EXEC) == ProcessExit(0)


async def test_input_goes_on_in_a_later_call_until_its_end_is_said(site):
    async with site.guest() as guest:
        await site.run(guest, CAT)
        for part in (b"one ", b"two ", b"three"):
            writer = guest.write_input(BOX, FIRST_PROCESS)
            await writer.write(part)
            await writer.close(eof=part == b"three")
        assert (await collect(guest))[Stream.STDOUT] == b"one two three"


async def test_a_process_that_has_gone_takes_no_input(site):
    async with site.guest() as guest:
        await site.run(guest, CAT)
        await guest.signal(BOX, FIRST_PROCESS, 9)
        await guest.wait_process(BOX, FIRST_PROCESS)
        writer = guest.write_input(BOX, FIRST_PROCESS)
        async with asyncio.timeout(10):
            with pytest.raises(WrongStateError):
                await write_forever(writer)
            await writer.close(eof=True)


async def write_forever(writer):
    while True:
        await writer.write(b"x" * 10_000)


async def test_what_is_not_acknowledged_stops_the_process_and_is_kept(site):
    async with site.guest() as guest:
        await site.run(guest, FLOOD)
        received = 0
        async for chunk in guest.read_output(BOX, FIRST_PROCESS, 0):
            received = chunk.end_offset
            if received == RING_BYTES:
                break
        (status,) = await guest.list_containers()
        assert status.processes[0].output_end_offset == RING_BYTES
        first = await anext(aiter(guest.read_output(BOX, FIRST_PROCESS, 1000)))
        assert first.offset == 1000
        with pytest.raises(InvalidError):  # 1000 counts as stored: what was before is gone
            await anext(aiter(guest.read_output(BOX, FIRST_PROCESS, 999)))


async def test_a_terminal_can_be_resized(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        plan = ProcessPlan(CAT.args, ENV, terminal=True, terminal_size=TerminalSize(80, 25), stdin=True)
        await guest.exec_process(BOX, EXEC, plan)
        await guest.resize(BOX, EXEC, TerminalSize(132, 43))


async def test_numbers_about_the_guest_and_its_container(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        assert (await guest.stats()).memory_usage_bytes > 0
        await guest.stats(BOX)


async def test_devices_are_released_before_there_is_a_container_and_the_next_one_runs(site):
    async with site.guest() as guest:
        await guest.release_devices()
        await guest.release_devices()
        await site.run(guest, TWO_STREAMS)
        assert await collect(guest) == {Stream.STDOUT: b"hi\n", Stream.STDERR: b"oh\n"}
        assert await guest.wait_process(BOX, FIRST_PROCESS) == ProcessExit(3)
        with pytest.raises(WrongStateError):
            await guest.release_devices()


def children(site, kind: str) -> list[int]:
    """Of the real agent, by a word of their command lines."""
    found = []
    for thread in Path(f"/proc/{site.pid}/task").glob("*/children"):
        for pid in thread.read_text().split():
            with contextlib.suppress(OSError):  # it has ended
                if kind in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
    return found


@pytest.mark.parametrize("site", ["agent"], indirect=True)
async def test_exec_d_processes_are_born_in_a_nursery_and_without_it_and_in_the_next(site):
    async def execute() -> None:
        await guest.exec_process(BOX, EXEC, ProcessPlan(TWO_STREAMS.args, ENV))
        assert await collect(guest, EXEC) == {Stream.STDOUT: b"hi\n", Stream.STDERR: b"oh\n"}
        assert await guest.wait_process(BOX, EXEC) == ProcessExit(3)
        await guest.forget_process(BOX, EXEC)

    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        assert not children(site, "nursery")
        await execute()
        await eventually(lambda: len(children(site, "nursery")) == 1)
        await execute()
        (nursery,) = children(site, "nursery")
        os.kill(nursery, signal.SIGSTOP)
        os.kill(nursery, signal.SIGKILL)
        await eventually(lambda: not children(site, "nursery"))
        await execute()
        await eventually(lambda: len(children(site, "nursery")) == 1)
        await execute()
        assert len(children(site, "nursery")) == 1


@pytest.mark.parametrize("site", ["agent"], indirect=True)
@pytest.mark.parametrize(
    ("given", "nursery", "seccomp"),
    [
        ({}, "nursery\0", 2),
        ({"user": "1000:1000", "no_new_privileges": True}, "nursery\0", 2),
        ({"capabilities": ("CHOWN", "NET_ADMIN")}, "nursery-plain\0", 2),
        ({"seccomp_unconfined": True}, "nursery-plain\0", 0),
    ],
)
async def test_what_a_nursery_bears_is_confined_as_what_is_executed_anew(site, given, nursery, seccomp):
    same = ("PPid", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "Cap", "NoNewPrivs", "Seccomp")

    async def confinement(process_id: ProcessId) -> list[str]:
        await guest.exec_process(BOX, process_id, ProcessPlan(("cat", "/proc/self/status"), ENV, **given))
        status = (await collect(guest, process_id))[Stream.STDOUT].decode()
        return [line for line in status.splitlines() if line.startswith(same)]

    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        executed = await confinement(EXEC)
        await eventually(lambda: bool(children(site, nursery)))
        nursed = await confinement(ProcessId("exec-2"))
        assert nursed == executed
        assert f"Seccomp:\t{seccomp}" in nursed
        assert "PPid:\t0" in nursed
        assert len(children(site, "nursery")) == 1


@pytest.mark.parametrize("site", ["agent"], indirect=True)
async def test_a_container_is_born_afresh_when_the_one_kept_in_reserve_has_died(site):
    async with site.guest() as guest:
        await guest.release_devices()
        (spare,) = children(site, "spare")
        os.kill(spare, signal.SIGKILL)
        await eventually(lambda: not Path(f"/proc/{spare}").exists())
        await site.run(guest, TWO_STREAMS)
        assert await collect(guest) == {Stream.STDOUT: b"hi\n", Stream.STDERR: b"oh\n"}


async def test_nothing_is_made_in_a_frozen_guest(site):
    async with site.guest() as guest:
        await guest.thaw()
        await guest.freeze()
        await guest.freeze()
        with pytest.raises(WrongStateError):
            await guest.create_container(site.container(SLEEP))
        with pytest.raises(WrongStateError):
            await guest.release_devices()
        await guest.thaw()
        await guest.thaw()
        await site.run(guest, TRUE)
        assert await guest.wait_process(BOX, FIRST_PROCESS) == ProcessExit(0)


async def test_what_is_no_volume_of_the_guest_neither_grows_nor_stands_still(site):
    async with site.guest() as guest:
        with pytest.raises(NotFoundError):
            await guest.grow_volume("volume7", 1 << 30)
        with pytest.raises(NotFoundError):
            await guest.freeze_volume("volume7", 5)
        assert not await guest.thaw_volume("volume7")


async def test_an_identity_for_a_container_that_is_not_there_is_refused(site):
    async with site.guest() as guest:
        stranger = ContainerIdentity(ContainerId("0" * 64), "stranger")
        with pytest.raises(NotFoundError):
            await guest.configure(GuestIdentity("box", b"", containers=(stranger,)))


async def test_a_list_says_what_output_is_still_kept(site):
    async with site.guest() as guest:
        await site.run(guest, TWO_STREAMS)
        await guest.wait_process(BOX, FIRST_PROCESS)
        reader = guest.read_output(BOX, FIRST_PROCESS, 2)
        assert b"".join([chunk.data async for chunk in reader])
        (status,) = await guest.list_containers()
        (process,) = status.processes
        assert (process.output_start_offset, process.output_end_offset) == (2, 6)


async def test_a_rehearsal_leaves_nothing_and_the_next_container_runs(site):
    async with site.guest() as guest:
        await guest.release_devices()
        await site.run(guest, TWO_STREAMS)
        assert await collect(guest) == {Stream.STDOUT: b"hi\n", Stream.STDERR: b"oh\n"}
        await guest.end_rehearsal(BOX)
        assert await guest.list_containers() == []
        if site.is_real:
            assert not Path(site.writable.disk_serial, site.writable.directory).exists()
            assert len(children(site, "spare")) == 1
        await site.run(guest, TWO_STREAMS)
        assert await collect(guest) == {Stream.STDOUT: b"hi\n", Stream.STDERR: b"oh\n"}


async def test_disks_are_released_when_no_container_has_them(site):
    async with site.guest() as guest:
        await guest.release_disks(["absent-0123456789a"])
        with pytest.raises(InvalidError) if site.is_real else contextlib.nullcontext():
            await guest.release_disks(["../vda"])


async def test_a_container_that_shares_anothers_names_sees_what_that_one_writes(site):
    other, nobody = ContainerId("c" * 64), ContainerId("d" * 64)
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        beside = dataclasses.replace(site.container(SLEEP, other), share_names_with=BOX)
        await guest.create_container(beside)
        await guest.start_container(other)
        if site.is_real:  # a fake has no files
            write = ProcessPlan(("sh", "-c", "echo 192.0.2.1 mine >> /etc/hosts"), ENV)
            await guest.exec_process(BOX, EXEC, write)
            assert await guest.wait_process(BOX, EXEC) == ProcessExit(0)
            await guest.exec_process(other, EXEC, ProcessPlan(("cat", "/etc/hosts"), ENV))
            reader = guest.read_output(other, EXEC, 0)
            assert b"".join([chunk.data async for chunk in reader]).endswith(b"192.0.2.1 mine\n")
        with pytest.raises(NotFoundError):
            await guest.create_container(
                dataclasses.replace(beside, container_id=ContainerId("e" * 64), share_names_with=nobody)
            )
        await guest.delete_container(other)


async def test_a_rehearsal_ends_only_where_nothing_else_is(site):
    async with site.guest() as guest:
        with pytest.raises(NotFoundError):
            await guest.end_rehearsal(BOX)
        other = ContainerId("c" * 64)
        for container_id in (BOX, other):
            await guest.create_container(site.container(SLEEP, container_id))
        with pytest.raises(WrongStateError):
            await guest.end_rehearsal(BOX)
        assert len(await guest.list_containers()) == 2
        await guest.delete_container(other)
