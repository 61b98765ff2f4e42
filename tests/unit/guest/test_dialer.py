# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import gc
import os
import socket
from pathlib import Path

import pytest

from hyperd.errors import TimeoutExpiredError, UnavailableError, UnsupportedError
from hyperd.guest import AgentDialer
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerPlan,
    GuestMount,
    ProcessId,
    ProcessPlan,
    Stream,
)
from tests.fakes.agent import serving
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.guest_process import Script

BOX = ContainerId("c" * 64)


@pytest.fixture
async def peer(tmp_path):
    async with serving(FakeAgent(), tmp_path) as it:
        yield it


async def dialled(peer, timeout_s=5.0):
    return await AgentDialer().connect(
        peer.control.path, peer.stream.path, timeout_s=timeout_s, subject="box"
    )


def open_files():
    """What this process has open now, but not which number each has."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(entry.readlink().name.split(":")[0])
    return sorted(found)


async def running(peer, guest, *args):
    await guest.create_container(
        ContainerPlan(BOX, (), None, readonly_root=False, process=ProcessPlan(args, ()))
    )
    await guest.start_container(BOX)
    return peer.agent.process(BOX)


async def test_hello_comes_from_the_agent(peer):
    guest = await dialled(peer)
    assert guest.hello == peer.agent.hello
    await guest.close()


@pytest.mark.parametrize(("copy_image", "at_least_s"), [(False, 10), (True, 1000)])
async def test_a_container_whose_volumes_are_filled_has_the_time_for_it(peer, copy_image, at_least_s):
    guest = await dialled(peer)
    mount = GuestMount("/data", "block:ext4", "volume0", copy_image=copy_image)
    process = ProcessPlan(("x",), ())
    await guest.create_container(
        ContainerPlan(BOX, (), None, readonly_root=False, process=process, mounts=(mount,))
    )
    assert at_least_s < peer.servicer.create_patience_s < at_least_s * 10
    await guest.close()


async def test_a_guest_that_is_not_up_yet_is_asked_once(tmp_path):
    """QEMU listens long before the guest opens the port; the opening waits in the socket."""
    listeners = []
    for name in ("control", "stream"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        listener.listen(1)
        listener.setblocking(False)
        listeners.append(listener)
    async with asyncio.timeout(10):
        dialling = asyncio.create_task(
            AgentDialer().connect(tmp_path / "control", tmp_path / "stream", timeout_s=0.2, subject="box")
        )
        loop = asyncio.get_running_loop()
        hosts = [(await loop.sock_accept(listener))[0] for listener in listeners]
        with pytest.raises(TimeoutExpiredError, match="no agent answered within"):
            await dialling
        for host in hosts:
            said = b""
            while data := await loop.sock_recv(host, 65536):
                said += data
            assert said.count(b"HYPER1") == 1
            host.close()
    for listener in listeners:
        listener.close()


async def test_no_socket_is_unavailable(tmp_path):
    with pytest.raises(UnavailableError, match="socket cannot be used"):
        await AgentDialer().connect(tmp_path / "none", tmp_path / "none", timeout_s=5, subject="box")


async def test_a_socket_nobody_listens_on_is_unavailable(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(UnavailableError, match="Connection refused"):
        await AgentDialer().connect(tmp_path / "dead", tmp_path / "dead", timeout_s=5, subject="box")


async def test_a_machine_that_dies_before_it_answers_is_unavailable(peer):
    peer.control.is_mute = True
    async with asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(expect_unavailable(dialled(peer)))
        async with asyncio.timeout(5):
            while peer.stream.openings == 0:
                await asyncio.wait([dialling], timeout=0.01)
        peer.control.hang_up()


async def expect_unavailable(awaitable):
    with pytest.raises(UnavailableError):
        await awaitable


@pytest.mark.parametrize(("version", "older"), [(0, "the agent is older"), (2, "hyperd is older")])
async def test_another_protocol_version_says_who_is_older(peer, version, older):
    peer.servicer.protocol_version = version
    with pytest.raises(UnsupportedError, match=older):
        await dialled(peer)


async def test_a_broken_port_ends_every_call_and_the_guest_for_good(peer):
    guest = await dialled(peer)
    await running(peer, guest, "sleep")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(expect_unavailable(guest.wait_process(BOX, FIRST_PROCESS)))
        tasks.create_task(expect_unavailable(anext(aiter(guest.read_output(BOX, FIRST_PROCESS, 0)))))
        await peer.agent.wait_called("wait_process")
        await peer.agent.wait_called("read_output")
        peer.control.hang_up()
        peer.stream.hang_up()
    await expect_unavailable(guest.stats())
    await expect_unavailable(guest.write_input(BOX, FIRST_PROCESS).write(b"x"))
    await guest.close()
    again = await dialled(peer)
    assert await again.signal(BOX, FIRST_PROCESS, 9)
    await again.close()


async def test_closing_ends_the_waits_of_others_as_unavailable_not_as_cancelled(peer):
    guest = await dialled(peer)
    await running(peer, guest, "sleep")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waits = [
            tasks.create_task(expect_unavailable(guest.wait_process(BOX, FIRST_PROCESS))),
            tasks.create_task(expect_unavailable(anext(aiter(guest.read_output(BOX, FIRST_PROCESS, 0))))),
        ]
        await peer.agent.wait_called("wait_process")
        await peer.agent.wait_called("read_output")
        await guest.close()
        await guest.close()
    assert not any(wait.cancelled() for wait in waits)


async def test_a_caller_that_is_cancelled_is_cancelled(peer):
    guest = await dialled(peer)
    await running(peer, guest, "sleep")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await guest.wait_process(BOX, FIRST_PROCESS)
    waiting = asyncio.create_task(guest.wait_process(BOX, FIRST_PROCESS))
    await peer.agent.wait_called("wait_process", times=2)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert (await guest.stats()).pids == 1
    await guest.close()


async def test_a_flag_in_the_middle_ends_the_connection(peer):
    guest = await dialled(peer)
    await running(peer, guest, "sleep")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(expect_unavailable(guest.wait_process(BOX, FIRST_PROCESS)))
        await peer.agent.wait_called("wait_process")
        peer.control.send_raw(b"~")
    await guest.close()


async def test_bytes_of_an_earlier_connection_are_thrown_away(peer):
    for port in (peer.control, peer.stream):
        port.send_raw(b"PRI * HTTP/2.0 }^}] half a frame }")
        port.send_raw(b"~HYPER1" + b"0" * 32 + b"~ an answer to someone else")
    guest = await dialled(peer)
    assert (await guest.stats()).pids == 0
    await guest.close()


async def test_hanging_up_leaves_no_task_and_no_file(peer):
    async def once():
        guest = await dialled(peer)
        peer.agent.containers.clear()
        process = await running(peer, guest, "sleep")
        process.emit(b"some output")
        reader = aiter(guest.read_output(BOX, FIRST_PROCESS, 0))
        await anext(reader)
        await reader.aclose()
        writer = guest.write_input(BOX, FIRST_PROCESS)
        await writer.write(b"some input")
        await writer.close(eof=False)
        await guest.close()

    await once()
    async with asyncio.timeout(10):
        files, tasks = open_files(), len(asyncio.all_tasks())
        for _ in range(5):
            await once()
        gc.collect()
        # grpcio's threads close their ends a moment later.
        while (now := open_files()) > files or len(now) > len(files) or len(asyncio.all_tasks()) > tasks:
            await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0))], timeout=0.05)


async def test_no_relay_directory_stays(peer, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    guest = await dialled(peer)
    assert not [name for name in tmp_path.iterdir() if name.name.startswith("hyper-relay")]
    await guest.close()


async def test_output_flows_without_end_through_bounded_memory(peer):
    peer.agent.scripts["yes"] = Script((Stream.STDOUT, b"y\n" * 32_000) for _ in range(500))
    guest = await dialled(peer)
    await running(peer, guest, "yes")
    total = 0
    reader = guest.read_output(BOX, FIRST_PROCESS, 0)
    async for chunk in reader:
        total += len(chunk.data)
        reader.acknowledge(chunk.end_offset)
        if total == 32_000_000:
            break
    await guest.close()


async def test_a_later_reader_ends_an_earlier_one(peer):
    guest = await dialled(peer)
    await running(peer, guest, "sleep")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(expect_unavailable(anext(aiter(guest.read_output(BOX, FIRST_PROCESS, 0)))))
        await peer.agent.wait_called("read_output")
        second = tasks.create_task(anext(aiter(guest.read_output(BOX, FIRST_PROCESS, 0))))
        await first
        peer.agent.process(BOX).emit(b"for the second")
        assert (await second).data == b"for the second"
    await guest.close()


async def test_cat_of_ten_megabytes_comes_back_whole(peer):
    peer.agent.scripts["cat"] = Script(echo=True)
    guest = await dialled(peer)
    await running(peer, guest, "sh")
    await guest.exec_process(BOX, ProcessId("p"), ProcessPlan(("cat",), (), stdin=True))
    data = os.urandom(10_000_000)

    async def feed():
        writer = guest.write_input(BOX, ProcessId("p"))
        for at in range(0, len(data), 300_000):
            await writer.write(data[at : at + 300_000])
        await writer.close(eof=True)

    back = bytearray()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(feed())
        reader = guest.read_output(BOX, ProcessId("p"), 0)
        async for chunk in reader:
            back += chunk.data
            reader.acknowledge(chunk.end_offset)
    assert back == data
    await guest.close()
