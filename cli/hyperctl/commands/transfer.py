# SPDX-License-Identifier: Apache-2.0
"""`hyper snapshot export` and `import`."""

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hyper.v1 import snapshot_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, terminal, tree
from hyperctl.errors import CliError, InvalidError
from hyperctl.progress import ByteProgress
from hyperctl.streams import OutputStream

STANDARD = "-"
CHUNK_BYTES = 256 * 1024

app = tree.group()


@tree.command(app, "export")
def export(
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="SNAPSHOT", help="Name or id", autocompletion=completion.snapshots, show_default=False
        ),
    ],
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Instead of standard output [-]")
    ] = STANDARD,
) -> int:
    """Write a snapshot as a tar stream. A file appears whole, or not at all."""
    if output == STANDARD and terminal.is_terminal(1):
        raise InvalidError(
            "refusing to write a snapshot to a terminal", subject="export", hint="use -o FILE, or redirect"
        )
    with _open_output(output) as fd:
        hyperd.run(_export(snapshot, fd, output))
    return 0


async def _export(snapshot: str, fd: int, place: str) -> None:
    lost: list[OSError] = []
    out = OutputStream(fd, lost.append)
    progress = ByteProgress(sys.stderr, "exported")
    async with hyperd.connect() as client:
        call = client.snapshots.ExportSnapshot(pb.ExportSnapshotRequest(snapshot=snapshot))
        try:
            async for response in call:
                await out.write(response.data)
                progress.add(len(response.data))
                if lost:
                    break
            await out.finish()
        finally:
            call.cancel()
            progress.finish()
    for error in lost:
        if isinstance(error, BrokenPipeError):
            raise error
        raise CliError(f"cannot be written: {error.strerror or error}", subject=place) from error


@contextlib.contextmanager
def _open_output(path: str) -> Iterator[int]:
    """A descriptor to write to. A regular file gets its name when all went well."""
    if path == STANDARD:
        yield 1
        return
    place = Path(path)
    try:
        if place.exists() and not place.is_file():  # a pipe, /dev/null
            with place.open("wb", buffering=0) as file:
                yield file.fileno()
            return
        place = place.resolve()
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}.", delete=False) as draft:
            try:
                yield draft.fileno()
                Path(draft.name).replace(place)  # readable for its owner alone: it is the memory of a machine
            except BaseException:
                Path(draft.name).unlink()
                raise
    except OSError as error:
        raise InvalidError(f"cannot be written: {error.strerror}", subject=path) from error


@tree.command(app, "import")
def import_(
    *,
    source: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="Instead of standard input [-]")
    ] = STANDARD,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Instead of the one it has", show_default=False)
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the id, also on a terminal")] = False,
) -> int:
    """Take a snapshot that `hyper snapshot export` wrote, and print its id."""
    if source == STANDARD and terminal.is_terminal(0):
        raise InvalidError(
            "refusing to read a snapshot from a terminal", subject="import", hint="use -i FILE, or redirect"
        )
    with _open_input(source) as fd:
        snapshot = _import(fd, source, name, quiet=quiet)
    print(snapshot.id)
    return 0


def _import(fd: int, place: str, name: str, *, quiet: bool) -> pb.Snapshot:
    from hyper.v1 import snapshot_pb2_grpc

    about = os.fstat(fd)
    total_bytes = about.st_size if stat.S_ISREG(about.st_mode) else 0
    progress = ByteProgress(sys.stderr, "imported", total_bytes=total_bytes, quiet=quiet)
    lost: list[OSError] = []

    def requests() -> Iterator[pb.ImportSnapshotRequest]:
        yield pb.ImportSnapshotRequest(name=name)
        try:
            while data := os.read(fd, CHUNK_BYTES):
                yield pb.ImportSnapshotRequest(data=data)
                progress.add(len(data))
        except OSError as error:
            lost.append(error)
            raise

    try:
        with hyperd.connect_blocking() as channel:
            return snapshot_pb2_grpc.SnapshotServiceStub(channel).ImportSnapshot(requests()).snapshot
    except CliError as error:
        for cause in lost:
            raise CliError(f"cannot be read: {cause.strerror or cause}", subject=place) from error
        raise
    finally:
        progress.finish()


@contextlib.contextmanager
def _open_input(path: str) -> Iterator[int]:
    if path == STANDARD:
        yield 0
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", subject=path) from error
    try:
        yield fd
    finally:
        os.close(fd)
