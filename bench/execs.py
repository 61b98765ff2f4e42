# SPDX-License-Identifier: Apache-2.0
"""Processes in a container that runs: round trips, and what they write."""

import subprocess
import time

from bench.api import Api, call
from bench.measure import Aim, Result, interleaved, summarize
from bench.stage import Stage

STDOUT_BYTES = 64 << 20
LOOPS, EXECS = 100, 20
# /proc/uptime has hundredths of a second: over LOOPS processes that is 0.1 ms of each. With a slash it is no builtin.
TRUES = (
    "read a x < /proc/uptime; i=0; "
    f"while [ $i -lt {LOOPS} ]; do /bin/true; i=$((i+1)); done; "
    "read b x < /proc/uptime; echo $a $b"
)


def round_trip(stage: Stage) -> list[Result]:
    """Some execs, then the guest's own loop, and so on. The agent has no number of its own for fork and exec."""
    container_id = call(stage.host, lambda api: api.start())
    ours: list[float] = []
    guests: list[float] = []
    empty: list[float] = []

    async def turn(api: Api) -> None:
        for _ in range(EXECS):
            ours.append(await api.exec_ms(container_id, ["true"]))
            empty.append(await api.empty_call_ms())
        began, ended = (await api.output(container_id, ["sh", "-c", TRUES])).split()
        guests.append((float(ended) - float(began)) * 1000 / LOOPS)

    try:
        for _ in range(stage.runs(5)):
            call(stage.host, turn)
    finally:
        call(stage.host, lambda api: api.remove(container_id))
    note = f"floor: fork+exec of /bin/true by a shell in the guest, a loop of {LOOPS}"
    return [
        summarize(
            "exec of true, API call to status", "ms", ours, floor=guests, aim=Aim(above=3.0), note=note
        ),
        summarize("an empty call of hyperd", "ms", empty),
    ]


def stdout(stage: Stage) -> list[Result]:
    container_id = call(stage.host, lambda api: api.start())
    source = f"dd if=/dev/zero bs=64k count={STDOUT_BYTES >> 16} 2>/dev/null"

    def rate(command: str) -> float:
        argv = stage.host.argv("exec", container_id, "sh", "-c", command)
        began = time.monotonic()
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
        return STDOUT_BYTES / (1 << 20) / (time.monotonic() - began)

    try:
        rates, floors = interleaved(
            stage.runs(3), lambda: rate(source), lambda: rate(f"{source} | cat > /dev/null")
        )
    finally:
        call(stage.host, lambda api: api.remove(container_id))
    return [
        summarize(
            "stdout of an exec, through hyper",
            "MiB/s",
            rates,
            floor=floors,
            note="floor: a pipe in the guest",
        )
    ]
