# SPDX-License-Identifier: Apache-2.0
"""`hyper volume export`, `import` and `init`."""

import os
import stat
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from hyper.v1 import volume_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, options, pipes, tree
from hyperctl.errors import CliError
from hyperctl.pipes import STANDARD
from hyperctl.progress import ByteProgress

INIT_EPILOG = """\b
Examples:
  hyper volume init site ./public                       what is in a directory
  hyper volume init data dump.tar.gz                    what is in a tar, or - for standard input
  hyper volume init data https://example.org/data.tar
  hyper volume init src https://example.org/project.git#v1.2"""

app = tree.group()
Volume = Annotated[
    str,
    typer.Argument(metavar="VOLUME", help="Name", autocompletion=completion.volumes, show_default=False),
]


@tree.command(app, "export")
def export(
    volume: Volume,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Instead of standard output [-]")
    ] = STANDARD,
) -> int:
    """Write a volume as a tar stream: a snapshot of its disk. A file appears whole, or not at all."""
    pipes.refuse_terminal_output("export", "a volume", output)
    with pipes.open_output(output) as fd:
        hyperd.run(_export(volume, fd, output))
    return 0


async def _export(volume: str, fd: int, place: str) -> None:
    async with hyperd.connect() as client:
        call = client.volumes.ExportVolume(pb.ExportVolumeRequest(volume=volume))
        await pipes.write_stream(call, fd, place, "exported")


@tree.command(app, "import")
def import_(
    volume: Annotated[
        str, typer.Argument(metavar="[VOLUME]", help="Its name [made up]", show_default=False)
    ] = "",
    *,
    source: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="Instead of standard input [-]")
    ] = STANDARD,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Set a label")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the name, also on a terminal")] = False,
) -> int:
    """Make a volume of what `hyper volume export` wrote, and print its name."""
    pipes.refuse_terminal_input("import", "a volume", source)
    first = pb.ImportVolumeRequest(volume=volume, labels=options.parse_pairs("--label", label or []))
    with pipes.open_input(source) as fd:
        made = _import(fd, source, first, quiet=quiet)
    print(made.name)
    return 0


def _import(fd: int, place: str, first: pb.ImportVolumeRequest, *, quiet: bool) -> pb.Volume:
    from hyper.v1 import volume_pb2_grpc

    about = os.fstat(fd)
    total_bytes = about.st_size if stat.S_ISREG(about.st_mode) else 0
    progress = ByteProgress(sys.stderr, "imported", total_bytes=total_bytes, quiet=quiet)
    reading = pipes.Input(fd, place, progress.add)

    def requests() -> Iterator[pb.ImportVolumeRequest]:
        yield first
        for data in reading.chunks():
            yield pb.ImportVolumeRequest(data=data)

    try:
        with reading.errors(), hyperd.connect_blocking() as channel:
            return volume_pb2_grpc.VolumeServiceStub(channel).ImportVolume(requests()).volume
    finally:
        progress.finish()


@tree.command(app, "init", epilog=INIT_EPILOG)
def init(
    volume: Volume,
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIRECTORY|TAR|URL|-", help="Where what is put into it comes from", show_default=False
        ),
    ],
    *,
    archive: Annotated[bool, typer.Option("--archive", "-a", help="Owners as there; else root's")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress")] = False,
) -> int:
    """Fill a volume that no container writes to: from a directory, a tar, a URL or a git repository."""
    from hyperctl.volume_source import open_source

    first = pb.FillVolumeRequest(volume=volume, keep_owner=archive)
    progress = ByteProgress(sys.stderr, "copied", quiet=quiet)
    failed: list[CliError] = []
    with open_source(source, quiet=quiet) as chunks:
        try:
            _fill(first, chunks, progress, failed)
        except CliError as error:
            raise failed[0] if failed else error from None
        finally:
            progress.finish()
    print(volume)
    return 0


def _fill(
    first: pb.FillVolumeRequest, chunks: Iterator[bytes], progress: ByteProgress, failed: list[CliError]
) -> None:
    """``failed``: what could not be read here; it says more than the half upload's end, and grpc would swallow it."""
    from hyper.v1 import volume_pb2_grpc

    def requests() -> Iterator[pb.FillVolumeRequest]:
        yield first
        try:
            for data in chunks:
                yield pb.FillVolumeRequest(data=data)
                progress.add(len(data))
            yield pb.FillVolumeRequest(end=True)
        except CliError as error:
            failed.append(error)
            raise

    with hyperd.rpc_errors(hyperd.socket_path()), hyperd.connect_blocking() as channel:
        volume_pb2_grpc.VolumeServiceStub(channel).FillVolume(requests())
