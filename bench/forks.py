# SPDX-License-Identifier: Apache-2.0
"""Forks of a running sandbox: twenty at once, and how long the source stands still."""

import time

import grpc.aio

from bench import floor
from bench.api import Api, call
from bench.measure import Aim, CannotMeasureError, Result, interleaved, summarize
from bench.stage import MEMORY_MIB, Stage
from hyper.v1 import container_pb2 as pb

CLONES = 20
DIRTY_MIB = 100
FILL = f"head -c {DIRTY_MIB << 20} /dev/urandom > /dirty/data && sync && exec sleep 100000"


def fork(stage: Stage) -> list[Result]:
    """With -n as many rounds."""
    source = call(stage.host, lambda api: api.start())

    async def once(api: Api) -> float:
        began = time.monotonic()
        clones = (await _fork(api, source, CLONES)).clones
        took = time.monotonic() - began
        if len(clones) != CLONES:
            raise CannotMeasureError(f"{len(clones)} clones instead of {CLONES}")
        for clone in clones:
            await api.remove(clone.container_id)
        return took * 1000

    try:
        with floor.snapshot(stage.accelerator) as saved:
            ours, bare = interleaved(
                stage.runs(5),
                lambda: call(stage.host, once),
                lambda: saved.restore_and_kill_many_ms(CLONES, CLONES)[0],
            )
            note = f"the floor's snapshot: {saved.allocated_bytes >> 20} MiB"
    finally:
        call(stage.host, lambda api: api.remove(source))
    return [
        summarize(
            f"fork of {CLONES}, API call to all run", "ms", ours, floor=bare, aim=Aim(ratio=1.5), note=note
        )
    ]


def pause(stage: Stage) -> list[Result]:
    async def filled(api: Api) -> str:
        container_id = await api.start(["sh", "-c", FILL], tmpfs={"/dirty": f"size={DIRTY_MIB + 8}m"})
        await _wait_filled(api, container_id)
        return container_id

    async def once(api: Api) -> float:
        forked = await _fork(api, source, 1)
        for clone in forked.clones:
            await api.remove(clone.container_id)
        return float(forked.pause_ms)

    source = call(stage.host, filled)
    dirty = floor.DirtyVm(stage.accelerator, DIRTY_MIB)
    try:
        ours, bare = interleaved(stage.runs(5), lambda: call(stage.host, once), dirty.pause_ms)
    finally:
        call(stage.host, lambda api: api.remove(source))
    return [
        summarize(
            f"pause of the source of a fork, {MEMORY_MIB} MiB with {DIRTY_MIB} MiB dirty",
            "ms",
            ours,
            floor=bare,
            aim=Aim(ratio=1.2),
            note=f"ours as hyperd reports it; the floor's state: {dirty.state_bytes >> 20} MiB",
        )
    ]


async def _fork(api: Api, source: str, count: int) -> pb.ForkContainerResponse:
    try:
        return await api.fork(source, count)
    except grpc.aio.AioRpcError as error:
        raise CannotMeasureError(f"no fork: {error.code().name}: {error.details()}") from error


async def _wait_filled(api: Api, container_id: str) -> None:
    """`sync` has returned when `sleep` has taken the shell's place."""
    deadline = time.monotonic() + 300
    while b"sleep" not in await api.output(container_id, ["cat", "/proc/1/cmdline"]):
        if time.monotonic() > deadline:
            raise CannotMeasureError(f"{DIRTY_MIB} MiB were not written within 300 s")
