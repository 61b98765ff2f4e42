# SPDX-License-Identifier: Apache-2.0
"""`hyper template ls`, `build` and `rm`."""

import sys
import time
from typing import Annotated

import typer

from hyper.v1 import snapshot_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, options, tree
from hyperctl.errors import InvalidError
from hyperctl.output import print_listing
from hyperctl.snapshot_shape import TEMPLATE_COLUMNS, TEMPLATE_HEADERS, template_row

app = tree.group()


@tree.command(app, "ls")
def ls(
    *,
    quiet: flags.OnlyIds = False,
    no_trunc: flags.WholeIds = False,
    form: flags.RowsFormat = "",
) -> int:
    """List templates."""
    response = hyperd.ask(
        lambda client: client.templates.ListTemplates(
            pb.ListTemplatesRequest(), timeout=hyperd.QUERY_TIMEOUT_S
        )
    )
    now_s = time.time()
    rows = [template_row(template, now_s=now_s, truncate=not no_trunc) for template in response.templates]
    print_listing(
        rows, columns=TEMPLATE_COLUMNS, headers=TEMPLATE_HEADERS, form=form, only="ID" if quiet else ""
    )
    return 0


@tree.command(app, "build")
def build(
    *,
    cpus: Annotated[
        str, typer.Option("--cpus", metavar="NUMBER", help="CPUs of the machine", show_default=False)
    ] = "",
    memory: Annotated[
        str,
        typer.Option(
            "--memory", "-m", metavar="SIZE", help="Memory of the machine: 512m, 2g", show_default=False
        ),
    ] = "",
) -> int:
    """Make the templates for a size of machine, unless they are there, and print their ids."""
    request = pb.BuildTemplateRequest(
        vcpus=options.parse_integer("--cpus", cpus, minimum=1) if cpus else 0,
        memory_mib=_parse_memory_mib(memory) if memory else 0,
    )
    response = hyperd.ask(lambda client: client.templates.BuildTemplate(request))
    for template in response.templates:
        print(template.id, flush=True)
    if sys.stderr.isatty():
        print(f"took {response.duration_ms} ms", file=sys.stderr)
    return 0


def _parse_memory_mib(text: str) -> int:
    memory_mib = options.parse_size("--memory", text) >> 20
    if not 0 < memory_mib < 2**32:
        raise InvalidError(f"invalid argument {text!r}: not the memory of a machine", subject="--memory")
    return memory_mib


@tree.command(app, "rm")
def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="TEMPLATE...", help="Ids", autocompletion=completion.templates, show_default=False
        ),
    ],
) -> int:
    """Remove templates. Containers that were started from them go on; the next start makes a new one."""

    async def work() -> int:
        async with hyperd.connect() as client:
            return await hyperd.for_each(
                client,
                names,
                lambda name: client.templates.RemoveTemplate(pb.RemoveTemplateRequest(template=name)),
            )

    return hyperd.run(work())
