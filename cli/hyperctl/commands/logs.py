# SPDX-License-Identifier: Apache-2.0
"""`hyper logs`."""

import sys
import time
from typing import Annotated, BinaryIO

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, options, tree
from hyperctl.moments import parse_moment
from hyperctl.render import render_rfc3339

app = tree.group()


@tree.command(app, "logs")
def logs(
    container: Annotated[
        str,
        typer.Argument(
            metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
        ),
    ],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is written")] = False,
    tail: Annotated[
        str, typer.Option("--tail", "-n", metavar="LINES", help="Only so many from the end")
    ] = "all",
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="10m, 2026-01-02T15:04:05Z, UNIX seconds")
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="As --since")] = "",
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="The time before every line")
    ] = False,
) -> int:
    """Show what a container has written."""
    now_ns = time.time_ns()
    request = pb.ReadLogsRequest(
        container=container,
        follow=follow,
        tail_lines=None if tail in {"all", "-1"} else options.parse_integer("--tail", tail),
        since=_parse_bound("--since", since, now_ns),
        until=_parse_bound("--until", until, now_ns),
    )
    hyperd.run(_copy(request, timestamps=timestamps))
    return 0


async def _copy(request: pb.ReadLogsRequest, *, timestamps: bool) -> None:
    async with hyperd.connect() as client:
        out = LogWriter(sys.stdout.buffer, timestamps=timestamps)
        err = LogWriter(sys.stderr.buffer, timestamps=timestamps)
        async for response in client.containers.ReadLogs(request):
            writer = err if response.stream == pb.STREAM_STDERR else out
            writer.write(response.time, response.data)


def _parse_bound(flag: str, text: str, now_ns: int) -> Timestamp | None:
    if not text:
        return None
    seconds, nanos = parse_moment(flag, text, now_ns=now_ns)
    return Timestamp(seconds=seconds, nanos=nanos)


class LogWriter:
    """One stream of a log. Pieces come as they were written, so a line may come in several."""

    def __init__(self, out: BinaryIO, *, timestamps: bool) -> None:
        self._out = out
        self._timestamps = timestamps
        self._at_line_start = True

    def write(self, moment: Timestamp, data: bytes) -> None:
        if self._timestamps:
            stamp = f"{render_rfc3339(moment.seconds, moment.nanos)} ".encode()
            for line in _split_lines(data):
                self._out.write(stamp + line if self._at_line_start else line)
                self._at_line_start = line.endswith(b"\n")
        else:
            self._out.write(data)
        self._out.flush()


def _split_lines(data: bytes) -> list[bytes]:
    """At \\n alone: a \\r is part of a terminal's line."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    return [*lines[:-1], lines[-1][:-1]] if lines[-1] != b"\n" else lines[:-1]
