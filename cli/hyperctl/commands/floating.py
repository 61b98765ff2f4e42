# SPDX-License-Identifier: Apache-2.0
"""`hyper fip allocate`, `ls`, `attach`, `detach`, `name` and `release`."""

from typing import Annotated

import typer

from hyper.v1 import policy_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, options, tree
from hyperctl.names import SHORT_ID
from hyperctl.output import print_rows, render_rows

HEADERS = {"Address": "FLOATING IP", "Name": "NAME", "Container": "CONTAINER", "ID": "CONTAINER ID"}
COLUMNS = ("Address", "Name", "Container")
EPILOG = """\b
Examples:
  hyper fip allocate 1
  hyper fip attach 203.0.113.5 web
  hyper fip detach web"""

app = tree.group()

Floating = Annotated[str, typer.Argument(metavar="FIP", help="Address or name", show_default=False)]
Container = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
    ),
]


@tree.command(app, "allocate", epilog=EPILOG)
def allocate(
    count: Annotated[str, typer.Argument(metavar="[COUNT]", help="How many [1]", show_default=False)] = "1",
    *,
    pick: Annotated[str, typer.Option("--pick", metavar="ADDRESS", help="This one", show_default=False)] = "",
) -> int:
    """Take addresses out of the pools of the configuration, and print them."""
    request = pb.AllocateFloatingRequest(
        count=options.parse_integer("COUNT", count, minimum=1, maximum=4096), wanted=pick
    )
    response = hyperd.ask(lambda client: client.floating.AllocateFloating(request))
    print_rows("\n".join(each.address for each in response.addresses))
    return 0


@tree.command(app, "ls")
def ls(
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only addresses")] = False,
    form: flags.RowsFormat = "",
) -> int:
    """List the addresses that are allocated, and who has them."""
    response = hyperd.ask(
        lambda client: client.floating.ListFloating(pb.ListFloatingRequest(), timeout=hyperd.QUERY_TIMEOUT_S)
    )
    if quiet:
        print_rows("\n".join(each.address for each in response.addresses))
        return 0
    rows = [
        {
            "Address": each.address,
            "Name": each.name,
            "Container": each.container_name,
            "ID": each.container_id[:SHORT_ID],
        }
        for each in response.addresses
    ]
    print_rows(render_rows(rows, columns=COLUMNS, headers=HEADERS, form=form))
    return 0


@tree.command(app, "attach")
def attach(
    floating: Floating,
    container: Container,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="Whoever has it loses it")] = False,
) -> int:
    """Lend an address to a container: what is sent there comes to it, what it begins comes from there."""
    request = pb.AttachFloatingRequest(floating=floating, container=container, force=force)
    print(hyperd.ask(lambda client: client.floating.AttachFloating(request)).address.address)
    return 0


@tree.command(app, "detach")
def detach(container: Container) -> int:
    """Take its address from a container, and print it. It stays allocated."""
    request = pb.DetachFloatingRequest(container=container)
    print(hyperd.ask(lambda client: client.floating.DetachFloating(request)).address.address)
    return 0


@tree.command(app, "name")
def name(
    floating: Floating,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Left out: none", show_default=False)] = "",
) -> int:
    """Give an address a name, or take it away."""
    request = pb.NameFloatingRequest(floating=floating, name=name)
    print(hyperd.ask(lambda client: client.floating.NameFloating(request)).address.address)
    return 0


@tree.command(app, "release")
def release(
    addresses: Annotated[
        list[str], typer.Argument(metavar="FIP...", help="Addresses or names", show_default=False)
    ],
) -> int:
    """Give addresses back to the pools. One that a container has stays."""

    async def work() -> int:
        async with hyperd.connect() as client:
            return await hyperd.for_each(
                client,
                addresses,
                lambda each: client.floating.ReleaseFloating(pb.ReleaseFloatingRequest(floating=each)),
            )

    return hyperd.run(work())
