# SPDX-License-Identifier: Apache-2.0
"""Processes that are coroutines: what runs in the containers of the fake daemon."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from hyper.v1 import container_pb2 as pb

CHUNK = 64 * 1024


@dataclass
class FakeProcess:
    """What a program of ours sees: arguments, input, output, signals, a terminal's size."""

    args: list[str]
    tty: bool = False
    size: tuple[int, int] = (0, 0)
    stdin: "asyncio.Queue[bytes]" = field(default_factory=lambda: asyncio.Queue(4))
    output: "asyncio.Queue[pb.SessionResponse | None]" = field(default_factory=lambda: asyncio.Queue(4))
    signals: "asyncio.Queue[int]" = field(default_factory=asyncio.Queue)
    resized: asyncio.Event = field(default_factory=asyncio.Event)
    exit: pb.ExitStatus | None = None
    running: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, data: bytes) -> None:
        await self.output.put(pb.SessionResponse(stdout=data))

    async def write_error(self, data: bytes) -> None:
        await self.output.put(pb.SessionResponse(stderr=data))

    async def read(self) -> bytes:
        return await self.stdin.get()

    async def run(self) -> None:
        """The program to its end, or until a signal ends it."""
        program = PROGRAMS.get(self.args[0] if self.args else "sh", missing)
        work = asyncio.ensure_future(program(self))
        killed = asyncio.ensure_future(self._killed())
        try:
            await asyncio.wait([work, killed], return_when=asyncio.FIRST_COMPLETED)
            self.exit = work.result() if work.done() else killed.result()
        finally:
            work.cancel()
            killed.cancel()
        self.ended.set()
        await self.output.put(None)

    async def _killed(self) -> pb.ExitStatus:
        if self.args[:1] == ["signals"]:
            await asyncio.Event().wait()
        number = await self.signals.get()
        return pb.ExitStatus(code=128 + number, signal=number, reason=pb.EXIT_REASON_STOPPED)


def exited(code: int = 0) -> pb.ExitStatus:
    return pb.ExitStatus(code=code, reason=pb.EXIT_REASON_EXITED)


async def missing(process: FakeProcess) -> pb.ExitStatus:
    return pb.ExitStatus(
        code=127, reason=pb.EXIT_REASON_START_FAILED, message=f"exec: {process.args[0]!r}: not found in $PATH"
    )


async def echo(process: FakeProcess) -> pb.ExitStatus:
    await process.write((" ".join(process.args[1:]) + "\n").encode())
    return exited()


async def complain(process: FakeProcess) -> pb.ExitStatus:
    await process.write(b"to stdout\n")
    await process.write_error(b"to stderr\n")
    return exited(int(process.args[1]))


async def cat(process: FakeProcess) -> pb.ExitStatus:
    while data := await process.read():
        await process.write(data)
    return exited()


async def sink(process: FakeProcess) -> pb.ExitStatus:
    """Counts and hashes its input."""
    size, hashed = 0, hashlib.sha256()
    while data := await process.read():
        size += len(data)
        hashed.update(data)
    await process.write(f"{size} {hashed.hexdigest()}\n".encode())
    return exited()


async def flood(process: FakeProcess) -> pb.ExitStatus:
    left = int(process.args[1])
    chunk = bytes(range(256)) * (CHUNK // 256)
    while left > 0:
        await process.write(chunk[:left])
        left -= len(chunk[:left])
    return exited()


async def sleep(process: FakeProcess) -> pb.ExitStatus:
    await process.write(b"ready\n")
    await asyncio.Event().wait()
    return exited()


async def signals(process: FakeProcess) -> pb.ExitStatus:
    """Names every signal; ends at SIGTERM."""
    await process.write(b"ready\n")
    while (number := await process.signals.get()) != 15:
        await process.write(f"signal {number}\n".encode())
    return exited(3)


async def sh(process: FakeProcess) -> pb.ExitStatus:
    """A terminal that echoes: `size` waits for a change of size, `exit` ends it."""
    await process.write(f"size {process.size[0]}x{process.size[1]}\r\n$ ".encode())
    line = b""
    while data := await process.read():
        await process.write(data.replace(b"\r", b"\r\n"))
        line += data
        while b"\r" in line:
            word, _, line = line.partition(b"\r")
            if word == b"exit":
                return exited(7)
            if word == b"size":
                await process.resized.wait()
                process.resized.clear()
                await process.write(f"size {process.size[0]}x{process.size[1]}\r\n".encode())
            await process.write(b"$ ")
    return exited()


async def panic(process: FakeProcess) -> pb.ExitStatus:
    return pb.ExitStatus(
        code=255, reason=pb.EXIT_REASON_GUEST_PANIC, message="Kernel panic - not syncing\n\x1b[31mCPU: 0"
    )


async def oom(process: FakeProcess) -> pb.ExitStatus:
    return pb.ExitStatus(code=137, signal=9, reason=pb.EXIT_REASON_OOM)


Program = Callable[[FakeProcess], Coroutine[None, None, pb.ExitStatus]]
PROGRAMS: dict[str, Program] = {
    "echo": echo,
    "complain": complain,
    "cat": cat,
    "sink": sink,
    "flood": flood,
    "sleep": sleep,
    "signals": signals,
    "sh": sh,
    "panic": panic,
    "oom": oom,
}
