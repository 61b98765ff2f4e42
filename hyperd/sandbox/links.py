# SPDX-License-Identifier: Apache-2.0
"""`--link`: what a container is told of another. Pure but for the look at who is there.

On the default network its name is a line of /etc/hosts, and its ports and environment are variables, as they are when
the container starts. On others the alias is a name that this container alone may ask for (network/directory.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hyperd.errors import InvalidError, WrongStateError
from hyperd.model.container import ContainerLink, ContainerRecord, ContainerSpec, ContainerView
from hyperd.model.network import DEFAULT_NETWORK, Protocol
from hyperd.sandbox import names, ports
from hyperd.sandbox.endpoints import endpoints_of

MAX_LINKS = 64
_MAX_HOSTNAME = 64
_PRIVATE = ("HOME", "PATH")  # moby daemon/links/links.go


class Peers:
    """Who else is there; the fleet says how to find them."""

    def __init__(self) -> None:
        self.find: Callable[[str], ContainerView | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Linked:
    """A container that runs, as another that names it is told of it."""

    alias: str
    name: str
    address: str
    ports: tuple[tuple[int, Protocol], ...]
    env: tuple[str, ...]


def settled(spec: ContainerSpec, find: Callable[[str], ContainerView]) -> ContainerSpec:
    """With the ids of those it names, each on one network with it. Raises NotFoundError, InvalidError."""
    if len(spec.links) > MAX_LINKS:
        raise InvalidError(f"more than {MAX_LINKS} links", subject="--link")
    mine = {at.network for at in endpoints_of(spec)}
    found = []
    for link in spec.links:
        target, alias = find(link.target).record, link.alias or link.target
        names.require_valid(alias)
        if mine.isdisjoint(at.network for at in endpoints_of(target.spec)):
            raise InvalidError(
                "is on no network of it", subject=f"--link {target.name}", hint="put both on one network"
            )
        found.append(ContainerLink(target.sandbox_id, alias))
    return replace(spec, links=tuple(found))


def present(
    record: ContainerRecord, peers: Peers, *, all_of_them: bool
) -> list[tuple[ContainerLink, ContainerView]]:
    """Of its links, those that it is told of. ``all_of_them``: raises WrongStateError for one that does not run."""
    if DEFAULT_NETWORK not in [at.network for at in endpoints_of(record.spec)]:
        return []
    found = []
    for link in record.spec.links:
        target = peers.find(link.target)
        if target is None or not target.attachments:
            if all_of_them:  # moby daemon/container_operations.go
                name = target.record.name if target else link.target[:12]
                raise WrongStateError(
                    f"cannot link to a non running container: {name} as {link.alias}",
                    subject=f"container {record.name}",
                    hint=f"`hyper start {name}` first",
                )
        elif target.attachment_of(DEFAULT_NETWORK) is not None:
            found.append((link, target))
    return found


def linked_of(link: ContainerLink, target: ContainerView, image_env: tuple[str, ...]) -> Linked:
    attachment = target.attachment_of(DEFAULT_NETWORK)
    spec = target.record.spec
    opened = {(request.container_port, request.protocol) for request in spec.ports}
    opened.update(ports.exposed(spec.expose))
    return Linked(
        alias=link.alias,
        name=target.record.name,
        address=attachment.address if attachment else "",
        ports=tuple(sorted(opened)),
        env=(*image_env, *spec.env),
    )


def told_of(record: ContainerRecord, linked: Sequence[Linked]) -> ContainerRecord:
    """As this start sees it: what its user says of a variable or a name goes before what a link says."""
    spec = record.spec
    hosts = [
        f"{name}:{each.address}"
        for each in linked
        for name in dict.fromkeys((each.alias, each.name))
        if len(name) <= _MAX_HOSTNAME
    ]
    env = [variable for each in linked for variable in variables(record.name, each)]
    return replace(record, spec=replace(spec, env=(*env, *spec.env), extra_hosts=(*spec.extra_hosts, *hosts)))


def variables(name: str, linked: Linked) -> list[str]:
    """As moby's daemon/links/links.go has them."""
    prefix = linked.alias.replace("-", "_").upper()
    made = []
    if linked.ports:
        port, protocol = linked.ports[0]
        made.append(f"{prefix}_PORT={protocol}://{linked.address}:{port}")
    for port, protocol in linked.ports:
        start = f"{prefix}_PORT_{port}_{protocol.upper()}"
        made += [
            f"{start}={protocol}://{linked.address}:{port}",
            f"{start}_ADDR={linked.address}",
            f"{start}_PORT={port}",
            f"{start}_PROTO={protocol}",
        ]
    made.append(f"{prefix}_NAME=/{name}/{linked.alias}")
    last = dict(entry.split("=", 1) for entry in linked.env if "=" in entry)
    return made + [f"{prefix}_ENV_{key}={value}" for key, value in last.items() if key not in _PRIVATE]
