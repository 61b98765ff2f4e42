# SPDX-License-Identifier: Apache-2.0
"""The way to hyperd: one channel per command, every status turned into a CliError on the way out.

grpc is imported when a command connects, not before: it is half of what `hyper --help` would cost.
grpc.aio rather than grpc: sessions need both directions, signals and timers in one loop; it imports no slower
(grpc imports it in any case) and a first call takes as long.
"""

import asyncio
import contextlib
import contextvars
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hyperctl import errors
from hyperctl.errors import CliError, InvalidError
from hyperctl.render import print_error

if TYPE_CHECKING:
    import grpc
    import grpc.aio

    from hyper.v1 import (
        container_pb2,
        container_pb2_grpc,
        image_pb2_grpc,
        network_pb2_grpc,
        policy_pb2_grpc,
        snapshot_pb2_grpc,
        system_pb2_grpc,
        volume_pb2_grpc,
    )

T = TypeVar("T")

DEFAULT_ADDRESS = "unix:///run/hyper/hyperd.sock"
QUERY_TIMEOUT_S = 60.0  # for calls that only look; the others end when the daemon's own deadlines say so
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "localhost"),
)

host: contextvars.ContextVar[str] = contextvars.ContextVar("host", default="")


class Client:
    """Stubs of the services, made when they are first used."""

    def __init__(self, channel: "grpc.aio.Channel", address: str) -> None:
        self._channel = channel
        self.address = address

    @property
    def containers(self) -> "container_pb2_grpc.ContainerServiceAsyncStub":
        from hyper.v1 import container_pb2_grpc

        return container_pb2_grpc.ContainerServiceStub(self._channel)

    async def list_containers(
        self, request: "container_pb2.ListContainersRequest", *, timeout_s: float = QUERY_TIMEOUT_S
    ) -> "list[container_pb2.Container]":
        """Newest first."""
        parts = self.containers.ListContainers(request, timeout=timeout_s)
        return [container async for part in parts for container in part.containers]

    @property
    def images(self) -> "image_pb2_grpc.ImageServiceAsyncStub":
        from hyper.v1 import image_pb2_grpc

        return image_pb2_grpc.ImageServiceStub(self._channel)

    @property
    def snapshots(self) -> "snapshot_pb2_grpc.SnapshotServiceAsyncStub":
        from hyper.v1 import snapshot_pb2_grpc

        return snapshot_pb2_grpc.SnapshotServiceStub(self._channel)

    @property
    def templates(self) -> "snapshot_pb2_grpc.TemplateServiceAsyncStub":
        from hyper.v1 import snapshot_pb2_grpc

        return snapshot_pb2_grpc.TemplateServiceStub(self._channel)

    @property
    def networks(self) -> "network_pb2_grpc.NetworkServiceAsyncStub":
        from hyper.v1 import network_pb2_grpc

        return network_pb2_grpc.NetworkServiceStub(self._channel)

    @property
    def egress(self) -> "policy_pb2_grpc.EgressServiceAsyncStub":
        from hyper.v1 import policy_pb2_grpc

        return policy_pb2_grpc.EgressServiceStub(self._channel)

    @property
    def groups(self) -> "policy_pb2_grpc.SecurityGroupServiceAsyncStub":
        from hyper.v1 import policy_pb2_grpc

        return policy_pb2_grpc.SecurityGroupServiceStub(self._channel)

    @property
    def floating(self) -> "policy_pb2_grpc.FloatingServiceAsyncStub":
        from hyper.v1 import policy_pb2_grpc

        return policy_pb2_grpc.FloatingServiceStub(self._channel)

    @property
    def system(self) -> "system_pb2_grpc.SystemServiceAsyncStub":
        from hyper.v1 import system_pb2_grpc

        return system_pb2_grpc.SystemServiceStub(self._channel)

    @property
    def volumes(self) -> "volume_pb2_grpc.VolumeServiceAsyncStub":
        from hyper.v1 import volume_pb2_grpc

        return volume_pb2_grpc.VolumeServiceStub(self._channel)


def socket_path() -> str:
    """Where hyperd listens: --host, else HYPER_HOST, else the default.

    Raises InvalidError for an address that is not of a UNIX socket.
    """
    address = host.get() or os.environ.get("HYPER_HOST") or DEFAULT_ADDRESS
    path = address
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
    if not path or "://" in path or not path.startswith("/"):
        raise InvalidError(
            "not the address of a UNIX socket", subject=address, hint="write unix:///path/to/hyperd.sock"
        )
    return path


@contextlib.asynccontextmanager
async def connect() -> AsyncIterator[Client]:
    """A client of the daemon; failed calls leave as CliError."""
    import grpc.aio

    path = socket_path()
    with rpc_errors(path):
        async with grpc.aio.insecure_channel(f"unix://{path}", options=CHANNEL_OPTIONS) as channel:
            yield Client(channel, path)


@contextlib.contextmanager
def connect_blocking() -> Iterator["grpc.Channel"]:
    """For an upload: grpc.aio loses what the server says when it refuses one halfway (grpc issue 36066)."""
    import grpc

    path = socket_path()
    with rpc_errors(path), grpc.insecure_channel(f"unix://{path}", options=CHANNEL_OPTIONS) as channel:
        yield channel


@contextlib.contextmanager
def rpc_errors(path: str) -> Iterator[None]:
    """The one seam where a gRPC status becomes a CliError."""
    import grpc.aio

    try:
        yield
    except grpc.RpcError as error:
        if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
            raise  # has no status
        if error.code() is grpc.StatusCode.UNAVAILABLE and (reason := why_unreachable(path)) is not None:
            raise reason from error
        raise errors.decode_status(error) from error


def why_unreachable(path: str) -> CliError | None:
    """Why nobody answers at ``path``; None when somebody listens there after all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except PermissionError:
            return CliError(
                "permission denied",
                subject=path,
                hint="members of the group `hyper` may use it: `sudo usermod -aG hyper $USER`, then log in again",
                exit_status=errors.DENIED,
            )
        except OSError as error:
            brief = "no daemon answers"
            if error.errno not in {errno.ENOENT, errno.ECONNREFUSED}:
                brief += f": {error.strerror or error}"
            return CliError(
                brief,
                subject=path,
                hint="start it with `hyper daemon start`, or with `systemctl start hyperd`",
                exit_status=errors.UNAVAILABLE,
            )
    return None


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def ask(question: Callable[[Client], Awaitable[T]]) -> T:
    """One connection, one question."""

    async def work() -> T:
        async with connect() as client:
            return await question(client)

    return run(work())


async def for_each(
    client: Client,
    names: Sequence[str],
    act: Callable[[str], Awaitable[object]],
    *,
    echo: bool = True,
    forgiven: frozenset[int] = frozenset(),
) -> int:
    """Do it to each, in order; one that fails is told and does not stop the rest.

    Prints the names that were done. The exit status is that of the first failure that is not ``forgiven``.
    """
    status = 0
    for name in names:
        try:
            with rpc_errors(client.address):
                await act(name)
        except CliError as error:
            if error.exit_status == errors.UNAVAILABLE and error.subject == client.address:
                raise  # no daemon: the others will not fare better
            print_error(error)
            if error.exit_status not in forgiven:
                status = status or error.exit_status
        else:
            if echo:
                print(name, flush=True)
    return status
