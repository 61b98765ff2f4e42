# SPDX-License-Identifier: Apache-2.0
"""What the prune commands have in common: the question, the removals, what was gained."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hyper.v1 import container_pb2, image_pb2, system_pb2
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
    limits_ns = [_until_ns(value) for key, value in wanted if key == "until"]
    containers = await client.list_containers(container_pb2.ListContainersRequest(all=True))
    chosen = [
        container
        for container in containers
        if container.state in STOPPED
        and all(_created_ns(container) < limit_ns for limit_ns in limits_ns)
        and _has_labels(container, wanted)
    ]
    if not chosen:
        return Pruned("Deleted Containers:", [], 0)
    usage = await client.system.GetDiskUsage(system_pb2.GetDiskUsageRequest(), timeout=hyperd.QUERY_TIMEOUT_S)
    sizes = {each.id: each.writable_bytes + each.log_bytes for each in usage.containers}
    removed = []
    for container in chosen:
        try:
            with hyperd.rpc_errors(client.address):
                await client.containers.RemoveContainer(
                    container_pb2.RemoveContainerRequest(container=container.id)
                )
        except CliError as error:
            if error.exit_status not in {errors.CONFLICT, errors.NOT_FOUND}:
                raise
        else:
            removed.append(container.id)
    return Pruned("Deleted Containers:", removed, sum(sizes.get(each, 0) for each in removed))


def _until_ns(value: str) -> int:
    seconds, nanos = parse_moment("--filter until", value, now_ns=time.time_ns())
    return seconds * 1_000_000_000 + nanos


def _created_ns(container: container_pb2.Container) -> int:
    return container.created_at.seconds * 1_000_000_000 + container.created_at.nanos


def _has_labels(container: container_pb2.Container, wanted: Filters) -> bool:
    for key, value in wanted:
        if key == "until":
            continue
        name, equals, text = value.partition("=")
        labels = container.spec.labels
        has = name in labels and (not equals or labels[name] == text)
        if has == (key == "label!"):
            return False
    return True


def tell(pruned: Sequence[Pruned]) -> None:
    for each in pruned:
        if each.lines:
            print(printable("\n".join([each.title, *each.lines])) + "\n")
    print(f"Total reclaimed space: {render_size(sum(each.reclaimed_bytes for each in pruned), digits=4)}")
