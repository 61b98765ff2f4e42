# SPDX-License-Identifier: Apache-2.0
"""The caller's ssh-agents during a build: what is asked and answered, and what a builder may not do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from hyperd.build.ssh import MAX_MESSAGE_BYTES, PROGRAM, Frames, frame
from hyperd.errors import HyperError, UnavailableError
from hyperd.model.build import AgentMessage, BuildFailed, Built
from hyperd.model.guest import ProcessExit, Stream
from tests.fakes.builds import DONE, Shop, working
from tests.fakes.guest_process import FakeProcess
from tests.fakes.memory import tmp_path as tmp_path  # noqa: PLC0414 - a fixture
from tests.fakes.world import World, eventually

IDS = ("default", "other")
READY = frame(0, 0, b"")


@pytest_asyncio.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    world = World(tmp_path)
    async with world.daemon() as fleet, working(world, fleet, tmp_path) as shop:
        shop.script(PROGRAM, None)
        shop.script("buildah", None)
        yield shop


async def relay_of(shop: Shop) -> FakeProcess:
    await eventually(lambda: shop.running(PROGRAM))
    return shop.running(PROGRAM)[0]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2**32 - 1), st.binary(max_size=40))),
    st.integers(1, 30),
)
def test_frames_are_found_however_they_are_cut(sent: list[tuple[int, int, bytes]], size: int):
    data = b"".join(frame(*each) for each in sent)
    frames = Frames(IDS)
    found = [one for at in range(0, len(data), size) for one in frames.take(data[at : at + size])]
    assert found == [AgentMessage(IDS[which], connection, message) for which, connection, message in sent]


@pytest.mark.parametrize("data", [frame(2, 1, b"x"), frame(0, 1, b"")[:8] + b"\xff\xff\xff\xff"])
def test_frames_that_make_no_sense_are_refused_before_they_are_whole(data: bytes):
    with pytest.raises(UnavailableError, match="makes no sense"):
        Frames(IDS).take(data)


async def test_a_step_asks_and_the_engine_waits_for_the_sockets(shop: Shop):
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(shop.build(dockerfile=b"FROM scratch", ssh=IDS))
        relay = await relay_of(shop)
        assert relay.plan.args == (PROGRAM, "/run/hyper-ssh", *IDS)
        assert not shop.running("buildah")
        relay.emit(READY)
        await eventually(lambda: shop.running("buildah"))
        assert "--ssh=other=/run/hyper-ssh/other" in shop.running("buildah")[0].plan.args
        relay.emit(frame(1, 7, b"abc") + frame(0, 8, b"xyz"))
        answers = {frame(1, 7, b"cba"), frame(0, 8, b"zyx")}
        await eventually(lambda: len(relay.received) == sum(map(len, answers)))
        assert {bytes(relay.received[:15]), bytes(relay.received[15:])} == answers
        relay.emit(frame(1, 7, b""))
        await eventually(lambda: AgentMessage("other", 7) in shop.agent_asked)
        (engine,) = shop.running("buildah")
        shop.script("buildah")  # what takes the image out
        engine.finish(DONE)
        assert isinstance(await building, Built)
    shop.require_nothing_left()


async def test_without_ssh_there_is_no_relay(shop: Shop):
    shop.script("buildah", ProcessExit(7))
    assert await shop.build(dockerfile=b"FROM scratch") == BuildFailed(7)
    assert not shop.running(PROGRAM)


@pytest.mark.parametrize(
    "said",
    [
        frame(0, 1, b"x") + frame(0, 1, b"y"),  # a second request before the answer
        b"".join(frame(0, number, b"x") for number in range(1, 66)),
        frame(0, 1, bytes(MAX_MESSAGE_BYTES + 1)),
    ],
)
async def test_a_relay_that_breaks_the_rules_ends_the_build(
    shop: Shop, said: bytes, monkeypatch: pytest.MonkeyPatch
):
    async def never(_: AgentMessage) -> bytes:
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(shop, "ask_agent", never)
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(_outcome(shop, ssh=IDS))
        relay = await relay_of(shop)
        relay.emit(READY)
        await eventually(lambda: shop.running("buildah"))
        relay.emit(said)
    assert isinstance(building.result(), UnavailableError)
    shop.require_nothing_left()


async def test_a_relay_that_ends_is_told_with_what_it_said(shop: Shop):
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(_outcome(shop, ssh=IDS))
        relay = await relay_of(shop)
        relay.emit(b"no such directory\n", Stream.STDERR)
        relay.finish(ProcessExit(2))
    error = building.result()
    assert isinstance(error, UnavailableError)
    assert error.evidence == "no such directory"
    shop.require_nothing_left()


async def _outcome(shop: Shop, **fields: object) -> object:
    try:
        return await shop.build(dockerfile=b"FROM scratch", **fields)
    except HyperError as error:
        return error
