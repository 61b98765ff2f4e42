# SPDX-License-Identifier: Apache-2.0
"""`hyper snapshot create`, `ls`, `inspect` and `rm`; `export` and `import` are in transfer.py."""

import sys
import time
from typing import Annotated

import typer

from hyper.v1 import snapshot_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, several, tree
from hyperctl.client import Client
from hyperctl.errors import InvalidError
from hyperctl.output import print_listing
from hyperctl.several import Document
from hyperctl.snapshot_shape import SNAPSHOT_COLUMNS, SNAPSHOT_HEADERS, snapshot_document, snapshot_row

CREATE_EPILOG = """\b
Examples:
  hyper snapshot create web --name before-upgrade
  hyper run --from-snapshot before-upgrade -n 3
  hyper rollback web before-upgrade
  hyper snapshot create --volume pgdata --name before-upgrade"""

app = tree.group()

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="SNAPSHOT...", help="Names or ids", autocompletion=completion.snapshots, show_default=False
    ),
]


@tree.command(app, "create", epilog=CREATE_EPILOG)
def create(
    container: Annotated[
        str,
        typer.Argument(
            metavar="[CONTAINER]",
            help="Name or id of one that runs or is paused",
            autocompletion=completion.running_containers,
            show_default=False,
        ),
    ] = "",
    *,
    volume: Annotated[
        str,
        typer.Option(
            "--volume",
            metavar="VOLUME",
            help="Instead of a container",
            autocompletion=completion.volumes,
            show_default=False,
        ),
    ] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Name of the snapshot", show_default=False)
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the id, also on a terminal")] = False,
) -> int:
    """Save a running container: memory, disk and configuration; or a volume. It goes on by itself."""
    if bool(container) == bool(volume):
        raise InvalidError(
            "is of a container or of a volume", subject="a snapshot", hint="CONTAINER, or --volume"
        )
    request = pb.CreateSnapshotRequest(container=container, name=name, volume=volume)
    snapshot = hyperd.ask(lambda client: client.snapshots.CreateSnapshot(request)).snapshot
    print(snapshot.id, flush=True)
    if not quiet and container:
        tell_pause(snapshot.pause_ms)
    return 0


def tell_pause(pause_ms: int) -> None:
    """How long the source stood still: for a person, so never into a pipe or a file."""
    if sys.stderr.isatty():
        print(f"paused {pause_ms} ms", file=sys.stderr)


@tree.command(app, "ls")
def ls(
    *,
    quiet: flags.OnlyIds = False,
    no_trunc: flags.WholeIds = False,
    form: flags.RowsFormat = "",
) -> int:
    """List snapshots."""
    response = hyperd.ask(
        lambda client: client.snapshots.ListSnapshots(
            pb.ListSnapshotsRequest(), timeout=hyperd.QUERY_TIMEOUT_S
        )
    )
    now_s = time.time()
    rows = [snapshot_row(snapshot, now_s=now_s, truncate=not no_trunc) for snapshot in response.snapshots]
    print_listing(
        rows, columns=SNAPSHOT_COLUMNS, headers=SNAPSHOT_HEADERS, form=form, only="ID" if quiet else ""
    )
    return 0


@tree.command(app, "inspect")
def inspect(
    names: Names,
    *,
    form: flags.DocumentsFormat = "",
) -> int:
    """Show everything about snapshots."""

    async def find(client: Client, name: str) -> Document:
        request = pb.InspectSnapshotRequest(snapshot=name)
        return snapshot_document(
            (await client.snapshots.InspectSnapshot(request, timeout=hyperd.QUERY_TIMEOUT_S)).snapshot
        )

    return several.inspect(names, form, find)


@tree.command(app, "rm")
def rm(names: Names) -> int:
    """Remove snapshots. Containers that were made from them go on."""
    return several.remove(
        names, lambda client, name: client.snapshots.RemoveSnapshot(pb.RemoveSnapshotRequest(snapshot=name))
    )
