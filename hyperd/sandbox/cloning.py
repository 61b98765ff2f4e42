# SPDX-License-Identifier: Apache-2.0
"""What the clones of a snapshot are: records of their own, made from what the snapshot says of its source. Pure."""

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime

from hyperd.errors import InvalidError
from hyperd.model.container import ContainerRecord, ContainerSpec
from hyperd.model.guest import ForkIdentity
from hyperd.model.vm import SandboxId
from hyperd.sandbox import endpoints, names, ports
from hyperd.sandbox.source import Source

MAX_CLONES = 1000


@dataclass(frozen=True, slots=True)
class CloneOptions:
    """What the clones of one request have in common."""

    count: int = 1
    name: str = ""  # of one; of several NAME-0, NAME-1, ...
    env: tuple[str, ...] = field(default=(), repr=False)  # KEY=VALUE, for /run/hyper/forkpoint
    labels: dict[str, str] = field(default_factory=dict)  # beyond the source's
    network: str = ""  # "" = the source's
    auto_remove: bool = False


def plan_clones(
    source: Source, options: CloneOptions, taken: Collection[str], created_at: datetime
) -> list[ContainerRecord]:
    """In the order of their index. Raises InvalidError."""
    if not 1 <= options.count <= MAX_CLONES:
        raise InvalidError(f"{options.count} clones are not between 1 and {MAX_CLONES}")
    for entry in options.env:
        if "=" not in entry or entry.startswith("=") or "\0" in entry:
            raise InvalidError(
                "is not KEY=VALUE", subject=f"environment variable {entry.partition('=')[0]!r}"
            )
    spec = _spec(source, options)
    records: list[ContainerRecord] = []
    for index in range(options.count):
        name = _name(options, index, {*taken, *(record.name for record in records)})
        records.append(
            ContainerRecord(
                sandbox_id=SandboxId(secrets.token_hex(32)),
                name=name,
                spec=replace(spec, name=name),
                image_id=source.image_id,
                command=source.command,
                sizing=source.sizing,
                created_at=created_at,
                container_id=source.container_id,
            )
        )
    return records


def fork_identity(options: CloneOptions, index: int, hostname: str) -> ForkIdentity:
    """HOSTNAME, too: the processes of a clone have the source's in their environment."""
    return ForkIdentity(index, options.count, (f"HOSTNAME={hostname}", *options.env))


def _spec(source: Source, options: CloneOptions) -> ContainerSpec:
    """As the source's, with a host name of each clone's own, and neither port nor address that are the source's."""
    was, asked = source.spec.network, options.network or source.spec.network
    if endpoints.carrier_of(replace(source.spec, network=asked)) is not None:
        raise InvalidError("a clone has a VM of its own, and its network", subject=f"--network {asked}")
    if (asked == "none") != (was == "none"):
        has = "none" if was == "none" else "one"
        raise InvalidError(
            f"the snapshot's VM has {'no' if has == 'none' else 'a'} network device, and so have its clones",
            subject=f"--network {asked}",
            hint="leave --network out",
        )
    return replace(
        endpoints.of_clone(source.spec, asked),
        hostname="",
        labels={**source.spec.labels, **options.labels},
        ports=ports.of_clone(source.spec.ports),
        auto_remove=options.auto_remove,
    )


def _name(options: CloneOptions, index: int, taken: set[str]) -> str:
    if not options.name:
        return names.invent(taken)
    name = options.name.removeprefix("/")
    name = name if options.count == 1 else f"{name}-{index}"
    names.require_valid(name)
    return name
