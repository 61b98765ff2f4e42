# SPDX-License-Identifier: Apache-2.0
"""Which ports of a container are published when it starts. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hyperd.errors import InvalidError, NotFoundError
from hyperd.model.container import ContainerSpec
from hyperd.model.image import ImageConfig
from hyperd.model.network import PortRequest, Protocol, PublishedPort, UnpublishRequest, requests_of
from hyperd.sandbox.endpoints import endpoints_of

_EXPOSED = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_LAST = 65535
MAX_EXPOSED = 1024  # of one container, each of them counted


def require_valid(spec: ContainerSpec) -> None:
    """Raises InvalidError."""
    require_valid_requests(spec.ports)
    if len(exposed(spec.expose)) > MAX_EXPOSED:
        raise InvalidError(f"more than {MAX_EXPOSED} ports", subject="--expose")


def require_valid_requests(requests: Iterable[PortRequest]) -> None:
    """Raises InvalidError."""
    asked: set[tuple[str, int, Protocol]] = set()
    for request in requests:
        subject = f"port {request.container_port}/{request.protocol}"
        if not 1 <= request.container_port <= _LAST:
            raise InvalidError(f"is not between 1 and {_LAST}", subject=subject)
        last = request.host_port_end or request.host_port
        if not 0 <= request.host_port <= last <= _LAST or (request.host_port_end and not request.host_port):
            raise InvalidError(
                f"{request.host_port}-{last} are no ports of a host", subject=f"published {subject}"
            )
        place = (request.host_ip, request.host_port, request.protocol)
        if request.host_port == last and request.host_port and place in asked:
            raise InvalidError(
                f"is published twice at port {request.host_port}/{request.protocol} of the host",
                subject=subject,
                hint="give each its own, or leave the host's port out for one that is free",
            )
        asked.add(place)


def with_exposed(spec: ContainerSpec, image: ImageConfig) -> ContainerSpec:
    """With the image's; what is none of a protocol that we know is left out, as nothing was asked of us."""
    added = [text for text in image.exposed_ports if _EXPOSED.fullmatch(text)]
    return replace(spec, expose=tuple(dict.fromkeys((*spec.expose, *added))))


def wanted(spec: ContainerSpec) -> tuple[PortRequest, ...]:
    """What is to be published when it starts."""
    if not endpoints_of(spec):
        return ()
    if not spec.publish_all:
        return spec.ports
    named = {(request.container_port, request.protocol) for request in spec.ports}
    further = [PortRequest(*port) for port in exposed(spec.expose) if port not in named]
    return (*spec.ports, *further)


def kept(spec: ContainerSpec, published: Iterable[PublishedPort]) -> tuple[PortRequest, ...]:
    """What one that sleeps is to have when it wakes: what it has now, as it was asked for where that was so."""
    asked = list(wanted(spec))
    requests = []
    for port in requests_of(published):
        request = next((one for one in asked if _meets(one, port)), None)
        if request is not None:
            asked.remove(request)
        requests.append(request or port)
    return tuple(requests)


def _meets(request: PortRequest, port: PortRequest) -> bool:
    same = (request.container_port, request.protocol) == (port.container_port, port.protocol)
    same = same and request.host_ip in ("", port.host_ip)
    last = max(request.host_port, request.host_port_end)
    return same and (not request.host_port or request.host_port <= port.host_port <= last)


def of_clone(requests: Iterable[PortRequest]) -> tuple[PortRequest, ...]:
    """Only those at a port that is free: the others are the source's, and there may be many clones."""
    return tuple(request for request in requests if not request.host_port)


def choose(
    published: Sequence[PublishedPort], requests: Sequence[UnpublishRequest], name: str
) -> tuple[PublishedPort, ...]:
    """Raises NotFoundError for a request that meets none."""
    found: dict[PublishedPort, None] = {}
    for request in requests:
        met = [
            port
            for port in published
            if (port.container_port, port.protocol) == (request.container_port, request.protocol)
            and request.host_port in (0, port.host_port)
        ]
        if not met:
            at = f" at {request.host_port}" if request.host_port else ""
            raise NotFoundError(
                f"its port {request.container_port}/{request.protocol} is not published{at}",
                subject=f"container {name}",
                hint=f"`hyper port {name}` lists those that are",
            )
        found.update(dict.fromkeys(met))
    return tuple(found)


def exposed(texts: Sequence[str]) -> list[tuple[int, Protocol]]:
    """Raises InvalidError for what is no port."""
    found: dict[tuple[int, Protocol], None] = {}
    for text in texts:
        match = _EXPOSED.fullmatch(text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 1 <= first <= last <= _LAST:
            raise InvalidError(
                "is not PORT[-PORT][/tcp|/udp]", subject=f"exposed port {text!r}", hint="as in 80 or 53/udp"
            )
        if (match[3] or "tcp").lower() == "sctp":
            continue  # an image may say so; nobody can publish it
        protocol = Protocol((match[3] or "tcp").lower())
        if last - first >= MAX_EXPOSED:
            raise InvalidError(f"more than {MAX_EXPOSED} ports", subject=f"exposed port {text!r}")
        found.update(dict.fromkeys((port, protocol) for port in range(first, last + 1)))
    return list(found)
