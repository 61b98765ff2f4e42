# SPDX-License-Identifier: Apache-2.0
"""Standard streams over one call: in, out, signals, sizes, hanging up."""

import asyncio
from typing import Any

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyperd.model.guest import ProcessExit, Stream, TerminalSize
from tests.fakes.guest_process import Script
from tests.fakes.hypervisor import qemu_died
from tests.fakes.world import eventually
from tests.unit.api.conftest import Api

DEADLINE_S = 10


class Caller:
    """One session as a client holds it."""

    def __init__(self, call: Any, first: pb.SessionRequest) -> None:
        self.call = call
        self._first = first
        self.out = b""
        self.err = b""

    async def start(self) -> pb.SessionStarted:
        await self.call.write(self._first)
        async with asyncio.timeout(DEADLINE_S):
            response = await self.call.read()
        assert isinstance(response, pb.SessionResponse)
        assert response.HasField("started")
        return response.started

    async def send(self, **kind: Any) -> None:
        await self.call.write(pb.SessionRequest(**kind))

    async def finish(self) -> pb.ExitStatus:
        async with asyncio.timeout(DEADLINE_S):
            last = pb.SessionResponse()
            while (response := await self.call.read()) is not grpc.aio.EOF:
                last = response
                self.out += response.stdout
                self.err += response.stderr
        assert last.HasField("exit")
        return last.exit


def run(api: Api, *args: str, detach: bool = False, **fields: object) -> Caller:
    spec = pb.ContainerSpec(image="alpine", args=args or ("sleep",), **fields)  # type: ignore[arg-type]
    first = pb.SessionRequest(run=pb.RunOptions(spec=spec, detach=detach))
    return Caller(api.containers.RunContainer(), first)


def exec_(api: Api, container: str, *args: str, **fields: object) -> Caller:
    options = pb.ExecOptions(container=container, args=args, **fields)  # type: ignore[arg-type]
    return Caller(api.containers.ExecContainer(), pb.SessionRequest(exec=options))


def attach(api: Api, container: str, **fields: object) -> Caller:
    options = pb.AttachOptions(container=container, **fields)  # type: ignore[arg-type]
    return Caller(api.containers.AttachContainer(), pb.SessionRequest(attach=options))


async def test_run_gives_both_streams_apart_and_the_status(api: Api) -> None:
    api.world.script("echo", Script([(Stream.STDOUT, b"hi"), (Stream.STDERR, b"oh")], ProcessExit(3)))
    caller = run(api, "echo", name="once", auto_remove=True)
    started = await caller.start()
    assert started.name == "once"
    exit_ = await caller.finish()
    assert (caller.out, caller.err, exit_.code) == (b"hi", b"oh", 3)
    await run(api, "echo", name="once").start()  # the name is free


async def test_standard_input_arrives_whole_and_in_order(api: Api) -> None:
    api.world.script("cat", Script(echo=True))
    caller = run(api, "cat", stdin=True)
    await caller.start()
    sent = b"".join(bytes([number]) * 50_000 for number in range(40))

    async def feed() -> None:
        for at in range(0, len(sent), 65536):
            await caller.send(stdin=sent[at : at + 65536])
        await caller.send(close_stdin=pb.CloseStdin())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed())
        exit_ = await caller.finish()
    assert caller.out == sent
    assert exit_.code == 0


async def test_run_detached_answers_and_ends_and_the_container_goes_on(api: Api) -> None:
    caller = run(api, detach=True)
    started = await caller.start()
    assert await caller.call.read() is grpc.aio.EOF
    assert api.fleet.get(started.container_id).view().state == "running"


async def test_hanging_up_never_ends_the_process(api: Api) -> None:
    caller = run(api)
    started = await caller.start()
    caller.call.cancel()
    again = attach(api, started.container_id)
    await again.start()
    handle = api.fleet.get(started.container_id)
    driver = api.fleet._drivers[handle.record.sandbox_id]
    await eventually(lambda: len(driver.pump._subscribers) == 1)  # the first has left
    api.world.process(handle).emit(b"still here")
    api.world.process(handle).finish(ProcessExit(0))
    assert (await again.finish()).code == 0
    assert again.out == b"still here"


async def test_a_start_that_fails_is_the_call_s_error(api: Api) -> None:
    api.world.hypervisor.fail_next_start = qemu_died()
    caller = run(api, auto_remove=True)
    await caller.call.write(caller._first)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await eventually(lambda: not api.fleet.list_views((), everything=True))


async def test_attach_starts_from_the_first_byte(api: Api) -> None:
    api.world.script("echo", Script([(Stream.STDOUT, b"first")], ProcessExit(0)))
    spec = pb.ContainerSpec(image="alpine", args=["echo"])
    created = await api.containers.CreateContainer(pb.CreateContainerRequest(spec=spec))
    for _ in range(2):  # an exited one starts again
        caller = attach(api, created.container_id, start=True)
        await caller.start()
        await caller.finish()
        assert caller.out == b"first"


async def test_exec_with_a_terminal_hears_sizes_and_signals(api: Api) -> None:
    started = await run(api, detach=True).start()
    caller = exec_(
        api, started.container_id, "vi", tty=True, terminal_size=pb.TerminalSize(columns=80, rows=24)
    )
    session = await caller.start()
    assert session.tty
    assert session.exec_id
    container = next(iter(api.world.agent(api.fleet.get(started.container_id)).containers.values()))
    process = container.processes[session.exec_id]  # type: ignore[index]
    await caller.send(resize=pb.TerminalSize(columns=100, rows=99999))
    await caller.send(signal=2)
    assert (await caller.finish()).code == 130
    assert process.plan.terminal_size == TerminalSize(80, 24)
    assert process.sizes == [TerminalSize(100, 0xFFFF)]


async def test_a_signal_overtakes_input_that_nobody_reads(api: Api) -> None:
    started = await run(api, detach=True).start()
    caller = exec_(api, started.container_id, "sleep", stdin=True)
    session = await caller.start()
    container = next(iter(api.world.agent(api.fleet.get(started.container_id)).containers.values()))
    process = container.processes[session.exec_id]  # type: ignore[index]
    process.emit(b"y" * (16 << 20))  # as its output is not read, it reads nothing either
    await caller.send(stdin=b"x" * 1000)
    await caller.send(stdin=b"x" * 1000)
    await caller.send(signal=15)
    await eventually(lambda: process.signals)
    assert (await caller.finish()).code == 143


async def test_a_signal_of_a_call_of_its_own_passes_all_input_that_nobody_reads(api: Api) -> None:
    container = (await run(api, detach=True).start()).container_id
    caller = exec_(api, container, "sleep", stdin=True)
    exec_id = (await caller.start()).exec_id
    (held,) = api.world.agent(api.fleet.get(container)).containers.values()
    process = held.processes[exec_id]  # type: ignore[index]
    process.emit(b"y" * (16 << 20))  # as its output is not read, it reads nothing either
    pouring = asyncio.create_task(_pour(caller))
    for _ in range(200):
        await asyncio.sleep(0)
    request = pb.SignalExecRequest(container=container, exec_id=exec_id, signal="INT")
    await api.containers.SignalExec(request, timeout=DEADLINE_S)
    assert process.signals == [2]
    pouring.cancel()
    caller.call.cancel()
    driver = api.fleet._drivers[api.fleet.get(container).record.sandbox_id]
    await eventually(lambda: driver.tenure is not None and not driver.tenure.execs.tasks)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.containers.SignalExec(request, timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def _pour(caller: Caller) -> None:
    while True:
        await caller.send(stdin=b"x" * 65536)


async def test_exec_detached_runs_on(api: Api) -> None:
    started = await run(api, detach=True).start()
    caller = exec_(api, started.container_id, "job", detach=True)
    session = await caller.start()
    assert await caller.call.read() is grpc.aio.EOF
    container = next(iter(api.world.agent(api.fleet.get(started.container_id)).containers.values()))
    assert container.processes[session.exec_id].exit is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (pb.SessionRequest(stdin=b"x"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SessionRequest(exec=pb.ExecOptions(container="nope")), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SessionRequest(attach=pb.AttachOptions(container="nope")), grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_wrong_beginning_is_refused(
    api: Api, first: pb.SessionRequest, code: grpc.StatusCode
) -> None:
    call = api.containers.AttachContainer()
    await call.write(first)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is code


async def test_a_call_without_a_word_is_refused(api: Api) -> None:
    call = api.containers.RunContainer()
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("later", [{"run": pb.RunOptions()}, {"stdin": b"x" * ((1 << 20) + 1)}])
async def test_what_cannot_come_later_ends_the_call_and_not_the_process(
    api: Api, later: dict[str, Any]
) -> None:
    caller = run(api, stdin=True)
    started = await caller.start()
    await caller.send(**later)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.finish()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert api.fleet.get(started.container_id).view().state == "running"
