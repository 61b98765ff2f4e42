# SPDX-License-Identifier: Apache-2.0
"""`hyper start`, `stop`, `kill`, `rm` and `wait`: the same to each container that is named."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, options, tree
from hyperctl.client import Client
from hyperctl.commands.attach import DetachKeys, attach_session
from hyperctl.detach import DEFAULT_KEYS, parse_detach_keys
from hyperctl.errors import NOT_FOUND, InvalidError

app = tree.group()


Known = Annotated[
    list[str],
    typer.Argument(
        metavar="CONTAINER...", help="Names or ids", autocompletion=completion.containers, show_default=False
    ),
]
Running = Annotated[
    list[str],
    typer.Argument(
        metavar="CONTAINER...",
        help="Names or ids",
        autocompletion=completion.running_containers,
        show_default=False,
    ),
]


def _each(
    names: list[str],
    act: Callable[[Client, str], Awaitable[object]],
    *,
    echo: bool = True,
    forgiven: frozenset[int] = frozenset(),
) -> int:
    async def work() -> int:
        async with hyperd.connect() as client:
            return await hyperd.for_each(
                client, names, lambda name: act(client, name), echo=echo, forgiven=forgiven
            )

    return hyperd.run(work())


@tree.command(app, "start")
def start(
    containers: Known,
    *,
    attach: Annotated[
        bool, typer.Option("--attach", "-a", help="Show its output and pass signals on")
    ] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Pass our standard input on")
    ] = False,
    detach_keys: DetachKeys = DEFAULT_KEYS,
) -> int:
    """Start stopped containers."""
    if attach or interactive:
        if len(containers) > 1:
            raise InvalidError("only one container can be attached to", subject="start")
        keys = parse_detach_keys(detach_keys)
        return hyperd.run(attach_session(containers[0], keys, start=True, no_stdin=not interactive))
    return _each(
        containers,
        lambda client, name: client.containers.StartContainer(pb.StartContainerRequest(container=name)),
    )


@tree.command(app, "stop")
def stop(
    containers: Running,
    *,
    timeout: Annotated[
        str, typer.Option("--timeout", "--time", "-t", metavar="SECONDS", help="Then it is killed [10]")
    ] = "",
    signal: Annotated[
        str, typer.Option("--signal", "-s", metavar="SIGNAL", help="Instead of the container's own")
    ] = "",
) -> int:
    """Stop running containers: the stop signal, some time, then SIGKILL."""
    timeout_s = options.parse_stop_timeout("--timeout", timeout) if timeout else None
    return _each(
        containers,
        lambda client, name: client.containers.StopContainer(
            pb.StopContainerRequest(container=name, timeout_s=timeout_s, signal=signal)
        ),
    )


@tree.command(app, "kill")
def kill(
    containers: Running,
    *,
    signal: Annotated[str, typer.Option("--signal", "-s", metavar="SIGNAL", help="Name or number")] = "KILL",
) -> int:
    """Send a signal to running containers."""
    return _each(
        containers,
        lambda client, name: client.containers.KillContainer(
            pb.KillContainerRequest(container=name, signal=signal)
        ),
    )


@tree.command(app, "rm")
def rm(
    containers: Known,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill it first if it runs")] = False,
) -> int:
    """Remove containers. With --force one that is not there is told, and no failure."""

    async def remove(client: Client, name: str) -> None:
        await client.containers.RemoveContainer(pb.RemoveContainerRequest(container=name, force=force))

    return _each(containers, remove, forgiven=frozenset({NOT_FOUND}) if force else frozenset())


@tree.command(app, "wait")
def wait(containers: Known) -> int:
    """Wait until containers stop, then print their exit codes."""

    async def wait_one(client: Client, name: str) -> None:
        response = await client.containers.WaitContainer(pb.WaitContainerRequest(container=name))
        print(response.exit.code, flush=True)

    return _each(containers, wait_one, echo=False)
