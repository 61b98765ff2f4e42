# SPDX-License-Identifier: Apache-2.0
"""A busy host makes starts slow, not wrong."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hyperd.errors import HyperError, TimeoutExpiredError
from hyperd.host.starvation import waited_s
from hyperd.host.workers import Workers
from hyperd.model.container import ContainerState
from hyperd.model.volume import Mount, MountType
from hyperd.sandbox import Fleet, patience
from hyperd.sandbox.definition import SandboxPaths
from hyperd.sandbox.patience import PatientDialer, Turns, parallel_starts
from hyperd.sandbox.rooms import Phases
from tests.fakes.guest import FakeGuest
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.world import World, created, eventually

PATHS = SandboxPaths(Path("/nowhere/run"), Path("/nowhere/state"))


@pytest.fixture
async def files() -> AsyncIterator[Workers]:
    workers = Workers("test", 1)
    yield workers
    workers.close()


@dataclass
class Dialer:
    """Nobody answers, but for the try number ``answers_at``."""

    answers_at: int = 1000
    asked_s: list[float] = field(default_factory=list)

    async def connect(self, control_socket, stream_socket, *, timeout_s, subject):
        self.asked_s.append(timeout_s)
        if len(self.asked_s) == self.answers_at:
            return FakeGuest(FakeAgent(scripts={}))
        raise TimeoutExpiredError(f"no agent answered within {timeout_s:g} s", subject=subject)


def starve(monkeypatch: pytest.MonkeyPatch, *waited: float) -> None:
    left = list(waited)
    monkeypatch.setattr(patience, "waited_s", lambda pid: left.pop(0) if len(left) > 1 else left[0])


async def dial(dialer: Dialer, files: Workers):
    return await PatientDialer(dialer, files).connect(PATHS, vm_pid=1, timeout_s=20.0, subject="box")


async def test_time_without_a_cpu_does_not_count(monkeypatch, files) -> None:
    starve(monkeypatch, 15.0, 28.5)
    dialer = Dialer(answers_at=3)
    assert await dial(dialer, files)
    assert dialer.asked_s == [20.0, 15.0, 13.5]


async def test_a_guest_that_had_its_time_is_given_up(monkeypatch, files) -> None:
    starve(monkeypatch, 0.2)
    dialer = Dialer()
    with pytest.raises(TimeoutExpiredError, match="within 20 s") as raised:
        await dial(dialer, files)
    assert dialer.asked_s == [20.0]
    assert "no CPU" in raised.value.evidence


async def test_nobody_waits_for_ever(monkeypatch, files) -> None:
    starve(monkeypatch, 200.0, 400.0, 600.0, 800.0)
    dialer = Dialer()
    with pytest.raises(TimeoutExpiredError):
        await dial(dialer, files)
    assert dialer.asked_s == [20.0, 200.0, 100.0]


async def test_a_process_that_has_gone_has_not_waited(tmp_path: Path) -> None:
    assert waited_s(1, proc=tmp_path) == 0


async def test_the_thread_that_waited_longest_counts(tmp_path: Path) -> None:
    for thread, text in (("1", "5 2000000000 3"), ("2", "5 3500000000 3"), ("3", "odd")):
        (tmp_path / "1" / "task" / thread).mkdir(parents=True)
        (tmp_path / "1" / "task" / thread / "schedstat").write_text(text)
    assert waited_s(1, proc=tmp_path) == pytest.approx(3.5)


async def test_only_so_many_come_up_at_a_time_and_the_others_say_that_they_waited() -> None:
    turns, inside, most = Turns(2), 0, 0
    every = [Phases() for _ in range(6)]

    async def start(phases: Phases) -> None:
        nonlocal inside, most
        async with turns.take(phases):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(start(phases) for phases in every))
    assert most == 2
    assert ["queue" in phases.in_ms() for phases in every] == [False] * 2 + [True] * 4


def test_two_for_each_cpu_unless_it_is_configured() -> None:
    assert parallel_starts(3) == 3
    assert parallel_starts(0) >= 2


async def test_starts_take_turns_and_one_that_fails_gives_its_turn_back(world: World, fleet: Fleet) -> None:
    world.runner.turns = Turns(1)
    world.dialer.gate.clear()
    first, second = await created(fleet), await created(fleet)
    starts = [asyncio.create_task(first.start())]
    await eventually(lambda: len(world.hypervisor.definitions) == 1)
    starts.append(asyncio.create_task(second.start()))
    await eventually(lambda: world.runner.turns._under_way == 2)
    world.dialer.fail_next_connect = TimeoutExpiredError("no hello")
    world.dialer.gate.set()
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert [isinstance(result, HyperError) for result in results] == [True, False]
    assert len(world.hypervisor.definitions) == 2
    assert second.view().state is ContainerState.RUNNING
    start = second.view().start
    assert start is not None
    assert "queue" in start.phases_ms


async def test_one_whose_volumes_are_being_filled_has_given_its_turn_back(world: World, fleet: Fleet) -> None:
    world.runner.turns = Turns(1)
    filling = await created(fleet, mounts=(Mount(MountType.VOLUME, "/data", "db"),))
    world.hypervisor.held_verbs.add("create_container")
    start = asyncio.create_task(filling.start())
    await eventually(lambda: filling.record.sandbox_id in world.hypervisor.agents)
    await world.agent(filling).wait_called("create_container")
    world.hypervisor.held_verbs.clear()
    async with asyncio.timeout(5):
        await (await created(fleet)).start()
    assert not start.done()
    world.agent(filling).hold("create_container").set()
    await start


async def test_it_is_quiet_when_nobody_comes_up_nor_waits_to() -> None:
    turns = Turns(1)
    assert not await turns.wait_quiet(1000)
    first, second = turns.take(Phases()), turns.take(Phases())
    await first.__aenter__()
    waiting = asyncio.ensure_future(second.__aenter__())
    quiet = asyncio.ensure_future(turns.wait_quiet(0))
    await first.__aexit__(None, None, None)
    await waiting
    assert not quiet.done()
    await second.__aexit__(None, None, None)
    assert await quiet


async def test_who_hangs_gives_its_turn_back_and_gives_it_back_once(monkeypatch) -> None:
    monkeypatch.setattr(patience, "HELD_S", 0.01)
    turns, hanging = Turns(2), asyncio.Event()

    async def hang() -> None:
        async with turns.take(Phases()):
            await hanging.wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(hang())
        await asyncio.sleep(0)
        async with turns.take(Phases()):  # behind all of them
            pass
        hanging.set()
    assert await turns_left(turns) == 2


async def turns_left(turns: Turns) -> int:
    """That can be had at once."""
    async with contextlib.AsyncExitStack() as stack:
        taken = 0
        while not turns._free.locked():
            await stack.enter_async_context(turns.take(Phases()))
            taken += 1
        return taken


async def test_a_guest_whose_disk_takes_for_ever_does_not_stop_other_starts(
    world: World, fleet: Fleet, monkeypatch
) -> None:
    monkeypatch.setattr(patience, "HELD_S", 0.01)
    world.hypervisor.held_verbs.add("create_container")
    held = []
    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):  # as many as come up at a time
            handle = await created(fleet, memory_bytes=64 << 20)
            tasks.create_task(handle.start())
            held.append(handle)
            await eventually(lambda: len(world.hypervisor.agents) == len(held))
        world.hypervisor.held_verbs.clear()
        other = await created(fleet, memory_bytes=64 << 20)
        async with asyncio.timeout(5):
            await other.start()
        for handle in held:
            world.agent(handle).hold("create_container").set()
