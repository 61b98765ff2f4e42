# SPDX-License-Identifier: Apache-2.0
"""The gRPC server on its UNIX socket."""

import contextlib
import grp
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from hyper.v1 import (
    build_pb2_grpc,
    container_pb2_grpc,
    image_pb2_grpc,
    network_pb2_grpc,
    policy_pb2_grpc,
    snapshot_pb2_grpc,
    system_pb2_grpc,
    volume_pb2_grpc,
)
from hyperd.api.build import BuildServicer
from hyperd.api.containers import ContainerServicer
from hyperd.api.floating import FloatingServicer
from hyperd.api.images import ImageServicer
from hyperd.api.networks import NetworkServicer
from hyperd.api.policies import EgressServicer
from hyperd.api.security_groups import SecurityGroupServicer
from hyperd.api.snapshots import SnapshotServicer
from hyperd.api.system import SystemServicer
from hyperd.api.templates import TemplateServicer
from hyperd.api.volumes import VolumeServicer
from hyperd.errors import InvalidError, UnavailableError, WrongStateError

SOCKET_MODE = 0o660
STOP_GRACE_S = 2.0
PROBE_TIMEOUT_S = 2.0
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Servicers:
    """One for each service of proto/hyper/v1."""

    containers: ContainerServicer
    images: ImageServicer
    system: SystemServicer
    templates: TemplateServicer
    snapshots: SnapshotServicer
    volumes: VolumeServicer
    networks: NetworkServicer
    builds: BuildServicer
    egress: EgressServicer
    groups: SecurityGroupServicer
    floating: FloatingServicer

    def add_to(self, server: grpc.aio.Server) -> None:
        container_pb2_grpc.add_ContainerServiceServicer_to_server(self.containers, server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(self.images, server)
        system_pb2_grpc.add_SystemServiceServicer_to_server(self.system, server)
        snapshot_pb2_grpc.add_TemplateServiceServicer_to_server(self.templates, server)
        snapshot_pb2_grpc.add_SnapshotServiceServicer_to_server(self.snapshots, server)
        volume_pb2_grpc.add_VolumeServiceServicer_to_server(self.volumes, server)
        network_pb2_grpc.add_NetworkServiceServicer_to_server(self.networks, server)
        build_pb2_grpc.add_BuildServiceServicer_to_server(self.builds, server)
        policy_pb2_grpc.add_EgressServiceServicer_to_server(self.egress, server)
        policy_pb2_grpc.add_SecurityGroupServiceServicer_to_server(self.groups, server)
        policy_pb2_grpc.add_FloatingServiceServicer_to_server(self.floating, server)


@contextlib.asynccontextmanager
async def serving(path: Path, group: str, servicers: Servicers) -> AsyncIterator[grpc.aio.Server]:
    """Serve until the end of the block. Raises WrongStateError when another daemon answers there."""
    _require_unused(path)
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    servicers.add_to(server)
    try:
        server.add_insecure_port(f"unix:{path}")
        _hand_to(path, group)  # until here root's alone; no umask is touched, other threads make files too
        await server.start()
    except (RuntimeError, OSError) as error:
        raise UnavailableError("cannot be listened on", subject=str(path), evidence=str(error)) from error
    try:
        yield server
    finally:
        await server.stop(STOP_GRACE_S)  # removes the socket


def _require_unused(path: Path) -> None:
    """A socket that nobody answers on was left by a killed daemon: away with it."""
    if not path.exists():
        return
    if not path.is_socket():
        raise InvalidError(
            "is in the way of the socket", subject=str(path), hint="move it, or set [daemon] socket"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass  # too busy to answer is alive
    raise WrongStateError(
        "another daemon answers there", subject=str(path), hint="`hyper daemon stop` ends it"
    )


def _hand_to(path: Path, group: str) -> None:
    with contextlib.suppress(KeyError):  # no such group: root alone may use the socket
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    path.chmod(SOCKET_MODE)
