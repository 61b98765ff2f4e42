# SPDX-License-Identifier: Apache-2.0
"""Tables that are taken away, and rules of ours that come, change or go, heard of when it happens: whoever flushes the
host's rules takes ours away, too.

The kernel tells every change of nftables to whoever listens; see linux/netfilter/nfnetlink.h.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hyperd.network.elements import NETLINK_NETFILTER, attributes
from hyperd.network.policy.hooks import HOOKS

_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_DELTABLE = 10 << 8 | 2
_RULES = 10 << 8 | 6, 10 << 8 | 8  # new, gone
_TABLE, _CHAIN = 1, 2
_OURS, _CHANGING = b"hyper_", b"_policy"
_MESSAGE_BYTES = 1 << 16
_AT_ONCE = 64
TOGETHER_S = 0.2


class TableWatch:
    def __init__(self, kernel: socket.socket) -> None:
        self._kernel = kernel
        self._next_at = 0.0
        self._gone = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Until some table was taken away or a rule of ours changed, since the last call; False when not for so long.

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
            if _has_change(message):
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


def _has_change(message: bytes) -> bool:
    while len(message) >= 16:
        size, kind = struct.unpack_from("=IH", message)
        if kind == _DELTABLE or (kind in _RULES and _is_of_ours(message[20:size])):
            return True
        if size < 16:
            return False
        message = message[size + (-size % 4) :]
    return False


def _is_of_ours(body: bytes) -> bool:
    """But of a policy's table only what all have in common: the rest comes and goes with sandboxes."""
    parts = dict(attributes(body))
    table = parts.get(_TABLE, b"").rstrip(b"\0")
    if not table.startswith(_OURS):
        return False
    chain = parts.get(_CHAIN, b"").rstrip(b"\0").decode(errors="replace")
    return not table.endswith(_CHANGING) or chain in HOOKS
