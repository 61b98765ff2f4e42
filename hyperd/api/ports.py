# SPDX-License-Identifier: Apache-2.0
"""Ports between the wire and the model."""

from collections.abc import Iterable

from hyper.v1 import container_pb2 as wire
from hyper.v1 import network_pb2
from hyperd.errors import InvalidError
from hyperd.model.network import PortRequest, Protocol, PublishedPort, UnpublishRequest


def decode_requests(messages: Iterable[wire.PortRequest]) -> tuple[PortRequest, ...]:
    """Raises InvalidError."""
    return tuple(
        PortRequest(
            container_port=message.container_port,
            protocol=decode_protocol(message.protocol),
            host_ip=message.host_ip,
            host_port=message.host_port,
            host_port_end=message.host_port_end,
        )
        for message in messages
    )


def encode_requests(requests: Iterable[PortRequest]) -> list[wire.PortRequest]:
    return [
        wire.PortRequest(
            host_ip=request.host_ip,
            host_port=request.host_port,
            host_port_end=request.host_port_end,
            container_port=request.container_port,
            protocol=request.protocol.value,
        )
        for request in requests
    ]


def encode_published(ports: Iterable[PublishedPort]) -> list[wire.PublishedPort]:
    return [
        wire.PublishedPort(
            host_ip=port.host_ip,
            host_port=port.host_port,
            container_port=port.container_port,
            protocol=port.protocol.value,
        )
        for port in ports
    ]


def decode_unpublished(messages: Iterable[network_pb2.UnpublishedPort]) -> list[UnpublishRequest]:
    """Raises InvalidError."""
    return [
        UnpublishRequest(message.container_port, decode_protocol(message.protocol), message.host_port)
        for message in messages
    ]


def decode_protocol(text: str) -> Protocol:
    """Raises InvalidError."""
    try:
        return Protocol(text.lower() or "tcp")
    except ValueError as error:
        raise InvalidError("is not tcp or udp", subject=f"protocol {text!r}") from error
