# SPDX-License-Identifier: Apache-2.0
"""Tables that are taken away and rules that are taken out of ours, heard of when it happens: whoever flushes the host's
rules takes ours away, too.

The kernel tells every change of nftables to whoever listens; see linux/netfilter/nfnetlink.h.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hyperd.network.elements import NETLINK_NETFILTER

_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_DELTABLE, _DELRULE = 10 << 8 | 2, 10 << 8 | 8
_TABLE = 1
_OURS, _CHANGING = b"hyper_", b"_policy"  # that one's rules come and go with sandboxes
_MESSAGE_BYTES = 1 << 16
_AT_ONCE = 64
TOGETHER_S = 0.2


class TableWatch:
    def __init__(self, kernel: socket.socket) -> None:
        self._kernel = kernel
        self._next_at = 0.0
        self._gone = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Until some table was taken away, since the last call; False when none was for so long.

        The first is told at once, those that follow together: others may replace theirs all the time.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._gone.wait()
        except TimeoutError:
            return False
        await asyncio.sleep(self._next_at - loop.time())
        self._gone.clear()
        self._next_at = loop.time() + TOGETHER_S
        return True

    def hear(self) -> None:
        """Something has changed."""
        for _ in range(_AT_ONCE):
            try:
                message = self._kernel.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._gone.set()  # more than there was room for: perhaps that, too
                continue
            if _has_deletion(message):
                self._gone.set()


@asynccontextmanager
async def watching() -> AsyncIterator[TableWatch]:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER) as kernel:
        kernel.bind((0, _GROUP))
        watch = TableWatch(kernel)
        loop.add_reader(kernel.fileno(), watch.hear)
        try:
            yield watch
        finally:
            loop.remove_reader(kernel.fileno())


def _has_deletion(message: bytes) -> bool:
    while len(message) >= 16:
        size, kind = struct.unpack_from("=IH", message)
        if kind == _DELTABLE or (kind == _DELRULE and _is_of_ours(message[20:size])):
            return True
        if size < 16:
            return False
        message = message[size + (-size % 4) :]
    return False


def _is_of_ours(body: bytes) -> bool:
    while len(body) >= 4:
        size, kind = struct.unpack_from("=HH", body)
        if size < 4:
            return False
        if kind & 0x3FFF == _TABLE:
            name = body[4:size].rstrip(b"\0")
            return name.startswith(_OURS) and not name.endswith(_CHANGING)
        body = body[size + (-size % 4) :]
    return False
