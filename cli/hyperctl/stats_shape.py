# SPDX-License-Identifier: Apache-2.0
"""What containers use, as `docker stats` shows it. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hyper.v1 import container_pb2 as pb
from hyperctl.names import SHORT_ID
from hyperctl.render import render_binary_size, render_size

UNKNOWN = "--"
COLUMNS = ("Container", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
HEADERS = {
    "Container": "CONTAINER ID",
    "ID": "CONTAINER ID",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
    "HostMem": "HOST MEM",
    "RateDroppedIn": "DROPPED IN",
    "RateDroppedOut": "DROPPED OUT",
}


def stats_row(
    stats: pb.ContainerStats, before: pb.ContainerStats | None, *, truncate: bool
) -> Mapping[str, Any]:
    """``before``: of the same container, some time ago; None: a rate is not known yet."""
    shown = stats.container_id[:SHORT_ID] if truncate else stats.container_id
    usage, limit = _known(stats, "memory_bytes"), stats.memory_limit_bytes
    received, sent = _known(stats, "received_bytes"), _known(stats, "sent_bytes")
    read, written = _known(stats, "block_read_bytes"), _known(stats, "block_written_bytes")
    return {
        "Container": shown,
        "ID": shown,
        "Name": stats.name,
        "CPUPerc": _percent(cpu_share(stats, before)),
        "MemUsage": f"{_shown(usage, render_binary_size)} / {render_binary_size(limit)}",
        "MemPerc": _percent(None if usage is None or not limit else usage / limit),
        "NetIO": f"{_shown(received, render_size)} / {_shown(sent, render_size)}",
        "BlockIO": f"{_shown(read, render_size)} / {_shown(written, render_size)}",
        "PIDs": _shown(_known(stats, "pids"), str),
        "HostMem": _shown(_known(stats, "host_memory_bytes"), render_binary_size),
        "RateDroppedIn": _shown(_known(stats, "rate_dropped_in"), str),
        "RateDroppedOut": _shown(_known(stats, "rate_dropped_out"), str),
    }


def cpu_share(stats: pb.ContainerStats, before: pb.ContainerStats | None) -> float | None:
    """CPUs in use between the two; None when that is not known. One that was started anew in between counts anew."""
    if not stats.running:
        return 0.0
    if before is None or not (stats.HasField("cpu_ns") and before.HasField("cpu_ns")):
        return None
    if stats.read_at_ns <= before.read_at_ns or stats.cpu_ns < before.cpu_ns:
        return None
    return (stats.cpu_ns - before.cpu_ns) / (stats.read_at_ns - before.read_at_ns)


def stats_rows(
    now: Sequence[pb.ContainerStats], before: Mapping[str, pb.ContainerStats], *, truncate: bool
) -> list[Mapping[str, Any]]:
    """``before``: by id."""
    return [stats_row(each, before.get(each.container_id), truncate=truncate) for each in now]


def _known(stats: pb.ContainerStats, field: str) -> int | None:
    """Of one that does not run all is 0, as with Docker."""
    message: Any = stats
    if message.HasField(field):
        return int(getattr(message, field))
    return None if stats.running else 0


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share * 100:.2f}%"


def _shown(value: int | None, render: Callable[[int], str]) -> str:
    return UNKNOWN if value is None else render(value)
