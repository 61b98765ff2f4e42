# SPDX-License-Identifier: Apache-2.0
"""`hyper egress report`, `set` and `inspect`."""

import sys
from typing import Annotated, Any

import typer

from hyper.v1 import policy_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, policies, tree
from hyperctl.output import print_rows, render_document, render_rows
from hyperctl.render import printable, render_json, render_rfc3339

HEADERS = {
    "Destination": "DESTINATION",
    "Port": "PORT",
    "Protocol": "PROTOCOL",
    "Name": "NAME",
    "Count": "COUNT",
    "First": "FIRST",
    "Last": "LAST",
}
EPILOG = """\b
Examples:
  hyper run --rm --name job --egress policy.yaml python:3 pip install requests
  hyper egress report job
  hyper egress set job none"""

app = tree.group()

Container = Annotated[
    str,
    typer.Argument(
        metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
    ),
]


@tree.command(app, "report", epilog=EPILOG)
def report(
    container: Container,
    *,
    form: flags.RowsFormat = "",
) -> int:
    """List what a container tried to reach and was refused, the latest first. It may have gone."""
    response = hyperd.ask(
        lambda client: client.egress.ReportEgress(
            pb.ReportEgressRequest(container=container), timeout=hyperd.QUERY_TIMEOUT_S
        )
    )
    rows = [_row(attempt) for attempt in response.attempts]
    print_rows(render_rows(rows, columns=tuple(HEADERS), headers=HEADERS, form=form))
    if response.is_cut:
        print("there was more: the latest alone is kept", file=sys.stderr)
    return 0


@tree.command(app, "set")
def set_(
    container: Container,
    policy: Annotated[
        str, typer.Argument(metavar="none|allow-all|FILE", help="As `--egress` has it", show_default=False)
    ],
) -> int:
    """Change what a container may reach, from now on and also for what it has begun."""
    request = pb.SetEgressRequest(container=container, policy=policies.read_egress(policy, "egress set"))
    hyperd.ask(lambda client: client.egress.SetEgress(request))
    print(printable(container))
    return 0


@tree.command(app, "inspect")
def inspect(
    containers: Annotated[
        list[str],
        typer.Argument(
            metavar="CONTAINER...",
            help="Names or ids",
            autocompletion=completion.containers,
            show_default=False,
        ),
    ],
    *,
    form: flags.DocumentsFormat = "",
) -> int:
    """Show what containers may reach, as it is now."""

    async def work() -> list[pb.InspectEgressResponse]:
        async with hyperd.connect() as client:
            return [
                await client.egress.InspectEgress(
                    pb.InspectEgressRequest(container=name), timeout=hyperd.QUERY_TIMEOUT_S
                )
                for name in containers
            ]

    documents = [
        {"Id": found.container_id, "Name": found.name, "Egress": found.policy} for found in hyperd.run(work())
    ]
    if form:
        print_rows("\n".join(render_document(document, form) for document in documents))
    else:
        print(render_json(documents, indent=4))
    return 0


def _row(attempt: pb.EgressAttempt) -> dict[str, Any]:
    return {
        "Destination": attempt.destination,
        "Port": str(attempt.port) if attempt.port else "",
        "Protocol": attempt.protocol,
        "Name": attempt.name,
        "Count": str(attempt.count),
        "First": render_rfc3339(attempt.first_at.seconds, attempt.first_at.nanos),
        "Last": render_rfc3339(attempt.last_at.seconds, attempt.last_at.nanos),
    }
