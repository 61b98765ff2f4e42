# SPDX-License-Identifier: Apache-2.0
"""`hyper fork` and `hyper rollback`."""

from typing import Annotated

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, tree
from hyperctl.clones import build_clone_options, print_clones
from hyperctl.commands.snapshots import tell_pause

FORK_EPILOG = """\b
Examples:
  hyper fork web                         one more, with its processes alive where they are
  hyper fork -n 8 -e SEED=7 solver       /run/hyper/forkpoint in it returns 8 times, with HYPER_FORK_INDEX 0 to 7

Names of several clones are NAME-0, NAME-1, ..."""

app = tree.group()


@tree.command(app, "fork", epilog=FORK_EPILOG)
def fork(
    container: Annotated[
        str,
        typer.Argument(
            metavar="CONTAINER",
            help="Name or id of one that runs or is paused",
            autocompletion=completion.running_containers,
            show_default=False,
        ),
    ],
    *,
    count: Annotated[str, typer.Option("--count", "-n", metavar="NUMBER", help="How many clones [1]")] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Name of the clones", show_default=False)
    ] = "",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="A variable for /run/hyper/forkpoint"),
    ] = None,
    env_file: Annotated[
        list[str] | None,
        typer.Option(
            "--env-file", metavar="FILE", help="Read variables for /run/hyper/forkpoint from a file"
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="Set a label")
    ] = None,
    label_file: Annotated[
        list[str] | None, typer.Option("--label-file", metavar="FILE", help="Read labels from a file")
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            "--network", "--net", metavar="NETWORK", help="Instead of the source's", show_default=False
        ),
    ] = "",
    rm: Annotated[bool, typer.Option("--rm", help="Remove each clone when it ends")] = False,
) -> int:
    """Clone a running container, processes and all, and print the ids. The source goes on by itself.

    All clones, or none.
    """
    clone_options = build_clone_options(
        count=count,
        name=name,
        env=env or [],
        env_file=env_file or [],
        label=label or [],
        label_file=label_file or [],
        network=network,
        auto_remove=rm,
    )
    request = pb.ForkContainerRequest(container=container, options=clone_options)
    response = hyperd.ask(lambda client: client.containers.ForkContainer(request))
    print_clones(response.clones)
    tell_pause(response.pause_ms)
    return 0


@tree.command(app, "rollback")
def rollback(
    container: Annotated[
        str,
        typer.Argument(
            metavar="CONTAINER", help="Name or id", autocompletion=completion.containers, show_default=False
        ),
    ],
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="SNAPSHOT",
            help="Name or id of a snapshot of this container",
            autocompletion=completion.snapshots,
            show_default=False,
        ),
    ],
) -> int:
    """Put a container back at one of its own snapshots. What it did since is gone."""
    request = pb.RollbackContainerRequest(container=container, snapshot=snapshot)
    hyperd.ask(lambda client: client.containers.RollbackContainer(request))
    print(container)
    return 0
