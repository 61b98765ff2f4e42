# SPDX-License-Identifier: Apache-2.0
"""`hyper cp`."""

import sys
from typing import Annotated

import typer

from hyperctl import tree
from hyperctl.errors import InvalidError
from hyperctl.places import STANDARD, parse_place

EPILOG = """\b
Examples:
  hyper cp web:/etc/nginx ./nginx      a directory, under a new name unless ./nginx exists
  hyper cp ./site/. web:/srv/site      what is in a directory
  hyper cp web:/var/log - | tar t"""

app = tree.group()


@tree.command(app, "cp", epilog=EPILOG)
def cp(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="PATH, CONTAINER:PATH or -", show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="PATH, CONTAINER:PATH or -", show_default=False)
    ],
    *,
    archive: Annotated[
        bool, typer.Option("--archive", "-a", help="Keep owners, links that lead out, as root set-id bits")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow-link", "-L", help="Copy what SOURCE points to, if it is a link")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing is told on a terminal")] = False,
) -> int:
    """Copy files between a container, running or stopped, and this host. `-` is a tar on a standard stream."""
    if not source:
        raise InvalidError("source can not be empty", subject="cp")
    if not target:
        raise InvalidError("destination can not be empty", subject="cp")
    here, there = parse_place(source), parse_place(target)
    quiet = quiet or not sys.stdout.isatty()
    if here.container and there.container:
        raise InvalidError("copying between containers is not supported", subject="cp")
    if here.container:
        from hyperctl.copy_out import copy_out

        return copy_out(here, there.path, archive=archive, follow=follow, quiet=quiet)
    if there.container:
        from hyperctl.copy_in import copy_in

        return copy_in(here.path, there, keep_owner=archive, follow=follow, quiet=quiet)
    hint = "write CONTAINER:PATH" if STANDARD in {source, target} else "one of both is CONTAINER:PATH"
    raise InvalidError("must specify at least one container source", subject="cp", hint=hint)
