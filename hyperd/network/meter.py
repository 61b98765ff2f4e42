# SPDX-License-Identifier: Apache-2.0
"""What has gone over taps, and what rates have dropped, as the kernel counts it.

One read of /proc/net/dev for all taps of the host; for those with a rate one message each, see linux/rtnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hyperd.host.workers import Workers
from hyperd.model.stats import WireUsage
from hyperd.model.vm import SandboxId
from hyperd.network.elements import attributes
from hyperd.network.netlink import network_errors
from hyperd.network.policy import Policies
from hyperd.network.tap import SLOTS, tap_name

_COUNTS = Path("/proc/self/net/dev")
_ANSWER_S = 5.0
_ANSWER_BYTES = 8192
_GETQDISC, _ERROR = 38, 2
_REQUEST = 1 | 8  # and to be answered: NLM_F_ECHO
_ROOT = 0xFFFFFFFF
_STATS, _QUEUE = 7, 3
_MISSING = (errno.ENODEV, errno.ENOENT)
Counts = Mapping[str, tuple[int, int, int, int]]


class Meter:
    def __init__(self, policies: Policies) -> None:
        self._policies = policies
        self._kernel = Workers("meter", 1)

    async def read(self, sandbox_ids: Collection[SandboxId]) -> dict[SandboxId, WireUsage]:
        """Of those that have taps. Raises UnavailableError."""
        dropped_out = await self._policies.dropped_out()
        shaped = {wire.name for wire in self._policies.rated() if wire.rate_in}
        with network_errors("what has gone over taps"):
            return await self._kernel.call(_read, sandbox_ids, dropped_out, shaped)

    def close(self) -> None:
        self._kernel.close()


def parse_counts(text: str) -> dict[str, tuple[int, int, int, int]]:
    """/proc/net/dev: bytes and packets that came from an interface, then those that went to it. See proc(5)."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        found[name.strip()] = (int(fields[0]), int(fields[1]), int(fields[8]), int(fields[9]))
    return found


def _read(
    sandbox_ids: Iterable[SandboxId], dropped_out: Mapping[str, int], shaped: Collection[str]
) -> dict[SandboxId, WireUsage]:
    counts = parse_counts(_COUNTS.read_text())
    found = {}
    for sandbox_id in sandbox_ids:
        names = [tap_name(sandbox_id, slot) for slot in range(SLOTS)]
        taps = [name for name in names if name in counts]
        if taps:
            sums = [sum(values) for values in zip(*(counts[tap] for tap in taps), strict=True)]
            found[sandbox_id] = WireUsage(
                sent_bytes=sums[0],
                sent_packets=sums[1],
                received_bytes=sums[2],
                received_packets=sums[3],
                dropped_in=sum(_dropped_in(tap) for tap in taps if tap in shaped),
                dropped_out=sum(dropped_out.get(tap, 0) for tap in taps),
            )
    return found


def _dropped_in(tap: str) -> int:
    """By the tap's root queueing discipline; 0 when it has gone meanwhile."""
    try:
        index = socket.if_nametoindex(tap)
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        ) as kernel:
            kernel.settimeout(_ANSWER_S)
            body = struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, 0, _ROOT, 0)
            kernel.send(struct.pack("=IHHII", 16 + len(body), _GETQDISC, _REQUEST, 1, 0) + body)
            answer = kernel.recv(_ANSWER_BYTES)
    except OSError as error:
        if error.errno in _MISSING:
            return 0
        raise
    size, kind = struct.unpack_from("=IH", answer)
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", answer, 16)
        if -code in _MISSING:
            return 0
        raise OSError(-code, os.strerror(-code))
    queue = dict(attributes(dict(attributes(answer[36:size])).get(_STATS, b""))).get(_QUEUE, b"")
    return int(struct.unpack_from("=III", queue)[2]) if len(queue) >= 12 else 0
