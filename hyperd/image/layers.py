# SPDX-License-Identifier: Apache-2.0
"""Layers as EROFS files, one for each diff_id, made straight from the tar stream.

mkfs.erofs parses what a stranger wrote, so it runs as nobody, without privileges, with bounded memory, and
touches no path: the tar comes through a pipe, the file goes out through a descriptor. The tar is never unpacked
on the host. The file gets its name only after the stream's hash was seen to be the diff_id.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import ExhaustedError, HyperError, InvalidError, UnavailableError
from hyperd.host import files, process
from hyperd.host.workers import Workers
from hyperd.image.content import hex_of
from hyperd.image.disk import filesystem_uuid, padded
from hyperd.image.examine import fault_in
from hyperd.image.stream import LayerStream, Limits, Streamed
from hyperd.image.waiting import in_time
from hyperd.model.image import Digest

SUFFIX = ".erofs"
CONVERT_TIMEOUT_S = 1800.0
MAX_MEMORY_BYTES = 4 << 30
PIPE_BYTES = 1 << 20
ENVIRONMENT = {"PATH": f"/usr/sbin:/sbin:{os.defpath}", "LC_ALL": "C"}
_CANNOT_RUN = frozenset({125, 126, 127})  # said by prlimit and setpriv
_NO_SPACE = ("No space left", "ENOSPC", "File too large")


@dataclass(frozen=True, slots=True)
class LayerFile:
    diff_id: Digest
    size_bytes: int  # of the tar
    stored_bytes: int  # of the EROFS file, its padding not counted


class Layers:
    """``run_as``: (uid, gid) of mkfs.erofs; None keeps the daemon's own, for a daemon that is not root."""

    def __init__(
        self,
        root: Path,
        temporary: Path,
        *,
        mkfs: str,
        run_as: tuple[int, int] | None,
        limits: Limits,
        parallel: int,
    ) -> None:
        self.root = root
        self._temporary = temporary
        self._mkfs = mkfs
        self.run_as = run_as
        self.limits = limits
        self._slots = asyncio.Semaphore(parallel)
        self._threads = Workers("image-layer", parallel)

    def path(self, diff_id: Digest) -> Path:
        return self.root / f"{hex_of(diff_id)}{SUFFIX}"

    def has(self, diff_id: Digest) -> bool:
        return self.path(diff_id).is_file()

    def close(self) -> None:
        self._threads.close()

    async def convert(self, diff_id: Digest, blob: Path, progress: Callable[[int], None]) -> LayerFile:
        """Make the layer's file; ``progress`` hears how much of the blob is read, on the event loop.

        Raises InvalidError (not what the config says, or not a layer), UnsupportedError, ExhaustedError,
        TimeoutExpiredError, UnavailableError (no mkfs.erofs). Nothing stays behind.
        """
        async with self._slots:
            output = self._temporary / f"layer-{secrets.token_hex(8)}"
            try:
                making = self._make(diff_id, blob, output, progress)
                streamed = await in_time(making, CONVERT_TIMEOUT_S, subject=diff_id)
                return await self._threads.call_while_wanted(
                    lambda _: self.publish(diff_id, streamed, output)
                )
            finally:
                await self._threads.call_to_the_end(output.unlink, missing_ok=True)

    async def verify(self, diff_id: Digest, blob: Path, progress: Callable[[int], None]) -> None:
        """See that the blob unpacks to the layer, and make nothing of it. Raises as ``convert``."""
        async with self._slots:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            stream = LayerStream(blob, self._temporary, nowhere, self.limits, _on_the_loop(progress))
            try:
                streamed = await in_time(self._threads.call(stream.run), CONVERT_TIMEOUT_S, subject=diff_id)
            finally:
                stream.stop()
            judged(diff_id, streamed, 0, "", "")

    async def _make(
        self, diff_id: Digest, blob: Path, output: Path, progress: Callable[[int], None]
    ) -> Streamed:
        async with contextlib.AsyncExitStack() as stack:
            with files.file_errors(output):
                target = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, target)
                if self.run_as is not None:
                    os.fchown(target, *self.run_as)
                reading, writing = os.pipe()
            stream = LayerStream(blob, self._temporary, writing, self.limits, _on_the_loop(progress))
            stack.callback(stream.stop)
            try:
                with contextlib.suppress(
                    OSError
                ):  # beyond the user's share of pipe memory: slower, not wrong
                    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                child = await stack.enter_async_context(
                    process.spawn(
                        self.filter_argv(diff_id, target), stdin=reading, pass_fds=(target,), env=ENVIRONMENT
                    )
                )
            finally:
                os.close(reading)  # or the stream would never see that the child is gone
            async with one_error(), asyncio.TaskGroup() as tasks:
                streaming = tasks.create_task(self._threads.call(stream.run))
                returncode, said = await end_of(child)
                if returncode != 0 and is_no_space(said):
                    stream.stop()
            fault = "" if returncode == 0 else await self._threads.call(fault_in, blob)
            return judged(diff_id, streaming.result(), returncode, said, fault)

    def filter_argv(self, diff_id: Digest, target: int) -> list[str]:
        """mkfs.erofs as nobody: a tar on standard input, the file on descriptor ``target``."""
        argv = [
            "prlimit",
            f"--as={MAX_MEMORY_BYTES}",
            # No --fsize: mkfs.erofs makes the file 2 TiB long for a moment, all of it a hole.
            "--core=0",
            self._mkfs,
            "--quiet",
            "--tar=f",
            "--aufs",  # .wh. files become what overlayfs understands
            # Data as it comes, each file's in blocks of its own: else all of it is written twice.
            *("--sort=none", "-Enoinline_data"),
            *("-T0", "--mkfs-time"),  # only the filesystem's own time: files keep theirs
            f"-U{filesystem_uuid(diff_id)}",
            f"/proc/self/fd/{target}",
        ]
        if self.run_as is None:
            return argv
        uid, gid = self.run_as
        drop = [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={gid}",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all",
            "--pdeathsig=KILL",  # on half a tar whose writer has gone it would spin for ever
        ]
        return [*drop, "--bounding-set=-all", *argv]

    def publish(self, diff_id: Digest, streamed: Streamed, output: Path) -> LayerFile:
        """Give a finished file its name. Blocks."""
        with files.file_errors(self.root):
            descriptor = os.open(output, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                stored = os.fstat(descriptor).st_size
                if stored == 0:
                    raise HyperError("mkfs.erofs made an empty file", subject=diff_id)
                if self.run_as is not None:
                    os.fchown(descriptor, os.geteuid(), os.getegid())
                os.fchmod(descriptor, 0o644)
                os.ftruncate(descriptor, padded(stored))
            finally:
                os.close(descriptor)
            files.publish(output, self.path(diff_id))
        return LayerFile(diff_id, streamed.size_bytes, stored)


def _on_the_loop(progress: Callable[[int], None]) -> Callable[[int], None]:
    """For another thread to tell."""
    loop = asyncio.get_running_loop()

    def report(count: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile, and nobody listens
            loop.call_soon_threadsafe(progress, count)

    return report


def is_no_space(said: str) -> bool:
    return any(word in said for word in _NO_SPACE)


def judged(diff_id: Digest, streamed: Streamed | None, returncode: int, said: str, fault: str) -> Streamed:
    """A wrong hash explains everything that mkfs.erofs may have said, so it comes first.

    ``fault``: what an examination of the tar has found, after mkfs.erofs failed.
    """
    if returncode != 0 and is_no_space(said):
        raise ExhaustedError("no space left for the layer", subject=diff_id, evidence=said)
    if streamed is None:
        raise HyperError("the layer's stream was stopped", subject=diff_id, evidence=said)
    if streamed.diff_id != diff_id:
        raise InvalidError(
            "the layer is not the one that the image's config names",
            subject=diff_id,
            evidence=f"its content is {streamed.diff_id}",
        )
    if returncode in _CANNOT_RUN or "unrecognized option" in said:
        raise UnavailableError(
            "mkfs.erofs cannot be run",
            subject=diff_id,
            evidence=said,
            hint="it must be of version 1.8 or later; `hyper doctor` says what is there",
        )
    if "Cannot allocate memory" in said:
        raise ExhaustedError("the layer has too many files", subject=diff_id, evidence=said)
    if streamed.complaint:
        raise InvalidError("the layer is not a tar archive", subject=diff_id, evidence=streamed.complaint)
    if returncode != 0 and fault:
        raise InvalidError("an entry of the layer cannot be unpacked", subject=diff_id, evidence=fault)
    if returncode < 0:
        raise UnavailableError(f"mkfs.erofs ended by signal {-returncode}", subject=diff_id, evidence=said)
    if returncode != 0:
        raise InvalidError("mkfs.erofs cannot read the layer", subject=diff_id, evidence=said)
    return streamed


async def end_of(child: asyncio.subprocess.Process) -> tuple[int, str]:
    _, stderr = await child.communicate()
    if child.returncode is None:
        raise HyperError("a finished child has no status", subject="mkfs.erofs")
    return child.returncode, stderr[-process.TAIL_BYTES :].decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def one_error() -> AsyncIterator[None]:
    """Let the first error of a task group out as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from first.__cause__
