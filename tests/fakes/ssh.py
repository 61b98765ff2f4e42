# SPDX-License-Identifier: Apache-2.0
"""An ssh-agent without keys: it answers each request with the request itself, and keeps what it was asked."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path


class FakeSshAgent:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.asked: list[bytes] = []
        self.connections = 0
        self.silent = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(place))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while len(length := stream.read(4)) == 4:
                message = stream.read(struct.unpack(">I", length)[0])
                self.asked.append(message)
                if self.silent:
                    continue
                stream.write(length + message)
                stream.flush()


@contextlib.contextmanager
def ssh_agent(place: Path) -> Iterator[FakeSshAgent]:
    agent = FakeSshAgent(place)
    try:
        yield agent
    finally:
        agent.close()
