# SPDX-License-Identifier: Apache-2.0
"""Ports: Docker's grammar of `-p`, `--expose` and `hyper port`, and how they are shown. Pure."""

import re
from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from itertools import groupby
from typing import Any

from hyper.v1 import container_pb2 as pb
from hyper.v1 import network_pb2
from hyperctl.errors import InvalidError

PROTOCOLS = ("tcp", "udp")
MAX_PORTS = 1024  # of one container, as hyperd has it
_LAST = 65535
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def parse_published(texts: Iterable[str]) -> list[pb.PortRequest]:
    """`[[IP:][HOST[-HOST]]:]CONTAINER[-CONTAINER][/tcp|/udp]`; two ranges of one length go pairwise."""
    return [request for text in texts for request in _parse_published(text)]


def parse_exposed(texts: Iterable[str]) -> list[str]:
    """`PORT[-PORT][/tcp|/udp]`, with the protocol."""
    found = []
    for text in texts:
        ports, protocol = _split_protocol("--expose", text)
        _parse_range("--expose", text, ports)
        found.append(f"{ports}/{protocol}")
    return found


def parse_port(text: str) -> tuple[int, str]:
    """`80`, `53/udp`."""
    ports, protocol = _split_protocol("port", text)
    first, last = _parse_range("port", text, ports)
    if first != last:
        raise _invalid("port", text, "one port, not a range")
    return first, protocol


def parse_unpublished(texts: Iterable[str]) -> list[network_pb2.UnpublishedPort]:
    """`CONTAINER[/PROTOCOL]`, wherever it is published, or `HOST:CONTAINER[/PROTOCOL]`."""
    found = []
    for text in texts:
        host, colon, rest = text.rpartition(":")
        port, protocol = parse_port(rest)
        if "/" in host:
            raise _invalid("port", text, "HOST:CONTAINER[/PROTOCOL]")
        host_port = parse_port(host)[0] if colon else 0
        found.append(network_pb2.UnpublishedPort(container_port=port, protocol=protocol, host_port=host_port))
    return found


def render_ports(container: pb.Container) -> str:
    """The column of `ps`: `0.0.0.0:8080->80/tcp, 443/tcp`; ports that follow each other as a range."""
    cells = []
    for (host_ip, protocol, _), ports in groupby(
        enumerate(
            sorted(container.ports, key=lambda p: (p.protocol, p.host_ip, p.host_port, p.container_port))
        ),
        key=lambda item: (
            item[1].host_ip,
            item[1].protocol,
            (item[1].host_port - item[0], item[1].container_port - item[0]),
        ),
    ):
        run = [port for _, port in ports]
        host = _render_range([port.host_port for port in run])
        cells.append(
            f"{show_ip(host_ip)}:{host}->{_render_range([port.container_port for port in run])}/{protocol}"
        )
    published = {f"{port.container_port}/{port.protocol}" for port in container.ports}
    cells += [text for text in container.spec.expose if _with_protocol(text) not in published]
    return ", ".join(cells)


def show_ip(host_ip: str) -> str:
    """Before a colon and a port."""
    return f"[{host_ip}]" if ":" in host_ip else host_ip


def port_bindings(requests: Iterable[pb.PortRequest]) -> dict[str, list[dict[str, str]]]:
    """`HostConfig.PortBindings` of `inspect`: as asked for."""
    bindings: dict[str, list[dict[str, str]]] = {}
    for request in requests:
        host_port = str(request.host_port) if request.host_port else ""
        if request.host_port_end:
            host_port += f"-{request.host_port_end}"
        key = f"{request.container_port}/{request.protocol or 'tcp'}"
        bindings.setdefault(key, []).append({"HostIp": request.host_ip, "HostPort": host_port})
    return bindings


def port_settings(container: pb.Container, *, is_up: bool) -> dict[str, Any]:
    """`NetworkSettings.Ports` of `inspect`: as published now; None for what is exposed alone."""
    settings: dict[str, Any] = {}
    if is_up:
        settings = dict.fromkeys(_with_protocol(text) for text in container.spec.expose)
    for port in container.ports:
        key = f"{port.container_port}/{port.protocol}"
        settings[key] = [
            *(settings.get(key) or []),
            {"HostIp": port.host_ip, "HostPort": str(port.host_port)},
        ]
    return settings


def exposed_ports(spec: pb.ContainerSpec) -> dict[str, dict[str, str]]:
    """`Config.ExposedPorts` of `inspect`."""
    published = [f"{request.container_port}/{request.protocol or 'tcp'}" for request in spec.ports]
    return {text: {} for text in dict.fromkeys([*map(_with_protocol, spec.expose), *published])}


def _parse_published(text: str) -> list[pb.PortRequest]:
    rest, protocol = _split_protocol("--publish", text)
    host_ip, host, container = _split_parts(text, rest)
    first, last = _parse_range("--publish", text, container)
    if last - first >= MAX_PORTS:
        raise _invalid("--publish", text, f"more than {MAX_PORTS} ports")
    if not host:
        return [_request(host_ip, 0, 0, port, protocol) for port in range(first, last + 1)]
    host_first, host_last = _parse_range("--publish", text, host)
    if first == last and host_first != host_last:
        return [_request(host_ip, host_first, host_last, first, protocol)]
    if host_last - host_first != last - first:
        raise _invalid("--publish", text, "the two ranges are not of the same length")
    return [
        _request(host_ip, host_first + offset, 0, first + offset, protocol)
        for offset in range(last - first + 1)
    ]


def _split_parts(text: str, rest: str) -> tuple[str, str, str]:
    if rest.startswith("["):
        host_ip, _, rest = rest[1:].partition("]")
        parts = rest.split(":")
        if len(parts) != 3 or parts[0]:
            raise _invalid("--publish", text, "write [IPv6]:[HOST]:CONTAINER[/PROTOCOL]")
        try:
            return str(IPv6Address(host_ip)), parts[1], parts[2]
        except AddressValueError:
            raise _invalid("--publish", text, f"{host_ip!r} is not an IPv6 address") from None
    parts = rest.split(":")
    if len(parts) > 3:
        raise _invalid(
            "--publish", text, "write [IP:][HOST:]CONTAINER[/PROTOCOL], an IPv6 address in brackets"
        )
    host_ip = parts[0] if len(parts) == 3 else ""
    if host_ip:
        try:
            IPv4Address(host_ip)
        except AddressValueError:
            raise _invalid("--publish", text, f"{host_ip!r} is not an IPv4 address") from None
    return host_ip, parts[-2] if len(parts) > 1 else "", parts[-1]


def _split_protocol(flag: str, text: str) -> tuple[str, str]:
    ports, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise _invalid(flag, text, "the protocol is tcp or udp")
    return ports, protocol


def _parse_range(flag: str, text: str, ports: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(ports)
    if match is None:
        raise _invalid(flag, text, f"{ports!r} is no port and no range of ports")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= _LAST:
        raise _invalid(flag, text, f"ports are 1 to {_LAST}, the lower one first")
    return first, last


def _request(host_ip: str, host_port: int, host_port_end: int, port: int, protocol: str) -> pb.PortRequest:
    return pb.PortRequest(
        host_ip=host_ip,
        host_port=host_port,
        host_port_end=host_port_end,
        container_port=port,
        protocol=protocol,
    )


def _with_protocol(text: str) -> str:
    return text.lower() if "/" in text else f"{text}/tcp"


def _render_range(ports: Sequence[int]) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


def _invalid(flag: str, text: str, why: str) -> InvalidError:
    return InvalidError(f"invalid argument {text!r}: {why}", subject=flag)
