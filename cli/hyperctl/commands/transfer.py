# SPDX-License-Identifier: Apache-2.0
"""`hyper snapshot export` and `import`."""

import os
import stat
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from hyper.v1 import snapshot_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, pipes, tree
from hyperctl.pipes import STANDARD
from hyperctl.progress import ByteProgress

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
    pipes.refuse_terminal_output("export", "a snapshot", output)
    with pipes.open_output(output) as fd:
        hyperd.run(_export(snapshot, fd, output))
    return 0


async def _export(snapshot: str, fd: int, place: str) -> None:
    async with hyperd.connect() as client:
        call = client.snapshots.ExportSnapshot(pb.ExportSnapshotRequest(snapshot=snapshot))
        await pipes.write_stream(call, fd, place, "exported")


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
    pipes.refuse_terminal_input("import", "a snapshot", source)
    with pipes.open_input(source) as fd:
        snapshot = _import(fd, source, name, quiet=quiet)
    print(snapshot.id)
    return 0


def _import(fd: int, place: str, name: str, *, quiet: bool) -> pb.Snapshot:
    from hyper.v1 import snapshot_pb2_grpc

    about = os.fstat(fd)
    total_bytes = about.st_size if stat.S_ISREG(about.st_mode) else 0
    progress = ByteProgress(sys.stderr, "imported", total_bytes=total_bytes, quiet=quiet)
    reading = pipes.Input(fd, place, progress.add)

    def requests() -> Iterator[pb.ImportSnapshotRequest]:
        yield pb.ImportSnapshotRequest(name=name)
        for data in reading.chunks():
            yield pb.ImportSnapshotRequest(data=data)

    try:
        with reading.errors(), hyperd.connect_blocking() as channel:
            return snapshot_pb2_grpc.SnapshotServiceStub(channel).ImportSnapshot(requests()).snapshot
    finally:
        progress.finish()
