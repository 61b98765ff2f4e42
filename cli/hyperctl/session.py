# SPDX-License-Identifier: Apache-2.0
"""One process, our standard streams, one call: what `run`, `exec`, `attach` and `start -a` have in common.

    our stdin   -> 64 KiB chunks -> call.write, which waits while the other side does not read
    our stdout  <- bounded       <- call.read, which is only asked when there is room

With a terminal: raw mode from `started` to the end, window changes passed on, detach keys watched for.
Without: signals that we get are passed on. Three interrupts end us whatever the other side does.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyper.v1 import container_pb2 as pb
from hyperctl import terminal
from hyperctl.client import Client
from hyperctl.detach import DetachScanner
from hyperctl.errors import HYPER_FAILED, CliError
from hyperctl.outcome import Outcome
from hyperctl.render import print_error
from hyperctl.streams import InputStream, OutputStream

if TYPE_CHECKING:
    import grpc.aio

    Call = grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
ENOUGH_INTERRUPTS = 3
MAX_PENDING_SIGNALS = 32
CLOSE_S = 10
SIGNAL_TIMEOUT_S = 10
OLDER_HYPERD = "hyper: signals of `exec` need a newer hyperd than the one that runs: restart it"
LAST_OUTPUT_S = 0.2  # the terminal is given back after this even if it does not take our output


@dataclass(frozen=True, slots=True)
class SessionSetup:
    """What the user wants of a session."""

    first: pb.SessionRequest
    stdin: bool
    close_stdin: bool = field(default=True, kw_only=True)  # the end of our input is the end of the process's
    detach_keys: bytes
    send_signal: "SignalSender"
    forward_signals: bool = True
    on_started: Callable[[pb.SessionStarted], None] | None = None


class Session:
    def __init__(self, call: "Call", setup: SessionSetup) -> None:
        self._call = call
        self._setup = setup
        self._started = asyncio.Event()
        self._started_as = pb.SessionStarted()
        self._ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._signals: asyncio.Queue[int] = asyncio.Queue(MAX_PENDING_SIGNALS)
        self._interrupts = 0
        self._output_lost: CliError | None = None
        self._sending = asyncio.Lock()  # grpc.aio takes one write at a time
        self._raw = terminal.RawMode(0)
        self._output = OutputStream(1, self._break_locally)
        self._errors = OutputStream(2, self._break_locally)

    async def run(self) -> Outcome:
        """Raises CliError or AioRpcError when the call fails, BrokenPipeError when nobody reads our output."""
        try:
            with self._raw:
                with self._signals_caught():
                    async with self._helpers(self._receive(), self._send_input(), self._send_signals()):
                        await asyncio.wait([self._ended])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_OUTPUT_S):
                        await self._finish_output()
        finally:
            self._call.cancel()
        await self._finish_output()
        outcome = self._ended.result()
        if outcome.exit is not None and self._output_lost is not None:
            raise self._output_lost  # the exit was heard before the last of the output failed
        if outcome.detached and terminal.is_terminal(1):
            print()  # the shell's prompt gets a line of its own
        return outcome

    @contextlib.asynccontextmanager
    async def _helpers(self, *work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._guard(one)) for one in work]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """The first failure is the session's; what fails because it ends is not told."""
        import grpc.aio

        try:
            await work
        except (grpc.aio.AioRpcError, CliError) as error:
            self._break(error)
        except OSError as error:
            self._break_locally(error)

    def _break(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _break_locally(self, error: OSError) -> None:
        """Our own side failed. Only a reader who has gone is no error to speak of."""
        if isinstance(error, BrokenPipeError):
            self._break(error)
        else:
            brief = f"cannot go on reading and writing here: {error.strerror or error}"
            self._output_lost = CliError(brief, subject=error.filename or "", exit_status=HYPER_FAILED)
            self._break(self._output_lost)

    def _end(self, outcome: Outcome) -> None:
        if not self._ended.done():
            self._ended.set_result(outcome)

    async def _receive(self) -> None:
        await self._send(self._setup.first)
        while isinstance(response := await self._call.read(), pb.SessionResponse):
            match response.WhichOneof("kind"):
                case "stdout":
                    await self._output.write(response.stdout)
                case "stderr":
                    await self._errors.write(response.stderr)
                case "started":
                    self._begin(response.started)
                case "exit":
                    await self._wait_closed()
                    self._end(Outcome(exit=response.exit))
                    return
        self._end(Outcome())

    async def _wait_closed(self) -> None:
        """hyperd closes the call when all that follows the exit is done as well: a removal, for one."""
        import grpc.aio

        with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._call.read()

    def _begin(self, started: pb.SessionStarted) -> None:
        self._started_as = started
        if self._setup.on_started is not None:
            self._setup.on_started(started)
        if started.tty and self._setup.stdin and terminal.is_terminal(0):
            self._raw.enter()
        self._started.set()

    async def _send(self, request: pb.SessionRequest) -> bool:
        """False when the call is over; why, is for ``_receive`` to find."""
        import grpc.aio

        async with self._sending:
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                return False
        return True

    async def _send_input(self) -> None:
        await self._started.wait()
        if not self._setup.stdin:
            return
        source = InputStream(0)
        scanner = DetachScanner(self._setup.detach_keys) if self._raw.active else None
        while data := await source.read():
            if scanner is not None:
                data = scanner.feed(data)
            if data and not await self._send(pb.SessionRequest(stdin=data)):
                return
            if scanner is not None and scanner.detached:
                self._end(Outcome(detached=True))
                return
        if self._setup.close_stdin:
            await self._send(pb.SessionRequest(close_stdin=pb.CloseStdin()))

    async def _send_signals(self) -> None:
        await self._started.wait()
        while True:
            number = await self._signals.get()
            if number == signal.SIGWINCH:
                size = terminal.find_size(1, 0)
                if size is not None and self._started_as.tty:
                    await self._send(pb.SessionRequest(resize=pb.TerminalSize(columns=size[0], rows=size[1])))
            else:
                await self._setup.send_signal(self._started_as, number)

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        caught = (*FORWARDED, signal.SIGWINCH)
        for number in caught:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if number in {signal.SIGINT, signal.SIGTERM}:
            self._interrupts += 1
        hanging_up = self._raw.active and number != signal.SIGINT
        enough = self._interrupts >= ENOUGH_INTERRUPTS
        if number != signal.SIGWINCH and (hanging_up or enough or not self._setup.forward_signals):
            if enough:
                hint = "`hyper ps` shows whether its container still runs"
                print_error(CliError(f"{ENOUGH_INTERRUPTS} interrupts: not waiting any longer", hint=hint))
            self._end(Outcome(signal=number))
            return
        with contextlib.suppress(asyncio.QueueFull):
            self._signals.put_nowait(number)

    async def _finish_output(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._output.finish())
            group.create_task(self._errors.finish())


class SignalSender:
    """To the session's process by a call of its own: it cannot wait behind input that nobody reads."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def __call__(self, started: pb.SessionStarted, signal_number: int) -> None:
        import grpc.aio

        container, number, calls = started.container_id, str(signal_number), self._client.containers
        try:
            if started.exec_id:
                exec_request = pb.SignalExecRequest(
                    container=container, exec_id=started.exec_id, signal=number
                )
                await calls.SignalExec(exec_request, timeout=SIGNAL_TIMEOUT_S)
            else:
                request = pb.KillContainerRequest(container=container, signal=number)
                await calls.KillContainer(request, timeout=SIGNAL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:  # else it has just ended: its exit is on the way
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                print(OLDER_HYPERD, file=sys.stderr)
