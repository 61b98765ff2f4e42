# SPDX-License-Identifier: Apache-2.0
"""`hyper start`, `stop`, `pause`, `hibernate`, `rm` and their like: the same to each container that is named."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from hyper.v1 import container_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, options, tree
from hyperctl.client import Client
from hyperctl.commands.attach import DetachKeys, attach_session
from hyperctl.completion import Completer
from hyperctl.detach import DEFAULT_KEYS, parse_detach_keys
from hyperctl.errors import NOT_FOUND, InvalidError

app = tree.group()


def _names(complete: Completer) -> Any:
    return typer.Argument(
        metavar="CONTAINER...", help="Names or ids", autocompletion=complete, show_default=False
    )


Known = Annotated[list[str], _names(completion.containers)]
Running = Annotated[list[str], _names(completion.running_containers)]
Paused = Annotated[list[str], _names(completion.paused_containers)]
Hibernated = Annotated[list[str], _names(completion.hibernated_containers)]


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


@tree.command(app, "pause")
def pause(containers: Running) -> int:
    """Let containers stand still: their CPUs stop, their memory stays. `hyper unpause` lets them go on."""
    return _each(
        containers,
        lambda client, name: client.containers.PauseContainer(pb.PauseContainerRequest(container=name)),
    )


@tree.command(app, "unpause")
def unpause(containers: Paused) -> int:
    """Let paused containers go on."""
    return _each(
        containers,
        lambda client, name: client.containers.UnpauseContainer(pb.UnpauseContainerRequest(container=name)),
    )


@tree.command(app, "hibernate")
def hibernate(containers: Running) -> int:
    """Put running containers on disk and free the host's memory. `hyper wake` lets them go on."""
    return _each(
        containers,
        lambda client, name: client.containers.HibernateContainer(
            pb.HibernateContainerRequest(container=name)
        ),
    )


@tree.command(app, "wake")
def wake(containers: Hibernated) -> int:
    """Let hibernated containers go on where they were."""
    return _each(
        containers,
        lambda client, name: client.containers.WakeContainer(pb.WakeContainerRequest(container=name)),
    )


@tree.command(app, "rm")
def rm(
    containers: Known,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill it first if it runs")] = False,
    volumes: Annotated[bool, typer.Option("--volumes", "-v", help="Its anonymous volumes, too")] = False,
) -> int:
    """Remove containers. With --force one that is not there is told, and no failure."""

    async def remove(client: Client, name: str) -> None:
        request = pb.RemoveContainerRequest(container=name, force=force, volumes=volumes)
        await client.containers.RemoveContainer(request)

    return _each(containers, remove, forgiven=frozenset({NOT_FOUND}) if force else frozenset())


@tree.command(app, "wait")
def wait(containers: Known) -> int:
    """Wait until containers stop, then print their exit codes."""

    async def wait_one(client: Client, name: str) -> None:
        response = await client.containers.WaitContainer(pb.WaitContainerRequest(container=name))
        print(response.exit.code, flush=True)

    return _each(containers, wait_one, echo=False)
