# SPDX-License-Identifier: Apache-2.0
"""BuildService over a real socket: requests are taken apart, answers asked for, errors have their status."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from hyper.v1 import build_pb2 as pb
from hyper.v1 import build_pb2_grpc, image_pb2
from hyperd.api.build import BuildServicer
from hyperd.build.ssh import PROGRAM, frame
from hyperd.model.guest import ProcessExit
from hyperd.model.image import Credentials
from tests.fakes.builds import BUILT_ID, DONE, Shop, working
from tests.fakes.memory import tmp_path as tmp_path  # noqa: PLC0414 - a fixture
from tests.fakes.world import World, eventually

OPTIONS = pb.BuildImageRequest(options=pb.BuildOptions(dockerfile=b"FROM far.example/base", tags=["mine"]))
CONTEXT = [
    pb.BuildImageRequest(data=b"the "),
    pb.BuildImageRequest(data=b"context"),
    pb.BuildImageRequest(context_end=pb.ContextEnd()),
]
ANSWER = pb.BuildImageRequest(
    credentials=pb.BuildCredentials(
        reference="far.example/base",
        credentials=image_pb2.RegistryCredentials(username="me", password="secret"),
    )
)


@dataclass
class Api:
    shop: Shop
    stub: Any

    async def build(self, *requests: pb.BuildImageRequest) -> list[pb.BuildImageResponse]:
        call = self.stub.BuildImage(iter_of(requests))
        return [response async for response in call]

    async def refused(self, *requests: pb.BuildImageRequest) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.build(*requests)
        self.shop.require_nothing_left()
        code = caught.value.code()
        assert isinstance(code, grpc.StatusCode)
        return code


def iter_of(requests: tuple[pb.BuildImageRequest, ...]) -> Iterator[pb.BuildImageRequest]:
    yield from requests


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    world = World(tmp_path)
    world.images.publish("far.example/base")
    path = tmp_path / "s"
    async with world.daemon() as fleet, working(world, fleet, tmp_path) as shop:
        server = grpc.aio.server()
        build_pb2_grpc.add_BuildServiceServicer_to_server(BuildServicer(shop.builds), server)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                yield Api(shop, build_pb2_grpc.BuildServiceStub(channel))
        finally:
            await server.stop(0)


async def test_a_build_from_its_options_to_its_image(api: Api):
    async def requests() -> AsyncIterator[pb.BuildImageRequest]:
        yield OPTIONS
        for request in CONTEXT:
            yield request
        await was_asked.wait()
        yield ANSWER

    was_asked = asyncio.Event()
    wanted: list[str] = []
    call = api.stub.BuildImage(requests())
    responses = []
    async for response in call:
        responses.append(response)
        if response.credentials_wanted:
            wanted.append(response.credentials_wanted)
            was_asked.set()
    assert wanted == ["far.example/base"]
    assert api.shop.world.images.credentials == [Credentials("me", "secret")]
    assert responses[-1].image == pb.BuiltImage(id=BUILT_ID, tags=["docker.io/library/mine:latest"])
    assert any(response.layer.digest for response in responses)
    api.shop.require_nothing_left()


async def test_a_failure_is_the_last_response(api: Api):
    api.shop.script("buildah", ProcessExit(7), b"oh dear")
    scratch = pb.BuildImageRequest(options=pb.BuildOptions(dockerfile=b"FROM scratch"))
    responses = await api.build(scratch, *CONTEXT)
    assert b"".join(response.output for response in responses) == b"oh dear"
    assert responses[-1].failure.code == 7


@pytest.mark.parametrize(
    "requests",
    [
        (),
        (CONTEXT[0],),
        (OPTIONS, OPTIONS),
        (OPTIONS, ANSWER),
        (OPTIONS, pb.BuildImageRequest(data=bytes((1 << 20) + 1))),
        (pb.BuildImageRequest(options=pb.BuildOptions(dockerfile=bytes((1 << 20) + 1))),),
        (pb.BuildImageRequest(options=pb.BuildOptions(network="mine")),),
        (pb.BuildImageRequest(options=pb.BuildOptions(platform="linux")),),
    ],
)
async def test_requests_that_make_no_sense_are_refused(api: Api, requests: tuple[pb.BuildImageRequest, ...]):
    assert await api.refused(*requests) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_caller_who_never_answers_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hyperd.api.build.ANSWER_TIMEOUT_S", 0.05)
    assert await api.refused(OPTIONS, *CONTEXT) is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_caller_who_stops_sending_gives_the_turn_back(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hyperd.api.build.STALL_TIMEOUT_S", 0.05)

    async def requests() -> AsyncIterator[pb.BuildImageRequest]:
        yield OPTIONS
        yield CONTEXT[0]
        await asyncio.Event().wait()

    call = api.stub.BuildImage(requests())
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing has come" in await call.details()
    api.shop.require_nothing_left()


async def test_a_caller_who_does_not_read_gives_the_turn_back(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hyperd.api.uploads.LISTENS_TIMEOUT_S", 0.05)
    api.shop.script("buildah", None, *[bytes(1 << 20)] * 64)  # more than gRPC holds for him
    scratch = pb.BuildImageRequest(options=pb.BuildOptions(dockerfile=b"FROM scratch"))
    call = api.stub.BuildImage(iter_of((scratch, *CONTEXT)))
    await eventually(lambda: api.shop.running("buildah"))
    await eventually(lambda: not api.shop.fleet.views())
    api.shop.require_nothing_left()
    call.cancel()


async def test_a_step_asks_the_callers_agent_while_output_comes(api: Api):
    async def requests() -> AsyncIterator[pb.BuildImageRequest]:
        yield pb.BuildImageRequest(options=pb.BuildOptions(dockerfile=b"FROM scratch", ssh=["mine"]))
        for request in CONTEXT:
            yield request
        while True:
            yield await answers.get()

    answers: asyncio.Queue[pb.BuildImageRequest] = asyncio.Queue()
    shop, heard = api.shop, []
    shop.script(PROGRAM, None)
    shop.script("buildah", None)
    call = api.stub.BuildImage(requests())

    async def listen() -> None:
        async for response in call:
            heard.append(response)
            if response.ssh_agent.message:
                answer = pb.SshAgentMessage(id="mine", connection=3, message=b"answer")
                await answers.put(pb.BuildImageRequest(ssh_agent=answer))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listen())
        await eventually(lambda: shop.running(PROGRAM))
        (relay,) = shop.running(PROGRAM)
        relay.emit(frame(0, 0, b""))
        await eventually(lambda: shop.running("buildah"))
        (engine,) = shop.running("buildah")
        engine.emit(b"STEP 1\n" * 1000)
        relay.emit(frame(0, 3, b"request"))
        await eventually(lambda: bytes(relay.received) == frame(0, 3, b"answer"))
        shop.script("buildah")  # what takes the image out
        engine.finish(DONE)
    asked = [response.ssh_agent for response in heard if response.HasField("ssh_agent")]
    assert asked == [pb.SshAgentMessage(id="mine", connection=3, message=b"request")]
    assert heard[-1].image.id == BUILT_ID
    shop.require_nothing_left()


async def test_an_agent_that_does_not_answer_is_one_without_an_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hyperd.api.build.AGENT_TIMEOUT_S", 0.05)
    api.shop.script(PROGRAM, None)
    api.shop.script("buildah", None)
    options = pb.BuildImageRequest(options=pb.BuildOptions(dockerfile=b"FROM scratch", ssh=["mine"]))
    call = api.stub.BuildImage(iter_of((options, *CONTEXT)))
    await eventually(lambda: api.shop.running(PROGRAM))
    (relay,) = api.shop.running(PROGRAM)
    relay.emit(frame(0, 0, b"") + frame(0, 3, b"request"))
    await eventually(lambda: bytes(relay.received) == frame(0, 3, b""))
    call.cancel()
    await eventually(lambda: not api.shop.fleet.views())
    api.shop.require_nothing_left()


async def test_a_caller_who_reads_next_to_nothing_gives_the_turn_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    """Each message within its time, all of them together for ever."""
    loop = asyncio.get_running_loop()
    clock, passed = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + passed)
    api.shop.script("buildah", None, *[bytes(1 << 20)] * 64)
    scratch = pb.BuildImageRequest(options=pb.BuildOptions(dockerfile=b"FROM scratch"))
    call = api.stub.BuildImage(iter_of((scratch, *CONTEXT)))
    await eventually(lambda: api.shop.running("buildah"))

    async def read_slowly() -> None:
        nonlocal passed
        while True:
            passed += 100.0
            assert await call.read() is not grpc.aio.EOF

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_slowly()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "is read more slowly" in str(caught.value.details())
    api.shop.require_nothing_left()
