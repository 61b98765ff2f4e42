# SPDX-License-Identifier: Apache-2.0
"""A process in a guest without a machine: it writes what its script says, and keeps it until it is acknowledged."""

import asyncio
import signal as signals
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hyperd.errors import (
    InvalidError,
)
from hyperd.model.guest import (
    OutputChunk,
    ProcessExit,
    ProcessPlan,
    Stream,
    TerminalSize,
)

RING_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024
KILLED = ProcessExit(137, signal=9)


@dataclass(frozen=True, slots=True)
class Script:
    """What a process does: writes ``output``, then exits with ``exit`` (None: goes on until it is signalled).

    ``output`` is iterated once per process and only as fast as the ring takes it. With ``echo`` it is ``cat``:
    input comes back on stdout and end of input is exit 0.
    """

    output: Iterable[tuple[Stream, bytes]] = ()
    exit: ProcessExit | None = None
    echo: bool = False
    ignored_signals: frozenset[int] = frozenset()
    child_oom: bool = False  # the kernel has killed a child of its for memory


class Pulse:
    """Wakes everyone who waits at this moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass(slots=True)
class _Segment:
    offset: int
    stream: Stream
    data: bytearray

    @property
    def end_offset(self) -> int:
        return self.offset + len(self.data)


class FakeProcess:
    """A process with the agent's ring: numbered output, kept until acknowledged, blocking when full."""

    def __init__(self, plan: ProcessPlan, script: Script, pid: int, pulse: Pulse) -> None:
        self.plan = plan
        self.pid = pid
        self.exit: ProcessExit | None = None
        self.received = bytearray()
        self.input_ended = False
        self.signals: list[int] = []
        self.sizes: list[TerminalSize] = []
        self.start_offset = 0
        self.end_offset = 0
        self.reader: object = None  # a later reader ends an earlier one
        self._script = script
        self._pulse = pulse
        self._unwritten: Iterator[tuple[Stream, bytes]] = iter(script.output)
        self._blocked: deque[tuple[Stream, bytes]] = deque()
        self._ring: deque[_Segment] = deque()
        self._started = False
        self._pipes_held = False

    def copy(self, pulse: "Pulse") -> "FakeProcess":
        other = FakeProcess(self.plan, self._script, self.pid, pulse)
        other.exit, other.received, other.input_ended = self.exit, bytearray(self.received), self.input_ended
        other.start_offset, other.end_offset = self.start_offset, self.end_offset
        other._unwritten, other._blocked = iter(()), deque(self._blocked)
        other._ring = deque(_Segment(item.offset, item.stream, bytearray(item.data)) for item in self._ring)
        other._started, other._pipes_held = self._started, self._pipes_held
        return other

    @property
    def output_ended(self) -> bool:
        return self.exit is not None and not self._blocked and not self._pipes_held

    def start(self) -> None:
        self._started = True
        self._move()

    def emit(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        """Write now, beyond the script; what does not fit into the ring waits."""
        self._blocked.extend((stream, data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
        self._move()

    def hold_pipes(self) -> None:
        """A child has them, too, and outlives the process."""
        self._pipes_held = True

    def finish(self, exit_: ProcessExit) -> None:
        if self.exit is None:
            self.exit = exit_
            self._unwritten = iter(())
        self._pulse.beat()

    def require_kept(self, offset: int) -> None:
        if not self.start_offset <= offset <= self.end_offset:
            raise InvalidError(f"offset {offset} is outside what is kept")

    def acknowledge(self, offset: int) -> None:
        self.start_offset = max(self.start_offset, min(offset, self.end_offset))
        while self._ring and self._ring[0].end_offset <= self.start_offset:
            self._ring.popleft()
        self._move()

    def feed(self, data: bytes) -> bool:
        """Return whether the process still takes input."""
        if self.exit is not None or self.input_ended:
            return False
        self.received += data
        if self._script.echo:
            self.emit(data)
        return True

    @property
    def takes_input(self) -> bool:
        return not self._blocked or self.exit is not None

    def end_input(self) -> None:
        self.input_ended = True
        self._move()

    def signal(self, number: int) -> bool:
        if self.exit is not None:
            return False
        self.signals.append(number)
        if number == signals.SIGKILL or (number and number not in self._script.ignored_signals):
            self._blocked.clear()
            status = ProcessExit(128 + number, signal=number, oom_killed=self._script.child_oom)
            self.finish(status)
        return True

    def read_from(self, offset: int) -> OutputChunk | None:
        """The next chunk from ``offset`` on, or None when there is none yet."""
        for segment in self._ring:
            if segment.end_offset > offset:
                skip = max(0, offset - segment.offset)
                data = bytes(segment.data[skip : skip + CHUNK_BYTES])
                return OutputChunk(segment.offset + skip, segment.stream, data)
        return None

    def _move(self) -> None:
        while self._started and self._write_next():
            pass
        if self._started and self.exit is None and not self._blocked:
            if self._script.exit is not None and not self._script.echo:
                self.finish(self._script.exit)
            elif self._script.echo and self.input_ended:
                self.finish(ProcessExit(0))
        self._pulse.beat()

    def _write_next(self) -> bool:
        if not self._blocked:
            following = next(self._unwritten, None)
            if following is None:
                return False
            stream, data = following
            self._blocked.extend(
                (stream, data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)
            )
            return True
        stream, data = self._blocked[0]
        room = RING_BYTES - (self.end_offset - self.start_offset)
        if room <= 0:
            return False
        last = self._ring[-1] if self._ring else None
        if last is None or last.stream is not stream or len(last.data) + len(data) > CHUNK_BYTES:
            last = _Segment(self.end_offset, stream, bytearray())
            self._ring.append(last)
        last.data += data[:room]
        self.end_offset += len(data[:room])
        self._blocked.popleft()
        if len(data) > room:
            self._blocked.appendleft((stream, data[room:]))
        return True
