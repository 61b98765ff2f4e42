# SPDX-License-Identifier: Apache-2.0
"""What `hyper logs` asks for, and the choosing of entries."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import cast

from hyper.v1 import container_pb2 as wire
from hyperd.sandbox import Cursor, Journal, LogEntry, SandboxHandle

Respond = Callable[[LogEntry], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wanted:
    follow: bool
    tail_lines: int | None
    since_ns: int
    until_ns: int | None


def decode(request: wire.ReadLogsRequest) -> Wanted:
    return Wanted(
        follow=request.follow,
        tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
        since_ns=request.since.ToNanoseconds() if request.HasField("since") else 0,
        until_ns=request.until.ToNanoseconds() if request.HasField("until") else None,
    )


async def read(handle: SandboxHandle, wanted: Wanted, respond: Respond) -> None:
    """With ``follow`` until the container ends or ``until`` has passed, across rollbacks.

    Raises WrongStateError when one that is followed is put to sleep.
    """
    journal, cursor = handle.journal, Cursor()
    if wanted.tail_lines is not None:
        for entry in await _last_lines(journal, wanted, cursor):
            await respond(entry)
        if not wanted.follow:
            return
    was_running = not journal.closed
    left_s = None if wanted.until_ns is None else max(0.0, (wanted.until_ns - time.time_ns()) / 1e9)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(left_s if wanted.follow and left_s else None):
            follow = wanted.follow and left_s != 0
            while True:
                async for entry in journal.read(cursor, follow=follow):
                    if wanted.until_ns is not None and entry.time_ns > wanted.until_ns:
                        return
                    if entry.time_ns >= wanted.since_ns:
                        await respond(entry)
                if not (follow and was_running and await handle.log_goes_on()):
                    return


async def _last_lines(journal: Journal, wanted: Wanted, cursor: Cursor) -> list[LogEntry]:
    """From the log's end on back, until there are more than were asked for: the first is cut to its line."""
    kept: deque[LogEntry] = deque()
    lines = 0
    limit = wanted.tail_lines or 0
    async with contextlib.aclosing(
        cast("AsyncGenerator[list[LogEntry], None]", journal.read_back(cursor))
    ) as pieces:
        async for piece in pieces:
            for entry in reversed(piece):
                late = wanted.until_ns is not None and entry.time_ns > wanted.until_ns
                if late or entry.time_ns < wanted.since_ns:
                    continue
                kept.appendleft(entry)
                lines += entry.data.count(b"\n")
                if lines > limit:
                    return _cut(list(kept), limit)
    return _cut(list(kept), limit)


def _cut(entries: list[LogEntry], lines: int) -> list[LogEntry]:
    """Drop from the front until at most ``lines`` are left; a last line without an end counts as one."""
    if lines == 0 or not entries:
        return []
    open_line = 0 if entries[-1].data.endswith(b"\n") else 1
    surplus = sum(entry.data.count(b"\n") for entry in entries) + open_line - lines
    left: list[LogEntry] = []
    for entry in entries:
        data = entry.data
        while surplus > 0 and b"\n" in data:
            data = data[data.index(b"\n") + 1 :]
            surplus -= 1
        if data and surplus <= 0:
            left.append(replace(entry, data=data))
    return left
