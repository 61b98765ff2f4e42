# SPDX-License-Identifier: Apache-2.0
"""`hyper ps`."""

import time
from typing import Annotated

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import flags, options, tree
from hyperctl.output import print_listing
from hyperctl.shape import CONTAINER_COLUMNS, CONTAINER_HEADERS, container_row

FILTERS = ("id", "name", "label", "status", "ancestor", "exited", "before", "since", "volume")

EPILOG = """\b
Examples:
  hyper ps -a -f status=exited -f label=team=web
  hyper ps --format 'table {{.Names}}\\t{{.Status}}'"""

app = tree.group()


@tree.command(app, "ps", epilog=EPILOG)
def ps(
    *,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Also those that do not run")] = False,
    quiet: flags.OnlyIds = False,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", metavar="KEY=VALUE", help=f"By {', '.join(FILTERS)}"),
    ] = None,
    form: flags.RowsFormat = "",
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Whole ids and commands")] = False,
    last: Annotated[
        str, typer.Option("--last", "-n", metavar="NUMBER", help="The newest ones, whatever their state")
    ] = "",
    latest: Annotated[
        bool, typer.Option("--latest", "-l", help="The newest one, whatever its state")
    ] = False,
) -> int:
    """List containers."""
    limit = options.parse_integer("--last", last, minimum=-1) if last else -1
    if latest and limit < 0:
        limit = 1
    chosen = [pb.Filter(key=key, value=value) for key, value in options.parse_filters(filters or [], FILTERS)]
    request = pb.ListContainersRequest(all=show_all or limit >= 0, filters=chosen)
    containers = hyperd.ask(lambda client: client.list_containers(request))
    containers = containers[: limit if limit >= 0 else None]
    now_s = time.time()
    rows = [container_row(container, now_s=now_s, truncate=not no_trunc) for container in containers]
    print_listing(
        rows, columns=CONTAINER_COLUMNS, headers=CONTAINER_HEADERS, form=form, only="ID" if quiet else ""
    )
    return 0
