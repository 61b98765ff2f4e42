# SPDX-License-Identifier: Apache-2.0
"""`hyper port`, and `hyper port add`, `rm` and `ls`."""

from collections.abc import Iterable
from typing import Annotated

import typer

from hyper.v1 import container_pb2 as pb
from hyper.v1 import network_pb2
from hyperctl import client as hyperd
from hyperctl import completion, flags, ports, tree
from hyperctl.errors import NOT_FOUND, CliError, InvalidError
from hyperctl.output import print_rows, render_rows

HEADERS = {"Names": "NAMES", "Port": "PORT", "Published": "PUBLISHED AT"}

app = tree.group()

Container = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
    ),
]


@tree.command(app, "show")
def show(
    container: Container,
    port: Annotated[
        str, typer.Argument(metavar="[PORT[/PROTOCOL]]", help="Of the container", show_default=False)
    ] = "",
) -> int:
    """Show where the ports of a container are published, or one of them.

    `hyper port add`, `hyper port rm` and `hyper port ls` change and list them; a container of such a name is meant
    by `hyper port show NAME`.
    """
    return _show(container, ports.parse_port(port) if port else None)


def _show(container: str, wanted: tuple[int, str] | None) -> int:
    request = pb.InspectContainerRequest(container=container)
    response = hyperd.ask(
        lambda client: client.containers.InspectContainer(request, timeout=hyperd.QUERY_TIMEOUT_S)
    )
    published = [
        entry
        for entry in response.container.ports
        if wanted is None or (entry.container_port, entry.protocol) == wanted
    ]
    if wanted is not None and not published:
        raise CliError(
            f"its port {wanted[0]}/{wanted[1]} is not published",
            subject=f"container {container}",
            exit_status=NOT_FOUND,
        )
    if wanted is None:
        _print(published)
    else:
        print_rows("\n".join(f"{ports.show_ip(entry.host_ip)}:{entry.host_port}" for entry in published))
    return 0


@tree.command(app, "add")
def add(
    container: Container,
    published: Annotated[
        list[str],
        typer.Argument(
            metavar="[[IP:]HOST:]PORT[/PROTOCOL]...", help="As `--publish` has it", show_default=False
        ),
    ],
) -> int:
    """Publish further ports of a running container, until it stops."""
    request = network_pb2.PublishPortsRequest(container=container, ports=ports.parse_published(published))
    _print(hyperd.ask(lambda client: client.networks.PublishPorts(request)).ports)
    return 0


@tree.command(app, "rm")
def rm(
    container: Container,
    unpublished: Annotated[
        list[str],
        typer.Argument(
            metavar="[HOST:]PORT[/PROTOCOL]...",
            help="Of the container, wherever or there",
            show_default=False,
        ),
    ],
) -> int:
    """Take published ports of a running container back. Connections over them end."""
    request = network_pb2.UnpublishPortsRequest(
        container=container, ports=ports.parse_unpublished(unpublished)
    )
    _print(hyperd.ask(lambda client: client.networks.UnpublishPorts(request)).ports)
    return 0


@tree.command(app, "ls")
def ls(
    container: Annotated[
        str,
        typer.Argument(
            metavar="[CONTAINER]",
            help="Only its, as `hyper port CONTAINER`",
            autocompletion=completion.containers,
            show_default=False,
        ),
    ] = "",
    *,
    form: flags.RowsFormat = "",
) -> int:
    """List the published ports of all containers, or of one."""
    if container:
        if form:
            raise InvalidError("is for all containers' ports", subject="--format")
        return _show(container, None)
    request = pb.ListContainersRequest(all=True)
    containers = hyperd.ask(lambda client: client.list_containers(request))
    rows = [
        {
            "Names": container.name,
            "Port": f"{port.container_port}/{port.protocol}",
            "Published": f"{ports.show_ip(port.host_ip)}:{port.host_port}",
        }
        for container in containers
        for port in container.ports
    ]
    print_rows(render_rows(rows, columns=tuple(HEADERS), headers=HEADERS, form=form))
    return 0


def _print(published: Iterable[pb.PublishedPort]) -> None:
    print_rows(
        "\n".join(
            f"{port.container_port}/{port.protocol} -> {ports.show_ip(port.host_ip)}:{port.host_port}"
            for port in published
        )
    )
