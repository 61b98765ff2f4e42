# SPDX-License-Identifier: Apache-2.0
"""Our own standard streams beside an event loop: bounded, never dropping, never blocking the loop.

They stay in blocking mode: the flag belongs to the open file, which the shell and others share with us.
"""

import asyncio
import collections
import contextlib
import errno
import os
import select
import threading
from collections.abc import Callable

CHUNK_BYTES = 64 * 1024
MAX_HELD_BYTES = 1024 * 1024


class InputStream:
    """Chunks of at most 64 KiB, read when they are asked for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pollable = True

    async def read(self) -> bytes:
        """b"" at the end of the input, and when the terminal has gone."""
        while True:
            await self._wait_readable()
            try:
                return os.read(self._fd, CHUNK_BYTES)
            except BlockingIOError:  # somebody else's O_NONBLOCK, and somebody else was faster
                continue
            except OSError as error:
                if error.errno in {errno.EIO, errno.EBADF}:
                    return b""
                raise

    async def _wait_readable(self) -> None:
        if not self._pollable:
            await asyncio.sleep(0)  # so that a large file does not starve everything else
            return
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        try:
            loop.add_reader(self._fd, readable.set)
        except (
            PermissionError,
            OSError,
        ):  # epoll refuses regular files and /dev/null: those never make us wait
            self._pollable = False
            return
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._fd)


class OutputStream:
    """Writes in a thread of its own, at most 1 MiB behind; ``write`` waits for room.

    ``on_broken`` is called in the loop when the other side has gone (EPIPE, or the error it was). What comes after
    that, and all output to a descriptor that was closed from the start, is thrown away.
    """

    def __init__(self, fd: int, on_broken: Callable[[OSError], None]) -> None:
        self._fd = fd
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._chunks: collections.deque[bytes | None] = collections.deque()
        self._held_bytes = 0
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self._room_wanted = False
        self._finished = asyncio.Event()
        self._broken = False
        self._thread = threading.Thread(target=self._run, name=f"output-{fd}", daemon=True)
        self._thread.start()

    async def write(self, data: bytes) -> None:
        while not self._put(data):
            await self._room.wait()

    async def finish(self) -> None:
        """Until all is written, or nobody reads it any more."""
        with self._changed:
            self._chunks.append(None)
            self._changed.notify()
        await self._finished.wait()

    def _put(self, data: bytes) -> bool:
        with self._changed:
            if self._held_bytes >= MAX_HELD_BYTES:
                self._room.clear()
                self._room_wanted = True
                return False
            self._held_bytes += len(data)
            self._chunks.append(data)
            self._changed.notify()
            return True

    def _run(self) -> None:
        while (data := self._take()) is not None:
            if not self._broken:
                try:
                    _write_all(self._fd, data)
                except OSError as error:
                    self._broken = True
                    if error.errno != errno.EBADF:
                        self._tell(self._on_broken, error)
            with self._changed:
                self._held_bytes -= len(data)
                tell_room, self._room_wanted = self._room_wanted, False
            if tell_room:
                self._tell(self._room.set)
        self._tell(self._finished.set)

    def _take(self) -> bytes | None:
        with self._changed:
            while not self._chunks:
                self._changed.wait()
            return self._chunks.popleft()

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before us
            self._loop.call_soon_threadsafe(callback, *args)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
