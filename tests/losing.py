# SPDX-License-Identifier: Apache-2.0
"""An NBD server that loses power: what was written and not flushed is gone with it.

    with server(tmp_path / "disk.img", size) as disk:
        ... nbd://127.0.0.1:PORT/disk ...
        disk.lose_power()         # its file has what was flushed, and nothing of what was not

The worst of disks: it writes nothing before it is told to. Fixed newstyle, enough for QEMU and its tools.
"""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

OPTION_MAGIC, REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC = 0x25609513, 0x67446698
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
REP_ACK, REP_INFO, ERR_UNSUPPORTED, ERR_UNKNOWN = 1, 3, (1 << 31) | 1, (1 << 31) | 6
READ, WRITE, DISC, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6  # has flags, flush, FUA, trim, write zeroes
FUA = 1
PAGE = 4096
NAME = b"disk"


class LosingPages:
    """What is not flushed to ``file`` is in memory alone, page by page."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._pages: dict[int, bytearray] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def lose(self) -> int:
        """How many there were."""
        lost = len(self._pages)
        self._pages.clear()
        return lost

    def read(self, offset: int, length: int) -> bytearray:
        data = bytearray(os.pread(self._file, length, offset).ljust(length, b"\0"))
        for number in range(offset // PAGE, -(-(offset + length) // PAGE)):
            if (page := self._pages.get(number)) is not None:
                start = max(offset, number * PAGE)
                end = min(offset + length, (number + 1) * PAGE)
                data[start - offset : end - offset] = page[start - number * PAGE : end - number * PAGE]
        return data

    def write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, inside = divmod(offset + at, PAGE)
            count = min(PAGE - inside, len(data) - at)
            self._page(number)[inside : inside + count] = data[at : at + count]
            at += count

    def flush(self) -> None:
        for number, page in self._pages.items():
            os.pwrite(self._file, page, number * PAGE)
        self._pages.clear()

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            self._pages[number] = bytearray(os.pread(self._file, PAGE, number * PAGE).ljust(PAGE, b"\0"))
        return self._pages[number]


class LosingDisk:
    """One export."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.flushes = 0
        self.lost_pages = 0  # with the power
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._pages = LosingPages(self._file)
        os.ftruncate(self._file, size_bytes)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def pending_pages(self) -> int:
        return len(self._pages)

    def lose_power(self) -> None:
        """Nobody is answered any more; what was not flushed never was."""
        with self._lock:
            self.lost_pages = self._pages.lose()
            self.size_bytes = 0  # a request that is under way finds no disk
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            if self._negotiate(connection):
                while self._answer(connection):
                    pass

    def _negotiate(self, connection: socket.socket) -> bool:
        connection.sendall(b"NBDMAGIC" + OPTION_MAGIC + struct.pack(">H", 3))
        _receive(connection, 4)
        while True:
            magic, option, length = struct.unpack(">8sII", _receive(connection, 16))
            data = _receive(connection, length)
            if magic != OPTION_MAGIC or option == OPT_ABORT:
                return False
            if option not in (OPT_INFO, OPT_GO):
                _reply(connection, option, ERR_UNSUPPORTED)
                continue
            (size,) = struct.unpack(">I", data[:4])
            if data[4 : 4 + size] != NAME:
                _reply(connection, option, ERR_UNKNOWN)
                continue
            _reply(connection, option, REP_INFO, struct.pack(">HQH", 0, self.size_bytes, FLAGS))
            _reply(connection, option, REP_INFO, struct.pack(">HIII", 3, 1, PAGE, 1 << 25))
            _reply(connection, option, REP_ACK)
            if option == OPT_GO:
                return True

    def _answer(self, connection: socket.socket) -> bool:
        magic, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", _receive(connection, 28))
        if magic != REQUEST_MAGIC or kind == DISC:
            return False
        data = _receive(connection, length) if kind == WRITE else b""
        with self._lock:
            if offset + length > self.size_bytes:
                return False
            answer = self._do(kind, offset, length, data)
            if flags & FUA or kind == FLUSH:
                self.flushes += 1
                self._pages.flush()
        connection.sendall(struct.pack(">IIQ", SIMPLE_MAGIC, 0, handle) + answer)
        return True

    def _do(self, kind: int, offset: int, length: int, data: bytes) -> bytes:
        if kind == READ:
            return bytes(self._pages.read(offset, length))
        if kind in (ZEROES, TRIM):
            data = bytes(length)
        if kind in (WRITE, ZEROES, TRIM):
            self._pages.write(offset, data)
        return b""


def _receive(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _reply(connection: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
    connection.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)


@contextlib.contextmanager
def losing_disk(path: Path, size_bytes: int) -> Iterator[LosingDisk]:
    disk = LosingDisk(path, size_bytes)
    try:
        yield disk
    finally:
        disk.close()
