# SPDX-License-Identifier: Apache-2.0
"""What the shell is offered after TAB: commands and flags from the tree, names from the daemon.

Quick and quiet: the daemon has a second to answer, and whatever goes wrong offers nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hyperctl import client as hyperd
from hyperctl.client import Client
from hyperctl.errors import CliError
from hyperctl.names import familiar_name, shorten_id

DEADLINE_S = 1.0

Completer = Callable[[str], list[str]]


def containers(incomplete: str) -> list[str]:
    return _ask(_container_names(running_only=False), incomplete)


def running_containers(incomplete: str) -> list[str]:
    return _ask(_container_names(running_only=True), incomplete)


def paused_containers(incomplete: str) -> list[str]:
    return _ask(_container_names(running_only=False, status="paused"), incomplete)


def hibernated_containers(incomplete: str) -> list[str]:
    return _ask(_container_names(running_only=False, status="hibernated"), incomplete)


def snapshots(incomplete: str) -> list[str]:
    return _ask(_snapshot_names, incomplete)


def networks(incomplete: str) -> list[str]:
    return _ask(_networks, incomplete)


def templates(incomplete: str) -> list[str]:
    return _ask(_template_ids, incomplete)


def volumes(incomplete: str) -> list[str]:
    return _ask(_volume_names, incomplete)


def images(incomplete: str) -> list[str]:
    return _ask(_image_names, incomplete)


def containers_and_images(incomplete: str) -> list[str]:
    return [*containers(incomplete), *images(incomplete)]


def _container_names(*, running_only: bool, status: str = "") -> Callable[[Client], Awaitable[list[str]]]:
    async def names(client: Client) -> list[str]:
        from hyper.v1 import container_pb2 as pb

        filters = [pb.Filter(key="status", value=status)] if status else []
        request = pb.ListContainersRequest(all=not running_only, filters=filters)
        containers = await client.list_containers(request, timeout_s=DEADLINE_S)
        return [container.name for container in containers]

    return names


async def _image_names(client: Client) -> list[str]:
    from hyper.v1 import image_pb2 as pb

    response = await client.images.ListImages(pb.ListImagesRequest(), timeout=DEADLINE_S)
    return [familiar_name(tag) for image in response.images for tag in image.tags]


async def _snapshot_names(client: Client) -> list[str]:
    from hyper.v1 import snapshot_pb2 as pb

    response = await client.snapshots.ListSnapshots(pb.ListSnapshotsRequest(), timeout=DEADLINE_S)
    return [snapshot.name or shorten_id(snapshot.id) for snapshot in response.snapshots]


async def _networks(client: Client) -> list[str]:
    from hyper.v1 import network_pb2 as pb

    response = await client.networks.ListNetworks(pb.ListNetworksRequest(), timeout=DEADLINE_S)
    return [network.spec.name for network in response.networks]


async def _template_ids(client: Client) -> list[str]:
    from hyper.v1 import snapshot_pb2 as pb

    response = await client.templates.ListTemplates(pb.ListTemplatesRequest(), timeout=DEADLINE_S)
    return [shorten_id(template.id) for template in response.templates]


async def _volume_names(client: Client) -> list[str]:
    from hyper.v1 import volume_pb2 as pb

    response = await client.volumes.ListVolumes(pb.ListVolumesRequest(), timeout=DEADLINE_S)
    return [volume.name for volume in response.volumes]


def _ask(question: Callable[[Client], Awaitable[list[str]]], incomplete: str) -> list[str]:
    try:
        names = hyperd.ask(question)
    except CliError:
        return []
    return sorted({name for name in names if name.startswith(incomplete)})


def complete(root: Any, words: Sequence[str]) -> list[str]:
    """Candidates for the last of ``words``, which are those after `hyper` up to the cursor."""
    *before, incomplete = words or [""]
    command, rest = root, list(before)
    while hasattr(command, "list_commands"):
        positions = _positions(command, rest)
        if not positions:
            if incomplete.startswith("-"):
                return _flags(command, incomplete)
            return [name for name in command.list_commands(None) if name.startswith(incomplete)]
        found = command.get_command(None, rest[positions[0]])
        if found is None:
            return []
        command, rest = found, rest[positions[0] + 1 :]
    return _complete_command(command, rest, incomplete)


def _complete_command(command: Any, rest: list[str], incomplete: str) -> list[str]:
    positions = _positions(command, rest)
    passes_args = command.context_settings.get("allow_interspersed_args") is False
    if passes_args and positions:
        return []  # the process's own words
    option = _option(command, rest[-1]) if rest else None
    if option is not None and not option.is_flag:
        return [item.value for item in option.shell_complete(None, incomplete)]
    if incomplete.startswith("-"):
        return _flags(command, incomplete)
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    for index, argument in enumerate(arguments):
        if argument.nargs == -1 or index == len(positions):
            return [item.value for item in argument.shell_complete(None, incomplete)]
    return []


def _positions(command: Any, words: Sequence[str]) -> list[int]:
    """Where among ``words`` the positional ones are."""
    positions, skip = [], False
    for index, word in enumerate(words):
        if skip:
            skip = False
        elif word.startswith("-") and len(word) > 1:
            option = _option(command, word)
            skip = option is not None and not option.is_flag
        else:
            positions.append(index)
    return positions


def _option(command: Any, word: str) -> Any:
    """The option whose value would be the next word."""
    name = word if word.startswith("--") else f"-{word[-1:]}"
    if not word.startswith("-") or "=" in word:
        return None
    for param in command.params:
        if param.param_type_name == "option" and name in param.opts:
            return param
    return None


def _flags(command: Any, incomplete: str) -> list[str]:
    names = ["--help"]
    for param in command.params:
        if param.param_type_name == "option":
            names += [name for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]
    return sorted(name for name in names if name.startswith(incomplete))
