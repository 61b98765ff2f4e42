# SPDX-License-Identifier: Apache-2.0
"""The one gate for child processes: argv lists, no shell, a deadline, bounded output, nobody left behind."""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from hyperd.errors import HyperError, InvalidError, TimeoutExpiredError, UnavailableError

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Finished:
    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def stderr_tail(self) -> str:
        return self.stderr[-TAIL_BYTES:].decode(errors="replace").strip()


async def run(
    argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> Finished:
    """Run to the end whatever the exit status.

    Raises UnavailableError when the program cannot be executed, TimeoutExpiredError at the deadline. When the
    caller is cancelled the child's whole process group is killed first.
    """
    async with spawn(argv, stdin=stdin is not None, env=env) as child:
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                reading = [
                    tasks.create_task(_read_bounded(stream)) for stream in (child.stdout, child.stderr)
                ]
                tasks.create_task(_write_all(child.stdin, stdin))
                await child.wait()
        except TimeoutError as error:
            raise TimeoutExpiredError(f"no end after {timeout_s:g} s", subject=argv[0]) from error
    if child.returncode is None:
        raise HyperError("a finished child has no status", subject=argv[0])
    stdout, stderr = (task.result() for task in reading)
    return Finished(tuple(argv), child.returncode, stdout, stderr)


async def run_checked(
    argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> Finished:
    """As ``run``; any exit status but 0 raises UnavailableError with the end of standard error as evidence."""
    finished = await run(argv, timeout_s=timeout_s, stdin=stdin, env=env)
    if finished.returncode != 0:
        raise UnavailableError(
            f"exit status {finished.returncode}", subject=argv[0], evidence=finished.stderr_tail
        )
    return finished


# prctl(2), PR_SET_PDEATHSIG. The kernel forgets it when the child becomes another user: who does that says it again.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


@contextlib.asynccontextmanager
async def spawn(
    argv: Sequence[str],
    *,
    stdin: bool | int = False,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child with pipes for stdout and stderr; at the end it is dead and reaped. It dies with a hyperd that is killed.

    ``stdin``: True for a pipe, or a descriptor that becomes the child's. ``pass_fds`` keep their numbers there.
    """
    standard_input = stdin
    if isinstance(stdin, bool):
        standard_input = asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL
    path = (os.environ if env is None else env).get("PATH", os.defpath)
    try:
        if shutil.which(argv[0], path=path) is None:  # else it is setpriv that would not find it
            raise FileNotFoundError(errno.ENOENT, "no such program")
        child = await asyncio.create_subprocess_exec(
            *DIES_WITH_US,
            *argv,
            stdin=standard_input,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=None if env is None else dict(env),
            pass_fds=pass_fds,
            start_new_session=True,  # so that its own children die with it
        )
    except ValueError as error:  # what a caller has passed on unseen
        raise InvalidError("an argument holds a zero byte", subject=argv[0]) from error
    except OSError as error:
        raise UnavailableError(
            f"cannot be executed: {error.strerror}",
            subject=argv[0],
            hint="`hyper doctor` says what is missing",
        ) from error
    try:
        yield child
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            # Shielded: a second cancellation must not leave a zombie behind.
            await asyncio.shield(child.wait())


def start_detached(argv: Sequence[str], *, output: int, pass_fds: Sequence[int]) -> int:
    """A child that outlives this process, in a session of its own; returns its pid. Blocks until it is executed.

    Its output goes to the descriptor ``output``. ``pass_fds`` become 3, 4, ... there.
    Whoever calls this reaps it. Raises UnavailableError.
    """
    program = shutil.which(argv[0])
    try:
        if program is None:
            raise FileNotFoundError(errno.ENOENT, "no such program")
        with contextlib.ExitStack() as stack:
            # Copies above all targets, so that none is overwritten before it is in its place.
            said, *sources = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (output, *pass_fds))
            for fd in (said, *sources):
                stack.callback(os.close, fd)
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, said, 1),
                (os.POSIX_SPAWN_DUP2, said, 2),
                *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(sources, start=3)),
            ]
            return os.posix_spawn(
                program,
                list(argv),
                dict(os.environ),
                file_actions=actions,
                setsid=True,
                setsigdef=[signal.SIGPIPE],
            )
    except OSError as error:
        raise UnavailableError(
            f"cannot be executed: {error.strerror}",
            subject=argv[0],
            hint="`hyper doctor` says what is missing",
        ) from error


async def _read_bounded(stream: asyncio.StreamReader | None) -> bytes:
    """To the end, so that the child never blocks; what is beyond the bound is dropped."""
    kept = bytearray()
    while stream is not None and (data := await stream.read(65536)):
        kept += data[: MAX_OUTPUT_BYTES - len(kept)]
    return bytes(kept)


async def _write_all(stream: asyncio.StreamWriter | None, data: bytes | None) -> None:
    if stream is None or data is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a child need not read it all
        stream.write(data)
        await stream.drain()
        stream.close()
        await stream.wait_closed()
