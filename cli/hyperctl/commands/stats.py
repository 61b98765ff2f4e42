# SPDX-License-Identifier: Apache-2.0
"""`hyper stats`."""

import asyncio
import sys
from typing import Annotated

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, stats_shape, tree
from hyperctl.client import Client
from hyperctl.output import print_rows, render_rows

EVERY_S = 1.0
_HOME, _CLEAR_LINE_END, _CLEAR_BELOW = "\033[H", "\033[K", "\033[J"

EPILOG = """\b
Examples:
  hyper stats                            all that run, until ctrl-c
  hyper stats --no-stream web db
  hyper stats --no-stream --format '{{.Name}}: {{.CPUPerc}} {{.HostMem}}'"""

app = tree.group()


@tree.command(app, "stats", epilog=EPILOG)
def stats(
    containers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONTAINER...]",
            help="Ids or names; none: all that run",
            autocompletion=completion.containers,
            show_default=False,
        ),
    ] = None,
    *,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Also those that do not run")] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="json, table, or a template", show_default=False)
    ] = "",
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Once: what was used within a second")
    ] = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Whole ids")] = False,
) -> int:
    """Show what containers use, anew each second."""
    request = pb.GetStatsRequest(containers=containers or (), all=show_all)

    async def watch(client: Client) -> int:
        before: dict[str, pb.ContainerStats] = {}
        first = True
        while True:
            response = await client.containers.GetStats(request, timeout=hyperd.QUERY_TIMEOUT_S)
            now = list(response.stats)
            if not (first and no_stream):
                rows = stats_shape.stats_rows(now, before, truncate=not no_trunc)
                columns, headers = stats_shape.COLUMNS, stats_shape.HEADERS
                _show(render_rows(rows, columns=columns, headers=headers, form=form), anew=not no_stream)
            if no_stream and not first:
                return 0
            before, first = {each.container_id: each for each in now}, False
            await asyncio.sleep(EVERY_S)

    return hyperd.ask(watch)


def _show(text: str, *, anew: bool) -> None:
    """``anew``: on a terminal, in the place of what was shown before."""
    if anew and sys.stdout.isatty():
        lines = "".join(f"{line}{_CLEAR_LINE_END}\n" for line in text.splitlines())
        sys.stdout.write(f"{_HOME}{lines}{_CLEAR_BELOW}")
    else:
        print_rows(text)
    sys.stdout.flush()
