# SPDX-License-Identifier: Apache-2.0
"""What the prune commands have in common: the question, the removals, what was gained."""

import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass

from hyper.v1 import container_pb2, image_pb2, network_pb2, system_pb2, volume_pb2
from hyperctl import client as hyperd
from hyperctl import errors
from hyperctl.client import Client
from hyperctl.errors import CliError
from hyperctl.moments import parse_moment
from hyperctl.names import familiar_name
from hyperctl.render import printable, render_rfc3339, render_size

STOPPED = frozenset(
    {
        container_pb2.CONTAINER_STATE_CREATED,
        container_pb2.CONTAINER_STATE_EXITED,
        container_pb2.CONTAINER_STATE_FAILED,
    }
)
Filters = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Pruned:
    title: str
    lines: list[str]
    reclaimed_bytes: int


def require_consent(warning: str, command: str, *, force: bool) -> None:
    """Raises CliError unless the answer is yes."""
    if force:
        return
    print(f"{warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    if _answer().strip().lower() not in {"y", "yes"}:
        raise CliError("has been cancelled", subject=command)


def _answer() -> str:
    """Nothing where standard input is closed, cannot be read or is not text."""
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.readline(100)
    except (OSError, ValueError):  # ValueError: closed since, or bytes that are no text
        return ""


async def prune_images(client: Client, wanted: Filters, *, everything: bool) -> Pruned:
    request = image_pb2.PruneImagesRequest(
        all=everything,
        filters=[image_pb2.ImageFilter(key=key, value=value) for key, value in _on_wire(wanted)],
    )
    done = await client.images.PruneImages(request)
    lines = [f"untagged: {familiar_name(name)}" for name in done.untagged]
    lines += [f"deleted: {digest}" for digest in done.deleted]
    return Pruned("Deleted Images:", lines, done.reclaimed_bytes)


def _on_wire(wanted: Filters) -> list[tuple[str, str]]:
    """Moments as RFC 3339 in UTC: a duration counts back from now, a time without a zone is our local one."""
    found = []
    for key, value in wanted:
        if key == "until":
            seconds, nanos = parse_moment("--filter until", value, now_ns=time.time_ns())
            found.append((key, render_rfc3339(seconds, nanos // 1000 * 1000)))
        else:
            found.append((key, value))
    return found


async def prune_containers(client: Client, wanted: Filters) -> Pruned:
    """One that has started or gone since is left alone."""
    containers = await client.list_containers(container_pb2.ListContainersRequest(all=True))
    chosen = [
        container for container in containers if container.state in STOPPED and _is_wanted(container, wanted)
    ]
    if not chosen:
        return Pruned("Deleted Containers:", [], 0)
    usage = await client.system.GetDiskUsage(system_pb2.GetDiskUsageRequest(), timeout=hyperd.QUERY_TIMEOUT_S)
    sizes = {each.id: each.writable_bytes + each.log_bytes for each in usage.containers}
    removed = []
    for container in chosen:
        request = container_pb2.RemoveContainerRequest(container=container.id)
        if await _is_removed(client, client.containers.RemoveContainer(request)):
            removed.append(container.id)
    return Pruned("Deleted Containers:", removed, sum(sizes.get(each, 0) for each in removed))


async def prune_networks(client: Client, wanted: Filters) -> Pruned:
    """Those that no container is on, stopped ones included. One that somebody has come to since is left alone."""
    title = "Deleted Networks:"
    if not wanted:
        done = await client.networks.PruneNetworks(network_pb2.PruneNetworksRequest())
        return Pruned(title, list(done.names), 0)
    listing = await client.networks.ListNetworks(
        network_pb2.ListNetworksRequest(), timeout=hyperd.QUERY_TIMEOUT_S
    )
    removed = []
    for network in listing.networks:
        if network.members or not network.HasField("created_at") or not _is_wanted(network, wanted):
            continue
        request = network_pb2.RemoveNetworkRequest(network=network.id)
        if await _is_removed(client, client.networks.RemoveNetwork(request)):
            removed.append(network.spec.name)
    return Pruned(title, removed, 0)


async def prune_volumes(client: Client, wanted: Filters) -> Pruned:
    """Anonymous ones that no container has."""
    filters = [volume_pb2.VolumeFilter(key=key, value=value) for key, value in wanted]
    done = await client.volumes.PruneVolumes(volume_pb2.PruneVolumesRequest(filters=filters))
    return Pruned("Deleted Volumes:", list(done.removed), done.reclaimed_bytes)


async def _is_removed(client: Client, removal: Awaitable[object]) -> bool:
    """False: somebody has come to use it, or was faster."""
    try:
        with hyperd.rpc_errors(client.address):
            await removal
    except CliError as error:
        if error.exit_status not in {errors.CONFLICT, errors.NOT_FOUND}:
            raise
        return False
    return True


def _is_wanted(made: container_pb2.Container | network_pb2.Network, wanted: Filters) -> bool:
    created_ns = made.created_at.seconds * 1_000_000_000 + made.created_at.nanos
    limits_ns = [_until_ns(value) for key, value in wanted if key == "until"]
    return all(created_ns < limit_ns for limit_ns in limits_ns) and _has_labels(made.spec.labels, wanted)


def _until_ns(value: str) -> int:
    seconds, nanos = parse_moment("--filter until", value, now_ns=time.time_ns())
    return seconds * 1_000_000_000 + nanos


def _has_labels(labels: Mapping[str, str], wanted: Filters) -> bool:
    for key, value in wanted:
        if key == "until":
            continue
        name, equals, text = value.partition("=")
        has = name in labels and (not equals or labels[name] == text)
        if has == (key == "label!"):
            return False
    return True


def tell_removed(pruned: Sequence[Pruned]) -> None:
    for each in pruned:
        if each.lines:
            print(printable("\n".join([each.title, *each.lines])) + "\n")


def tell(pruned: Sequence[Pruned]) -> None:
    tell_removed(pruned)
    print(f"Total reclaimed space: {render_size(sum(each.reclaimed_bytes for each in pruned), digits=4)}")
