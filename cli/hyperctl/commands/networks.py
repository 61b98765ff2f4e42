# SPDX-License-Identifier: Apache-2.0
"""`hyper network create`, `ls`, `inspect`, `rm`, `prune`, `connect` and `disconnect`."""

import sys
from typing import Annotated

import typer

from hyper.v1 import container_pb2
from hyper.v1 import network_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, options, pruning, several, tree
from hyperctl.client import Client
from hyperctl.endpoints import parse_priority
from hyperctl.errors import InvalidError
from hyperctl.network_shape import (
    NETWORK_COLUMNS,
    NETWORK_HEADERS,
    network_document,
    network_row,
)
from hyperctl.output import print_listing, print_rows
from hyperctl.several import Document

EPILOG = """\b
Examples:
  hyper network create backend
  hyper network create --subnet 10.220.0.0/24 --internal vault
  hyper run -d --network backend --name db postgres"""

app = tree.group()

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NETWORK...", help="Names or ids", autocompletion=completion.networks, show_default=False
    ),
]


@tree.command(app, "create", epilog=EPILOG)
def create(
    name: Annotated[str, typer.Argument(metavar="NETWORK", help="Its name", show_default=False)],
    *,
    subnet: Annotated[
        list[str] | None,
        typer.Option(
            "--subnet", metavar="CIDR", help="Its addresses, IPv4 and IPv6 one each", show_default=False
        ),
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option("--gateway", metavar="ADDRESS", help="Of the host, in a subnet", show_default=False),
    ] = None,
    ip_range: Annotated[
        str,
        typer.Option("--ip-range", metavar="CIDR", help="Give addresses out of it alone", show_default=False),
    ] = "",
    internal: Annotated[bool, typer.Option("--internal", help="No way out, and none in")] = False,
    mtu: Annotated[
        str, typer.Option("--mtu", metavar="BYTES", help="Of its interfaces", show_default=False)
    ] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Set a label", show_default=False)
    ] = None,
    opt: Annotated[
        list[str] | None,
        typer.Option("--opt", "-o", metavar="NAME=VALUE", help="mtu=BYTES", show_default=False),
    ] = None,
    driver: Annotated[str, typer.Option("--driver", "-d", metavar="bridge", help="bridge")] = "bridge",
    ipv6: Annotated[bool, typer.Option("--ipv6", help="IPv6, too")] = False,
) -> int:
    """Make a network, and print its id."""
    subnets, gateways = _by_version("--subnet", subnet or []), _by_version("--gateway", gateway or [])
    if driver != "bridge":
        raise InvalidError(f"invalid argument {driver!r}: only bridge is known", subject="--driver")
    chosen = dict(options.parse_pairs("--opt", opt or []))
    mtu = mtu or chosen.pop("mtu", "") or chosen.pop("com.docker.network.driver.mtu", "")
    if chosen:
        raise InvalidError(f"invalid argument {next(iter(chosen))!r}: only mtu is known", subject="--opt")
    spec = pb.NetworkSpec(
        name=name,
        subnet=subnets[4],
        gateway=gateways[4],
        ipv6=ipv6 or bool(subnets[6]),
        subnet6=subnets[6],
        gateway6=gateways[6],
        ip_range=ip_range,
        internal=internal,
        mtu=options.parse_integer("--mtu", mtu, minimum=1, maximum=65521) if mtu else 0,
        labels=options.parse_pairs("--label", label or []),
    )
    response = hyperd.ask(lambda client: client.networks.CreateNetwork(pb.CreateNetworkRequest(spec=spec)))
    print(response.network.id)
    return 0


def _by_version(flag: str, texts: list[str]) -> dict[int, str]:
    """Raises InvalidError for two of one kind."""
    found = {4: "", 6: ""}
    for text in texts:
        version = 6 if ":" in text else 4
        if found[version]:
            raise InvalidError(f"is given twice for IPv{version}", subject=f"{flag} {text}")
        found[version] = text
    return found


@tree.command(app, "ls")
def ls(
    *,
    quiet: flags.OnlyIds = False,
    no_trunc: flags.WholeIds = False,
    form: flags.RowsFormat = "",
) -> int:
    """List networks."""
    response = hyperd.ask(
        lambda client: client.networks.ListNetworks(pb.ListNetworksRequest(), timeout=hyperd.QUERY_TIMEOUT_S)
    )
    rows = [network_row(network, truncate=not no_trunc) for network in response.networks]
    print_listing(
        rows, columns=NETWORK_COLUMNS, headers=NETWORK_HEADERS, form=form, only="ID" if quiet else ""
    )
    return 0


@tree.command(app, "inspect")
def inspect(
    names: Names,
    *,
    form: flags.DocumentsFormat = "",
) -> int:
    """Show everything about networks."""

    async def find(client: Client, name: str) -> Document:
        request = pb.InspectNetworkRequest(network=name)
        return network_document(
            (await client.networks.InspectNetwork(request, timeout=hyperd.QUERY_TIMEOUT_S)).network
        )

    return several.inspect(names, form, find)


@tree.command(app, "rm")
def rm(names: Names) -> int:
    """Remove networks. One that containers are on stays, and they are named."""
    return several.remove(
        names, lambda client, name: client.networks.RemoveNetwork(pb.RemoveNetworkRequest(network=name))
    )


@tree.command(app, "prune")
def prune(*, force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask")] = False) -> int:
    """Remove the networks that no container is on, and print their names."""
    pruning.require_consent(
        "WARNING! This will remove all custom networks not used by at least one container.",
        "network prune",
        force=force,
    )
    response = hyperd.ask(lambda client: client.networks.PruneNetworks(pb.PruneNetworksRequest()))
    print_rows("\n".join(response.names))
    return 0


Network = Annotated[
    str, typer.Argument(metavar="NETWORK", autocompletion=completion.networks, show_default=False)
]
Container = Annotated[
    str,
    typer.Argument(metavar="CONTAINER", autocompletion=completion.containers, show_default=False),
]


@tree.command(app, "connect")
def connect(
    network: Network,
    container: Container,
    *,
    ip: Annotated[
        str, typer.Option("--ip", metavar="ADDRESS", help="Its IPv4 address there", show_default=False)
    ] = "",
    ip6: Annotated[
        str, typer.Option("--ip6", metavar="ADDRESS", help="Its IPv6 address there", show_default=False)
    ] = "",
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", metavar="NAME", help="A further name there", show_default=False),
    ] = None,
    mac_address: Annotated[
        str, typer.Option("--mac-address", metavar="MAC", help="Of its interface there", show_default=False)
    ] = "",
    gw_priority: Annotated[
        str,
        typer.Option(
            "--gw-priority", metavar="NUMBER", help="The highest has the default route", show_default=False
        ),
    ] = "",
) -> int:
    """Put a container on a network. One that runs is there at once, another from its next start on."""
    endpoint = container_pb2.NetworkEndpoint(
        network=network,
        address=ip,
        address6=ip6,
        aliases=alias or [],
        mac_address=mac_address,
        gateway_priority=parse_priority(gw_priority) if gw_priority else 0,
    )
    request = pb.ConnectNetworkRequest(container=container, endpoint=endpoint)
    response = hyperd.ask(lambda client: client.networks.ConnectNetwork(request))
    for warning in response.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    return 0


@tree.command(app, "disconnect")
def disconnect(
    network: Network,
    container: Container,
    *,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Neither tell its guest nor wait for it")
    ] = False,
) -> int:
    """Take a container off a network, whatever its guest does."""
    request = pb.DisconnectNetworkRequest(container=container, network=network, force=force)
    response = hyperd.ask(lambda client: client.networks.DisconnectNetwork(request))
    for warning in response.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    return 0
