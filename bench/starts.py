# SPDX-License-Identifier: Apache-2.0
"""Starts: cold and from a template, alone, as a whole command, and a hundred."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc.aio

from bench import floor
from bench.api import IMAGE, Api, call, connected
from bench.measure import Aim, Result, interleaved, summarize
from bench.stage import Stage, running_hyper
from tests.harness import Hyper

IMPORT_GRPC = [sys.executable, "-c", "import grpc"]
HUNDRED, AT_ONCE = 100, 20


def cold(stage: Stage) -> list[Result]:
    """In a hyper of its own that has no templates."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_hyper(IMAGE, scratch, template__enabled="false") as host,
    ):
        ours, bare = interleaved(
            stage.runs(20), lambda: _first_byte_ms(host), lambda: floor.boot_ms(stage.accelerator)
        )
    return [summarize("cold start, API call to first byte", "ms", ours, floor=bare, aim=Aim(ratio=1.5))]


def template(stage: Stage) -> list[Result]:
    call(stage.host, lambda api: api.require_template())
    with floor.template(stage.accelerator) as saved:
        ours, bare = interleaved(stage.runs(50), lambda: _first_byte_ms(stage.host), saved.restore_ms)
        note = f"floor's template: {saved.allocated_bytes >> 20} MiB"
    call(stage.host, lambda api: api.require_template())  # they were, to the last one
    aim = Aim(ratio=1.8, ratio_p95=2.5)
    return [
        summarize("start from template, API call to first byte", "ms", ours, floor=bare, aim=aim, note=note)
    ]


def command(stage: Stage) -> list[Result]:
    call(stage.host, lambda api: api.require_template())
    argv = stage.host.argv("run", "--rm", IMAGE, "true")
    with floor.template(stage.accelerator) as saved:
        ours, bare = interleaved(
            stage.runs(20),
            lambda: floor.process_ms(argv),
            lambda: saved.restore_ms() + floor.process_ms(IMPORT_GRPC),
        )
    note = "floor: a bare restore + python -c 'import grpc'"
    return [
        summarize(
            "hyper run --rm IMAGE true, whole process", "ms", ours, floor=bare, aim=Aim(ratio=1.6), note=note
        )
    ]


def spare(stage: Stage) -> list[Result]:
    """In a hyper of its own. Each start finds a spare ready: that is waited for, and not measured."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_hyper(IMAGE, scratch, template__spares="1") as host,
        floor.template(stage.accelerator) as saved,
    ):

        def when_quiet(measure: Callable[[], float]) -> Callable[[], float]:
            """The floor, too, is not to be measured beside a spare in the making."""

            def measured() -> float:
                host.wait_for_spare()
                return measure()

            return measured

        host.wait_for_spare()
        call(host, lambda api: api.require_start("spare"))
        argv = host.argv("run", "--rm", IMAGE, "true")
        ours, bare = interleaved(
            stage.runs(50), when_quiet(lambda: _first_byte_ms(host)), when_quiet(saved.restore_ms)
        )
        whole, whole_bare = interleaved(
            stage.runs(20),
            when_quiet(lambda: floor.process_ms(argv)),
            when_quiet(lambda: saved.restore_ms() + floor.process_ms(IMPORT_GRPC)),
        )
        host.wait_for_spare()
        call(host, lambda api: api.require_start("spare"))  # they were, to the last one
    note = "a spare was ready before each"
    return [
        summarize(
            "start from a spare, API call to first byte",
            "ms",
            ours,
            floor=bare,
            aim=Aim(ratio=1.8, ratio_p95=2.5),
            note=note,
        ),
        summarize(
            "hyper run --rm IMAGE true, from a spare",
            "ms",
            whole,
            floor=whole_bare,
            aim=Aim(ratio=1.6),
            note=note,
        ),
    ]


def version(stage: Stage) -> list[Result]:
    argv = stage.host.argv("version")
    ours, bare = interleaved(
        stage.runs(20), lambda: floor.process_ms(argv), lambda: floor.process_ms(IMPORT_GRPC)
    )
    return [summarize("hyper version, whole process", "ms", ours, floor=bare, aim=Aim(most=150))]


def hundred(stage: Stage) -> list[Result]:
    """With -n fewer of them, all the same AT_ONCE at a time."""
    call(stage.host, lambda api: api.require_template())
    count = stage.runs(HUNDRED)
    with floor.template(stage.accelerator) as saved:
        up_ms, down_ms, failures = asyncio.run(_many(stage, count))
        floor_up_ms, floor_down_ms = saved.restore_and_kill_many_ms(count, AT_ONCE)
    note = f"{len(failures)} failed" + (f", the first: {failures[0]}" if failures else "")
    return [
        summarize(
            f"{count} starts, {AT_ONCE} at a time",
            "ms",
            [up_ms],
            floor=[floor_up_ms],
            aim=Aim(ratio=1.4),
            note=note,
        ),
        summarize(
            f"{count} removals, {AT_ONCE} at a time",
            "ms",
            [down_ms],
            floor=[floor_down_ms],
            aim=Aim(ratio=1.4),
            note="floor: kill -9 of as many bare QEMUs",
        ),
    ]


async def _many(stage: Stage, count: int) -> tuple[float, float, list[str]]:
    async with connected(stage.host) as api:
        ids: list[str] = []

        async def start(_: int) -> None:
            ids.append(await api.start())

        began = time.monotonic()
        failures = await _each(range(count), start)
        up = time.monotonic()
        failures += await _each(list(ids), api.remove)
        return (up - began) * 1000, (time.monotonic() - up) * 1000, failures


async def _each(items: Sequence[object], act: Callable[..., Awaitable[None]]) -> list[str]:
    """AT_ONCE at a time; what failed."""
    free, failures = asyncio.Semaphore(AT_ONCE), []

    async def one(item: object) -> None:
        async with free:
            try:
                await act(item)
            except grpc.aio.AioRpcError as error:
                failures.append(f"{error.code().name}: {error.details()}")

    async with asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))
    return failures


def _first_byte_ms(host: Hyper) -> float:
    async def echo(api: Api) -> float:
        return await api.first_byte_ms(["echo", "ok"])

    return call(host, echo)
