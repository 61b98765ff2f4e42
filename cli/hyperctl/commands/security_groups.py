# SPDX-License-Identifier: Apache-2.0
"""`hyper sg create`, `update`, `ls`, `inspect`, `rm`, `attach` and `detach`."""

from typing import Annotated, Any

import typer

from hyper.v1 import policy_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, policies, tree
from hyperctl.errors import InvalidError
from hyperctl.output import print_rows, render_document, render_rows
from hyperctl.render import render_json

HEADERS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "Ingress": "INGRESS",
    "Egress": "EGRESS",
    "Containers": "CONTAINERS",
}
EPILOG = """\b
Examples:
  hyper sg create -f web.yaml web
  hyper run -d --security-group web nginx
  hyper sg update -f web.yaml web"""

EMPTY = "rules: []\n"

app = tree.group()

Document = Annotated[
    str,
    typer.Option("--file", "-f", metavar="FILE", help="YAML or JSON; -: standard input", show_default=False),
]
OneName = Annotated[
    str, typer.Argument(metavar="[NAME]", help="Else the one in the file", show_default=False)
]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", show_default=False)]
Container = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
    ),
]


@tree.command(app, "create", epilog=EPILOG)
def create(name: OneName = "", *, file: Document = "") -> int:
    """Make a security group of a file, or one without rules, and print its name."""
    if not file and not name:
        raise InvalidError("neither a name nor a file", subject="sg create")
    document = policies.read_document(file, "--file") if file else EMPTY
    request = pb.CreateSecurityGroupRequest(name=name, document=document)
    print(hyperd.ask(lambda client: client.groups.CreateSecurityGroup(request)).group.name)
    return 0


@tree.command(app, "update")
def update(name: OneName = "", *, file: Document) -> int:
    """Replace the rules of a security group, at once for all containers that have it."""
    document = policies.read_document(file, "--file")
    request = pb.UpdateSecurityGroupRequest(name=name, document=document)
    print(hyperd.ask(lambda client: client.groups.UpdateSecurityGroup(request)).group.name)
    return 0


@tree.command(app, "ls")
def ls(
    *,
    quiet: flags.OnlyNames = False,
    form: flags.RowsFormat = "",
) -> int:
    """List security groups."""
    response = hyperd.ask(
        lambda client: client.groups.ListSecurityGroups(
            pb.ListSecurityGroupsRequest(), timeout=hyperd.QUERY_TIMEOUT_S
        )
    )
    if quiet:
        print_rows("\n".join(group.name for group in response.groups))
    else:
        rows = [_row(group) for group in response.groups]
        print_rows(render_rows(rows, columns=tuple(HEADERS), headers=HEADERS, form=form))
    return 0


@tree.command(app, "inspect")
def inspect(
    names: Names,
    *,
    output: Annotated[str, typer.Option("--output", "-o", metavar="json|yaml", help="json or yaml")] = "json",
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="A template", show_default=False)
    ] = "",
) -> int:
    """Show everything about security groups, as `create` reads it."""
    if output not in ("json", "yaml"):
        raise InvalidError(f"invalid argument {output!r}: json, yaml", subject="--output")

    async def work() -> list[pb.SecurityGroup]:
        async with hyperd.connect() as client:
            return [
                (
                    await client.groups.InspectSecurityGroup(
                        pb.InspectSecurityGroupRequest(name=name), timeout=hyperd.QUERY_TIMEOUT_S
                    )
                ).group
                for name in names
            ]

    documents = [_document(group) for group in hyperd.run(work())]
    if form:
        print_rows("\n".join(render_document(document, form) for document in documents))
    elif output == "yaml":
        import yaml

        print(yaml.safe_dump_all(documents, sort_keys=False), end="")
    else:
        print(render_json(documents, indent=4))
    return 0


@tree.command(app, "rm")
def rm(names: Names) -> int:
    """Remove security groups. One that containers have, or rules of others speak of, stays."""

    async def work() -> int:
        async with hyperd.connect() as client:
            return await hyperd.for_each(
                client,
                names,
                lambda name: client.groups.RemoveSecurityGroup(pb.RemoveSecurityGroupRequest(name=name)),
            )

    return hyperd.run(work())


@tree.command(app, "attach")
def attach(container: Container, names: Names) -> int:
    """Give a container further security groups, from now on, and print those that it has."""
    return _change(pb.ChangeSecurityGroupsRequest(container=container, add=names))


@tree.command(app, "detach")
def detach(container: Container, names: Names) -> int:
    """Take security groups from a container, from now on, and print those that it has."""
    return _change(pb.ChangeSecurityGroupsRequest(container=container, remove=names))


def _change(request: pb.ChangeSecurityGroupsRequest) -> int:
    print_rows("\n".join(hyperd.ask(lambda client: client.groups.ChangeSecurityGroups(request)).groups))
    return 0


def _row(group: pb.SecurityGroup) -> dict[str, Any]:
    directions = [rule.direction for rule in group.rules]
    return {
        "Name": group.name,
        "Description": group.description,
        "Ingress": str(directions.count("ingress")),
        "Egress": str(directions.count("egress")),
        "Containers": str(len(group.users)),
    }


def _document(group: pb.SecurityGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "description": group.description,
        "rules": [_rule(rule) for rule in group.rules],
    }


def _rule(rule: pb.SecurityGroupRule) -> dict[str, Any]:
    made: dict[str, Any] = {"direction": rule.direction, "protocol": rule.protocol}
    if rule.HasField("port_range_min"):
        made |= {"port_range_min": rule.port_range_min, "port_range_max": rule.port_range_max}
    if rule.remote_ip_prefix:
        made["remote_ip_prefix"] = rule.remote_ip_prefix
    if rule.remote_group_name:
        made["remote_group_name"] = rule.remote_group_name
    return made
