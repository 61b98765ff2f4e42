# SPDX-License-Identifier: Apache-2.0
"""`hyper volume create`, `resize`, `ls`, `inspect`, `rm` and `prune`."""

import time
from typing import Annotated

import typer

from hyper.v1 import volume_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, options, pruning, several, tree
from hyperctl.client import Client
from hyperctl.errors import NOT_FOUND, InvalidError
from hyperctl.output import print_rows, render_rows
from hyperctl.render import render_size
from hyperctl.several import Document
from hyperctl.volume_shape import VOLUME_COLUMNS, VOLUME_HEADERS, volume_document, volume_row

SHARED = "virtiofs"
FILTERS = ("name", "label", "driver", "dangling")

CREATE_EPILOG = """\b
Examples:
  hyper volume create pgdata --size 20g
  hyper run -d -v pgdata:/var/lib/postgresql/data postgres
  hyper run --rm -v pgdata:/data:ro alpine ls /data      once that has stopped, or is read-only too
  hyper volume create pgtest --snapshot before-upgrade"""

RESIZE_EPILOG = """\b
Examples:
  hyper volume resize pgdata 40g"""

app = tree.group()

Names = Annotated[
    list[str],
    typer.Argument(metavar="VOLUME...", help="Names", autocompletion=completion.volumes, show_default=False),
]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", metavar="KEY=VALUE", help="name, label, driver, dangling"),
]


@tree.command(app, "create", epilog=CREATE_EPILOG)
def create(
    volume: Annotated[
        str, typer.Argument(metavar="[VOLUME]", help="Its name [made up]", show_default=False)
    ] = "",
    *,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The same", show_default=False)] = "",
    size: Annotated[
        str, typer.Option("--size", "-s", metavar="SIZE", help="As the guest sees it: 500m, 20g [10g]")
    ] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Set a label")
    ] = None,
    filesystem: Annotated[str, typer.Option("--fs", metavar="TYPE", help="ext4 or xfs [ext4]")] = "",
    shared: Annotated[
        bool, typer.Option("--shared", help="A directory of the host, written to by many at a time")
    ] = False,
    driver: Annotated[
        str, typer.Option("--driver", "-d", metavar="DRIVER", help="local, nbd, iscsi or rbd [local]")
    ] = "",
    opt: Annotated[
        list[str] | None,
        typer.Option(
            "--opt",
            "-o",
            metavar="KEY=VALUE",
            help="local: size; nbd: server, export; iscsi: server, target, lun, user, password-file; "
            "rbd: server, pool, image, namespace, user, key-file; all but local: format",
        ),
    ] = None,
    snapshot: Annotated[
        str, typer.Option("--snapshot", metavar="SNAPSHOT", help="Begin as this snapshot of a volume")
    ] = "",
) -> int:
    """Make a volume: a disk of its own that outlives containers. Of one that is there only the name is printed."""
    if volume and name and volume != name:
        raise InvalidError("two names were given", subject=f"{volume}, {name}")
    driver_options = options.parse_pairs("--opt", opt or [])
    size = size or driver_options.pop("size", "")
    if shared and filesystem not in {"", SHARED}:
        raise InvalidError("a shared volume has no file system of its own", subject=f"--fs {filesystem}")
    request = pb.CreateVolumeRequest(
        name=volume or name,
        driver=driver,
        size_bytes=options.parse_size("--size", size) if size else 0,
        filesystem=SHARED if shared else filesystem,
        labels=options.parse_pairs("--label", label or []),
        options=driver_options,
        snapshot=snapshot,
    )
    made = hyperd.ask(lambda client: client.volumes.CreateVolume(request)).volume
    print(made.name)
    return 0


@tree.command(app, "resize", epilog=RESIZE_EPILOG)
def resize(
    volume: Annotated[
        str,
        typer.Argument(metavar="VOLUME", help="Name", autocompletion=completion.volumes, show_default=False),
    ],
    size: Annotated[str, typer.Argument(metavar="SIZE", help="The new one: 500m, 20g", show_default=False)],
) -> int:
    """Make a volume larger, also while a container writes to it. None becomes smaller."""
    request = pb.ResizeVolumeRequest(volume=volume, size_bytes=options.parse_size("SIZE", size))
    print(hyperd.ask(lambda client: client.volumes.ResizeVolume(request)).volume.name)
    return 0


@tree.command(app, "ls")
def ls(
    *,
    filters: Filters = None,
    quiet: flags.OnlyNames = False,
    form: flags.RowsFormat = "",
) -> int:
    """List volumes."""
    request = pb.ListVolumesRequest(filters=_filters(filters))
    found = hyperd.ask(
        lambda client: client.volumes.ListVolumes(request, timeout=hyperd.QUERY_TIMEOUT_S)
    ).volumes
    now_s = time.time()
    if quiet:
        print_rows("\n".join(volume.name for volume in found))
    else:
        rows = [volume_row(volume, now_s=now_s) for volume in found]
        print_rows(render_rows(rows, columns=VOLUME_COLUMNS, headers=VOLUME_HEADERS, form=form))
    return 0


@tree.command(app, "inspect")
def inspect(
    names: Names,
    *,
    form: flags.DocumentsFormat = "",
) -> int:
    """Show everything about volumes."""

    async def find(client: Client, name: str) -> Document:
        request = pb.InspectVolumeRequest(volume=name)
        return volume_document(
            (await client.volumes.InspectVolume(request, timeout=hyperd.QUERY_TIMEOUT_S)).volume
        )

    return several.inspect(names, form, find)


@tree.command(app, "rm")
def rm(
    names: Names,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="One that is not there is no failure")] = False,
) -> int:
    """Remove volumes that no container has. What is in them is gone."""
    return several.remove(
        names,
        lambda client, name: client.volumes.RemoveVolume(pb.RemoveVolumeRequest(volume=name)),
        forgiven=frozenset({NOT_FOUND}) if force else frozenset(),
    )


@tree.command(app, "prune")
def prune(
    *,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Named volumes too")] = False,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", metavar="label=KEY[=VALUE]", help="Only such")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask")] = False,
) -> int:
    """Remove the anonymous volumes that no container has."""
    chosen = _filters(filters)
    what = "all" if everything else "anonymous"
    pruning.require_consent(
        f"WARNING! This will remove {what} local volumes not used by at least one container.",
        "volume prune",
        force=force,
    )
    request = pb.PruneVolumesRequest(all=everything, filters=chosen)
    pruned = hyperd.ask(lambda client: client.volumes.PruneVolumes(request))
    for name in pruned.removed:
        print(name)
    print(f"Total reclaimed space: {render_size(pruned.reclaimed_bytes)}")
    return 0


def _filters(texts: list[str] | None) -> list[pb.VolumeFilter]:
    return [
        pb.VolumeFilter(key=key, value=value) for key, value in options.parse_filters(texts or [], FILTERS)
    ]
