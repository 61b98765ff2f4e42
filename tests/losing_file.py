# SPDX-License-Identifier: Apache-2.0
"""A file that loses power: what was written and not synced is gone with it.

    with losing_file(path) as file:      # mounted over the file's directory, which shows it and nothing else
        ...                              # whoever opens PATH meanwhile has it
        file.lose_power()                # PATH has what was synced, and nothing of what was not; all else is EIO

The worst of file systems: it writes nothing before fsync or fdatasync. FUSE, spoken here: no program is needed, and
`tests/losing.py` is the same for a disk that a server has. Each write(2) is a request to us, cached by nobody.
"""

import contextlib
import errno
import os
import select
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.losing import LosingPages

# linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = (
    20,
    25,
    26,
    27,
    29,
    34,
    36,
    38,
    42,
)
NO_REPLY = frozenset({FORGET, INTERRUPT, BATCH_FORGET})
VERSION, BIG_WRITES, DIRECT_IO = (7, 31), 1 << 5, 1
SET_MODE, SET_UID, SET_GID, SET_SIZE = 1, 2, 4, 8
MAX_WRITE = 128 << 10
ROOT, FILE = 1, 2  # nodes


class LosingFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.syncs = 0
        self.lost_pages = 0  # with the power
        self._backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._status = os.fstat(self._backing)
        self._mode, self._owner = self._status.st_mode, (self._status.st_uid, self._status.st_gid)
        self._size = self._status.st_size
        self._pages = LosingPages(self._backing)
        self._lock = threading.Lock()
        self._has_power = True
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        subprocess.run(
            ["mount", "-i", "-t", "fuse", "-o", options, "losing", path.parent],
            check=True,
            pass_fds=[self._device],
        )
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def lose_power(self) -> None:
        with self._lock:
            self._has_power = False
            self.lost_pages = self._pages.lose()

    def close(self) -> None:
        """Also where others have it mounted still, who were started meanwhile: for them it is gone."""
        subprocess.run(["umount", "-l", self.path.parent], check=True)
        os.close(self._wake)
        self._thread.join(10)
        for descriptor in (self._device, self._woken, self._backing):
            os.close(descriptor)

    def _serve(self) -> None:
        while self._woken not in select.select([self._device, self._woken], [], [])[0]:
            try:
                request = os.read(self._device, MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    raise
                continue
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in NO_REPLY:
                continue
            with self._lock:
                failure, answer = self._answer(opcode, node, request[40:])
            with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
                os.write(self._device, struct.pack("<IiQ", 16 + len(answer), -failure, unique) + answer)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        if opcode in (READ, WRITE, FSYNC, SETATTR) and not self._has_power:
            return errno.EIO, b""
        known: dict[int, Callable[[int, bytes], tuple[int, bytes]]] = {
            INIT: self._init,
            LOOKUP: self._lookup,
            GETATTR: lambda node, _: (0, struct.pack("<QII", 0, 0, 0) + self._attributes(node)),
            SETATTR: self._set_attributes,
            OPEN: lambda *_: (0, struct.pack("<QII", 0, DIRECT_IO, 0)),
            OPENDIR: lambda *_: (0, bytes(16)),
            READ: self._read,
            WRITE: self._write,
            FSYNC: self._sync,
            STATFS: lambda *_: (
                0,
                struct.pack("<5Q4I", 1 << 20, 1 << 19, 1 << 19, 2, 0, 4096, 255, 4096, 0) + bytes(24),
            ),
        }
        if opcode in known:
            return known[opcode](node, body)
        return (0, b"") if opcode in (RELEASE, RELEASEDIR, FLUSH, ACCESS, DESTROY) else (errno.ENOSYS, b"")

    def _init(self, _: int, body: bytes) -> tuple[int, bytes]:
        (readahead,) = struct.unpack_from("<I", body, 8)
        head = struct.pack("<4I2H2I2H", *VERSION, readahead, BIG_WRITES, 8, 8, MAX_WRITE, 1, 0, 0)
        return 0, head + bytes(32)

    def _lookup(self, _: int, body: bytes) -> tuple[int, bytes]:
        if body.rstrip(b"\0") != os.fsencode(self.path.name):
            return errno.ENOENT, b""
        return 0, struct.pack("<4Q2I", FILE, 0, 0, 0, 0, 0) + self._attributes(FILE)

    def _attributes(self, node: int) -> bytes:
        if node == ROOT:
            return struct.pack(
                "<6Q10I", 1, 0, 0, *(0, 0, 0, 0, 0, 0), stat.S_IFDIR | 0o711, 2, 0, 0, 0, 4096, 0
            )
        times = (0, 0, 0, 0, 0, 0)
        return struct.pack(
            "<6Q10I", 2, self._size, self._status.st_blocks, *times, self._mode, 1, *self._owner, 0, 4096, 0
        )

    def _set_attributes(self, node: int, body: bytes) -> tuple[int, bytes]:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        mode, _, uid, gid = struct.unpack_from("<4I", body, 68)
        if valid & SET_MODE:
            self._mode = mode
        self._owner = (uid if valid & SET_UID else self._owner[0], gid if valid & SET_GID else self._owner[1])
        if valid & SET_SIZE:
            if size < self._size:
                return errno.EOPNOTSUPP, b""
            self._size = size
        return 0, struct.pack("<QII", 0, 0, 0) + self._attributes(node)

    def _read(self, _: int, body: bytes) -> tuple[int, bytes]:
        _, offset, count = struct.unpack_from("<QQI", body)
        return 0, bytes(self._pages.read(offset, max(0, min(count, self._size - offset))))

    def _write(self, _: int, body: bytes) -> tuple[int, bytes]:
        _, offset, count = struct.unpack_from("<QQI", body)
        self._pages.write(offset, body[40 : 40 + count])
        self._size = max(self._size, offset + count)
        return 0, struct.pack("<II", count, 0)

    def _sync(self, *_: object) -> tuple[int, bytes]:
        self.syncs += 1
        os.ftruncate(self._backing, self._size)
        self._pages.flush()
        return 0, b""


@contextlib.contextmanager
def losing_file(path: Path) -> Iterator[LosingFile]:
    file = LosingFile(path)
    try:
        yield file
    finally:
        file.close()
