# SPDX-License-Identifier: Apache-2.0
"""One port of the agent as a gRPC channel: QEMU's socket on one side, a socket that grpcio dials on the other.

    grpcio -- private UNIX socket -- _GrpcSide <-> _AgentSide -- QEMU's chardev socket -- guest

Two asyncio protocols and no task: what one side reads it writes to the other; a side that cannot take more stops the
other from reading. When one side ends, both do. The guest side has no time limit of its own: a paused VM takes
nothing for as long as it is paused, and memory stays bounded; calls have deadlines.
"""

import asyncio
import contextlib
import errno
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from hyperd.errors import UnavailableError
from hyperd.guest.failures import lost
from hyperd.guest.link import HostLink, LinkBrokenError, escape, new_nonce

MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # tonic's own limit; nothing legitimate comes near
WINDOW_BYTES = 1024 * 1024  # four of the agent's rings
_BUFFER_BYTES = 512 * 1024  # above this the other side is not read; one read of 256 KiB may come on top
_SOCKET_GRACE_S = 1.0  # QEMU listens before its start returns; only a test's peer may be later
_RETRY_S = 0.01
_NOT_YET = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)  # EAGAIN: as many wait as QEMU lets wait


class Relay:
    """Both sides of a port. ``opened``: True once the agent echoed our nonce, False when the port ended before."""

    def __init__(self, link: HostLink) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[bool] = loop.create_future()
        self.end_reason = ""
        self.is_over = False
        self._link = link
        self._sides: list[_Side] = []
        self._ended = asyncio.Event()

    async def attach(self, agent_socket: socket.socket, grpc_socket: socket.socket) -> None:
        """Take over both sockets and relay from now on."""
        loop = asyncio.get_running_loop()
        agent = _AgentSide(self, self._link)
        to_grpc = _GrpcSide(self, agent)
        agent.other = to_grpc
        await loop.create_unix_connection(lambda: agent, sock=agent_socket)
        await loop.connect_accepted_socket(lambda: to_grpc, grpc_socket)

    def joined(self, side: "_Side") -> None:
        self._sides.append(side)
        if self.is_over:
            side.abort()

    def end(self, reason: str) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.end_reason = reason
        if not self.opened.done():
            self.opened.set_result(False)
        for side in self._sides:
            side.abort()

    def left(self, side: "_Side", reason: str) -> None:
        self._sides.remove(side)
        self.end(reason)
        if not self._sides:
            self._ended.set()

    async def close(self) -> None:
        self.end("closed by hyperd")
        if self._sides:
            await self._ended.wait()


class _Side(asyncio.Protocol):
    other: "_Side"
    name = ""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []  # what the other side read in the moment before this one was attached

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        self.transport.writelines(self._early)
        self._early.clear()
        self.relay.joined(self)

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        else:
            self.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> None:
        self.relay.end(f"{self.name} closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self.relay.left(self, f"{self.name} closed the connection" + (f": {exc}" if exc else ""))

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _AgentSide(_Side):
    name = "the virtual machine"

    def __init__(self, relay: Relay, link: HostLink) -> None:
        super().__init__(relay)
        self._link = link

    def data_received(self, data: bytes) -> None:
        was_open = self._link.is_open
        try:
            plain = self._link.receive(data)
        except LinkBrokenError as error:
            self.relay.end(str(error))
            return
        if self._link.is_open and not was_open and not self.relay.opened.done():
            self.relay.opened.set_result(True)
        if plain:
            self.other.send(plain)


class _GrpcSide(_Side):
    name = "grpc"

    def __init__(self, relay: Relay, agent: _AgentSide) -> None:
        super().__init__(relay)
        self.other = agent

    def data_received(self, data: bytes) -> None:
        self.other.send(escape(data))


@dataclass(frozen=True, slots=True)
class Port:
    """An open port: the channel, and the relay that says whether it still is one."""

    channel: grpc.aio.Channel
    relay: Relay
    path: Path

    def require_alive(self, subject: str) -> None:
        """Raises UnavailableError when the connection has ended: a dead port is not dialled again."""
        if self.relay.is_over:
            raise lost(subject, f"{self.path}: {self.relay.end_reason}")

    async def wait_open(self, subject: str) -> None:
        """Until the agent has answered the opening. Raises UnavailableError when the port ends first."""
        if not await asyncio.shield(self.relay.opened):
            self.require_alive(subject)


@contextlib.asynccontextmanager
async def open_port(path: Path, *, timeout_s: float, subject: str) -> AsyncIterator[Port]:
    """Connect to a chardev socket and send the opening; do not wait for the answer (see ``Port.wait_open``).

    QEMU keeps the opening until the guest opens its end, so nothing is asked twice. Raises UnavailableError.
    """
    link = HostLink(new_nonce())
    relay = Relay(link)
    async with contextlib.AsyncExitStack() as stack:
        agent_socket = await _connect(path, subject)
        stack.callback(agent_socket.close)
        try:
            agent_socket.send(link.opening)
        except OSError as error:
            raise _refused(path, subject, error) from error
        directory = Path(tempfile.mkdtemp(prefix="hyper-relay-"))  # 0700, and gone once grpcio has dialled
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        listener = stack.enter_context(_listen(directory / "s"))
        channel = grpc.aio.insecure_channel(f"unix:{directory / 's'}", options=_channel_options(timeout_s))
        stack.push_async_callback(channel.close)
        channel.get_state(try_to_connect=True)
        grpc_socket, _ = await asyncio.get_running_loop().sock_accept(listener)
        stack.callback(grpc_socket.close)
        stack.push_async_callback(relay.close)
        await relay.attach(agent_socket, grpc_socket)
        listener.close()
        shutil.rmtree(directory, ignore_errors=True)
        yield Port(channel, relay, path)


async def _connect(path: Path, subject: str) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SOCKET_GRACE_S
    while True:
        attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            attempt.connect(str(path))  # a UNIX socket's connect never waits
        except OSError as error:
            attempt.close()
            if error.errno not in _NOT_YET or loop.time() >= deadline:
                raise _refused(path, subject, error) from error
        else:
            return attempt
        await asyncio.sleep(_RETRY_S)


def _refused(path: Path, subject: str, error: OSError) -> UnavailableError:
    return UnavailableError(
        "the agent's socket cannot be used",
        subject=subject,
        evidence=f"{path}: {error.strerror or error}",
    )


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener


def _channel_options(timeout_s: float) -> list[tuple[str, int | str]]:
    return [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 0),
        ("grpc.default_authority", "guest"),
        # The connection is there at once but the agent's SETTINGS come only when the guest is up.
        ("grpc.min_reconnect_backoff_ms", int((timeout_s + 10) * 1000)),
        ("grpc.keepalive_time_ms", 2**31 - 1),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.max_frame_size", 128 * 1024),
    ]
