# SPDX-License-Identifier: Apache-2.0
"""`--ssh`: an ssh-agent of the user's answers the steps of a build that have `RUN --mount=type=ssh`.

The build is a stranger's: it may ask which keys there are and have something signed, as over `ssh -A`, and no more.
Protocol: draft-ietf-sshm-ssh-agent.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hyper.v1 import build_pb2 as pb
from hyperctl.errors import NOT_FOUND, CliError, InvalidError

MAX_MESSAGE_BYTES = 256 << 10
MAX_CONNECTIONS = 64
REQUEST_IDENTITIES, SIGN_REQUEST = 11, 13
FAILURE = b"\x05"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Source:
    """Where an id's answers come from: the socket of an agent, or files of keys for an agent of their own."""

    id: str
    socket: str = ""
    keys: tuple[str, ...] = ()


def read_sources(texts: Iterable[str], environ: Mapping[str, str]) -> list[Source]:
    """default|ID[=SOCKET|KEY[,KEY]], as BuildKit has it. Raises CliError."""
    sources = [_read(text, environ) for text in texts]
    if len({source.id for source in sources}) != len(sources):
        raise InvalidError("two of one id", subject="--ssh")
    return sources


def _read(text: str, environ: Mapping[str, str]) -> Source:
    agent_id, equals, places = text.partition("=")
    if not agent_id or (equals and not all(places.split(","))):
        raise InvalidError("is not default or ID[=SOCKET|KEY]", subject=f"--ssh {text}")
    if not equals:
        place = environ.get("SSH_AUTH_SOCK", "")
        if not place:
            raise InvalidError(
                "SSH_AUTH_SOCK is not set: no agent is known",
                subject=f"--ssh {text}",
                hint=f"`eval $(ssh-agent)` and `ssh-add`, or `--ssh {agent_id}=KEY`",
            )
        return Source(agent_id, socket=place)
    paths = [Path(place).expanduser() for place in places.split(",")]
    for path in paths:
        if not path.exists():
            raise CliError("no such file", subject=f"--ssh {agent_id}={path}", exit_status=NOT_FOUND)
    if paths[0].is_socket() and len(paths) == 1:
        return Source(agent_id, socket=str(paths[0]))
    for path in paths:
        if not path.is_file():
            raise InvalidError(
                "is neither one socket of an agent nor files of keys", subject=f"--ssh {agent_id}={path}"
            )
    return Source(agent_id, keys=tuple(map(str, paths)))


@contextlib.contextmanager
def opened(sources: Iterable[Source]) -> Iterator[dict[str, str]]:
    """A socket for each id. Raises CliError: there is no agent, a key cannot be read."""
    from hyperctl.key_agent import agent_of

    with contextlib.ExitStack() as stack:
        sockets = {}
        for source in sources:
            place = source.socket or stack.enter_context(agent_of(source.keys, f"--ssh {source.id}"))
            try:
                _connect(place).close()
            except OSError as error:
                raise CliError(
                    f"no agent answers: {error.strerror or error}", subject=f"--ssh {source.id}={place}"
                ) from error
            sockets[source.id] = place
        yield sockets


class Agents:
    """Requests are answered in threads of their own: an agent may ask its user, and the build goes on."""

    def __init__(self, sockets: Mapping[str, str], answer: Callable[[pb.SshAgentMessage], None]) -> None:
        self._sockets = sockets
        self._answer = answer
        self._connections: dict[tuple[str, int], socket.socket] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="agent")

    def take(self, request: pb.SshAgentMessage) -> None:
        key = (request.id, request.connection)
        if request.message:
            self._threads.submit(self._serve, key, request.message)
        else:
            self._drop(key)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            keys = list(self._connections)
        for key in keys:
            self._drop(key)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _serve(self, key: tuple[str, int], request: bytes) -> None:
        try:
            message = self._ask(key, request)
        except (OSError, EOFError):
            self._drop(key)
            message = b""
        self._answer(pb.SshAgentMessage(id=key[0], connection=key[1], message=message))

    def _ask(self, key: tuple[str, int], request: bytes) -> bytes:
        if request[0] not in (REQUEST_IDENTITIES, SIGN_REQUEST) or len(request) > MAX_MESSAGE_BYTES:
            return FAILURE
        with self._connected(key) as connection:
            connection.sendall(_LENGTH.pack(len(request)) + request)
            (size,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
            if size > MAX_MESSAGE_BYTES:
                raise EOFError("no agent answers so much")
            return _receive(connection, size)

    @contextlib.contextmanager
    def _connected(self, key: tuple[str, int]) -> Iterator[socket.socket]:
        with self._lock:
            found = self._connections.get(key)
            if found is None:
                if self._closed or len(self._connections) >= MAX_CONNECTIONS or key[0] not in self._sockets:
                    raise EOFError("no more connections")
                found = self._connections[key] = _connect(self._sockets[key[0]])
        yield found

    def _drop(self, key: tuple[str, int]) -> None:
        with self._lock:
            found = self._connections.pop(key, None)
        if found is not None:
            with contextlib.suppress(OSError):  # it may have ended by itself
                found.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
            found.close()


def _connect(place: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError("the agent has gone")
        data += piece
    return bytes(data)
