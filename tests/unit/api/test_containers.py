# SPDX-License-Identifier: Apache-2.0
"""Every call of ContainerService, and how each kind of error reaches the caller."""

import asyncio
import logging
import time
from typing import Any

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import system_pb2
from hyperd.api import logs
from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    ExistsError,
    HyperError,
    ImageNotFoundError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.guest import ProcessExit, Stream
from hyperd.sandbox import LogEntry
from hyperd.sandbox.specification import MAX_SPEC_BYTES
from tests.fakes.guest_process import Script
from tests.fakes.world import eventually
from tests.unit.api.conftest import Api

DEADLINE_S = 10


async def create(api: Api, *args: str, **fields: object) -> str:
    spec = pb.ContainerSpec(image="alpine", args=args or ("sleep",), **fields)  # type: ignore[arg-type]
    response = await api.containers.CreateContainer(pb.CreateContainerRequest(spec=spec))
    return str(response.container_id)


def detail_of(error: grpc.aio.AioRpcError) -> system_pb2.ErrorDetail:
    raw = dict(error.trailing_metadata() or ())["hyper-error-bin"]
    return system_pb2.ErrorDetail.FromString(raw)


async def test_a_list_of_none_is_one_message(api: Api) -> None:
    """An older `hyper` waits for one."""
    parts = api.containers.ListContainers(pb.ListContainersRequest(), timeout=DEADLINE_S)
    assert [list(part.containers) async for part in parts] == [[]]


async def listed(api: Api, **fields: Any) -> list[pb.Container]:
    parts = api.containers.ListContainers(pb.ListContainersRequest(**fields))
    return [container async for part in parts for container in part.containers]


async def test_the_life_of_a_container_call_by_call(api: Api) -> None:
    calls = api.containers
    container = await create(api, name="web")
    shown = (await calls.StartContainer(pb.StartContainerRequest(container="web"))).container
    assert shown.state == pb.CONTAINER_STATE_RUNNING
    assert shown.accelerator == "tcg"
    assert 0 not in (shown.vm_pid, shown.guest_pid)
    assert shown.networks[0].address == "10.99.0.2"
    assert [item.id for item in await listed(api)] == [container]
    await calls.KillContainer(pb.KillContainerRequest(container="web", signal="HUP"))
    exit_ = (await calls.WaitContainer(pb.WaitContainerRequest(container="web"))).exit
    assert (exit_.code, exit_.reason) == (129, pb.EXIT_REASON_STOPPED)
    stopped = await calls.StopContainer(pb.StopContainerRequest(container="web", timeout_s=0, signal="INT"))
    assert stopped.container.state == pb.CONTAINER_STATE_EXITED
    inspected = (await calls.InspectContainer(pb.InspectContainerRequest(container="web"))).container
    assert inspected == stopped.container
    assert inspected.finished_at.seconds > 0
    removed = await calls.RemoveContainer(pb.RemoveContainerRequest(container=container[:12]))
    assert removed.container_id == container
    assert not await listed(api, all=True)


@pytest.mark.parametrize(
    ("call", "request_", "code"),
    [
        ("InspectContainer", pb.InspectContainerRequest(container="nope"), "NOT_FOUND"),
        ("KillContainer", pb.KillContainerRequest(container="web"), "FAILED_PRECONDITION"),
        ("KillContainer", pb.KillContainerRequest(container="web", signal="NOPE"), "INVALID_ARGUMENT"),
        ("CreateContainer", pb.CreateContainerRequest(), "INVALID_ARGUMENT"),
        ("CreateContainer", pb.CreateContainerRequest(spec=pb.ContainerSpec(image="no")), "NOT_FOUND"),
        (
            "CreateContainer",
            pb.CreateContainerRequest(spec=pb.ContainerSpec(image="alpine", name="web")),
            "ALREADY_EXISTS",
        ),
        (
            "CreateContainer",
            pb.CreateContainerRequest(spec=pb.ContainerSpec(image="alpine", network="host")),
            "UNIMPLEMENTED",
        ),
        ("SignalExec", pb.SignalExecRequest(container="web", exec_id="e"), "FAILED_PRECONDITION"),
    ],
)
async def test_a_request_that_fails_says_what_on_what_and_what_to_do(
    api: Api, call: str, request_, code: str
) -> None:
    await create(api, name="web")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(api.containers, call)(request_)
    assert caught.value.code().name == code
    assert detail_of(caught.value).brief
    assert detail_of(caught.value).bug_id == ""


@pytest.mark.parametrize(
    "kind",
    [InvalidError, NotFoundError, ImageNotFoundError, ExistsError, WrongStateError, ExhaustedError,
     TimeoutExpiredError, UnavailableError, DeniedError, UnsupportedError],
)  # fmt: skip
async def test_each_error_has_its_status_and_its_detail(api: Api, kind: type[HyperError]) -> None:
    container = await create(api)
    api.world.hypervisor.fail_next_start = kind("broke", subject="it", evidence="seen", hint="do")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.containers.StartContainer(pb.StartContainerRequest(container=container))
    assert caught.value.code().name == kind.code
    detail = detail_of(caught.value)
    assert (detail.brief, detail.subject, detail.hint, detail.reason) == ("broke", "it", "do", kind.reason)
    assert caught.value.details() == "it: broke"


async def test_an_error_of_any_size_in_any_script_reaches_the_caller(api: Api) -> None:
    container = await create(api)
    text = "\N{SNOWMAN}\n" * 100_000
    api.world.hypervisor.fail_next_start = UnavailableError(
        text, subject=text, evidence=text + "end", hint=text
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.containers.StartContainer(pb.StartContainerRequest(container=container))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert detail_of(caught.value).evidence.endswith("end")


async def test_a_bug_is_internal_and_its_id_stands_in_the_log(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(reference: str) -> None:
        raise ZeroDivisionError("secret detail")

    api.world.images.get = buggy  # type: ignore[method-assign,assignment]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(api)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    bug_id = detail_of(caught.value).bug_id
    assert [vars(record)["bug_id"] for record in caplog.records if record.levelno == logging.ERROR] == [
        bug_id
    ]
    assert "secret detail" not in str(caught.value)


async def test_a_bug_in_a_start_has_one_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    container = await create(api)
    api.world.hypervisor.fail_next_start = ZeroDivisionError("a bug")  # type: ignore[assignment]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.containers.StartContainer(pb.StartContainerRequest(container=container))
    detail = detail_of(caught.value)
    assert f"bug_id={detail.bug_id} " in detail.brief
    assert {vars(record)["bug_id"] for record in caplog.records if record.message == "bug"} == {detail.bug_id}


async def test_hanging_up_in_a_start_does_not_stop_it(api: Api) -> None:
    container = await create(api)
    api.world.hypervisor.gate.clear()
    call = api.containers.StartContainer(pb.StartContainerRequest(container=container))
    await eventually(lambda: api.world.hypervisor.definitions)
    call.cancel()
    api.world.hypervisor.gate.set()
    await eventually(lambda: api.fleet.get(container).view().state == "running")


async def logs_of(api: Api, container: str, **fields: object) -> bytes:
    request = pb.ReadLogsRequest(container=container, **fields)  # type: ignore[arg-type]
    return b"".join([entry.data async for entry in api.containers.ReadLogs(request, timeout=DEADLINE_S)])


async def test_logs_whole_last_lines_and_none(api: Api) -> None:
    lines = [b"1\n2\n", b"3", b"\n4\n", b"5"]
    api.world.script("echo", Script([(Stream.STDOUT, line) for line in lines], ProcessExit(0)))
    container = await create(api, "echo")
    assert await logs_of(api, container, follow=True) == b""
    await api.containers.StartContainer(pb.StartContainerRequest(container=container))
    await api.containers.WaitContainer(pb.WaitContainerRequest(container=container))
    assert await logs_of(api, container) == b"1\n2\n3\n4\n5"
    for count, expected in ((0, b""), (1, b"5"), (2, b"4\n5"), (3, b"3\n4\n5"), (9, b"1\n2\n3\n4\n5")):
        assert await logs_of(api, container, tail_lines=count) == expected
    past, future = (pb.ReadLogsRequest() for _ in range(2))
    past.until.FromNanoseconds(time.time_ns() - 3600 * 10**9)
    future.since.FromNanoseconds(time.time_ns() + 3600 * 10**9)
    assert await logs_of(api, container, until=past.until) == b""
    assert await logs_of(api, container, since=future.since, follow=True) == b""
    assert await logs_of(api, container, since=past.until, until=future.since) == b"1\n2\n3\n4\n5"


async def test_logs_that_are_followed_say_that_it_was_put_to_sleep(api: Api) -> None:
    container = await create(api)
    await api.containers.StartContainer(pb.StartContainerRequest(container=container))
    api.world.process(api.fleet.get(container)).emit(b"1\n")
    call = api.containers.ReadLogs(pb.ReadLogsRequest(container=container, follow=True))
    async with asyncio.timeout(DEADLINE_S):
        assert (await call.read()).data == b"1\n"
        await api.fleet.get(container).hibernate()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "was put to sleep" in str(caught.value.details())
    # One that was asleep before has nothing to say.
    assert await logs_of(api, container, follow=True) == b"1\n"


async def test_logs_that_are_followed_go_on_after_a_rollback(api: Api) -> None:
    container = await create(api)
    await api.containers.StartContainer(pb.StartContainerRequest(container=container))
    handle = api.fleet.get(container)
    await handle.snapshot("s")
    api.world.process(handle).emit(b"1\n")
    call = api.containers.ReadLogs(pb.ReadLogsRequest(container=container, follow=True))
    async with asyncio.timeout(DEADLINE_S):
        assert (await call.read()).data == b"1\n"
        await api.fleet.roll_back(container, "s")
        process = api.world.process(handle)
        process.emit(b"2\n")
        assert (await call.read()).data == b"2\n"
        process.finish(ProcessExit(0))
        assert await call.read() is grpc.aio.EOF


async def test_logs_follow_until_the_end_or_until_the_moment_given(api: Api) -> None:
    container = await create(api)
    await api.containers.StartContainer(pb.StartContainerRequest(container=container))
    process = api.world.process(api.fleet.get(container))
    process.emit(b"old\n")
    await eventually(lambda: api.fleet.get(container).journal.end_offset == 4)
    soon = pb.ReadLogsRequest()
    soon.until.FromNanoseconds(time.time_ns() + 50_000_000)
    assert await logs_of(api, container, follow=True, until=soon.until) == b"old\n"
    call = api.containers.ReadLogs(pb.ReadLogsRequest(container=container, follow=True, tail_lines=0))
    reading = asyncio.ensure_future(call.read())
    gone = api.containers.ReadLogs(pb.ReadLogsRequest(container=container, follow=True))
    await gone.read()
    gone.cancel()  # one who hangs up disturbs nobody
    process.emit(b"new\n")
    async with asyncio.timeout(DEADLINE_S):
        first = await reading
        if first.data == b"old\n":  # the call had come after what was written
            first = await call.read()
        assert first.data == b"new\n"
        process.finish(ProcessExit(0))
        assert await call.read() is grpc.aio.EOF


async def test_a_line_that_is_being_written_when_the_moment_comes_is_written(api: Api) -> None:
    handle = api.fleet.get(await create(api))
    await handle.start()
    api.world.process(handle).emit(b"line\n")
    await eventually(lambda: handle.journal.end_offset == 5)
    loop, passed, taken = asyncio.get_running_loop(), asyncio.Event(), []

    async def respond(entry: LogEntry) -> None:
        await passed.wait()
        taken.append(entry.data)

    wanted = logs.Wanted(follow=True, tail_lines=None, since_ns=0, until_ns=time.time_ns() + 200_000_000)
    loop.call_later(0.25, passed.set)
    async with asyncio.timeout(DEADLINE_S):
        await logs.read(handle, wanted, respond)
    assert taken == [b"line\n"]


async def test_a_filter_that_is_none_is_refused(api: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await listed(api, filters=[pb.Filter(key="x", value="y")])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail_of(caught.value).brief


async def test_what_is_too_large_is_refused_and_many_large_ones_are_listed(api: Api) -> None:
    """Together they are more than one message may be."""
    large = {"large": "x" * (MAX_SPEC_BYTES - 1000)}
    names = [f"c{number}" for number in range(20)]
    for name in names:
        await create(api, name=name, labels=large)
    assert [container.name for container in await listed(api, all=True)] == names[::-1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(api, env=["A=" + "x" * MAX_SPEC_BYTES])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1024 KiB are the most" in detail_of(caught.value).brief
    assert len(await listed(api, all=True)) == len(names)
