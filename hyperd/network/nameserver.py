# SPDX-License-Identifier: Apache-2.0
"""A network's name server, on its gateway's address, over UDP and TCP.

Guests are hostile: each has so many questions a second and so many connections, whatever is no question is dropped.
"""

import asyncio
import errno
import functools
import logging
import socket
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode

from hyperd.errors import UnavailableError
from hyperd.network.forwarder import PAYLOAD_BYTES, Forwarder
from hyperd.network.policy import Screen
from hyperd.network.zone import Zone, answer, refusal

_log = logging.getLogger(__name__)
PORT = 53
RATE, BURST = 200.0, 400.0  # questions a second and at once, of one guest
MAX_IN_FLIGHT, MAX_IN_FLIGHT_EACH = 1024, 128  # of one network, of one guest
MAX_CONNECTIONS, MAX_CONNECTIONS_EACH = 256, 8
IDLE_S = 10.0
_MAX_QUESTION_BYTES = 2048
_MAX_GUESTS = 65536
_LEAST_BYTES = 512


class Rates:
    """A bucket of questions for each guest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, since when

    def allows(self, guest: str) -> bool:
        now = self._clock()
        left, since = self._buckets.pop(guest, (BURST, now))
        left = min(BURST, left + (now - since) * RATE)
        allowed = left >= 1
        self._buckets[guest] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MAX_GUESTS:
            self._buckets.popitem(last=False)
        return allowed


class NameServer:
    """``zone``: as it is now for who asks from that address. ``screen``: what guests with a policy may ask."""

    def __init__(
        self,
        address: IPv4Address,
        zone: Callable[[str], Zone],
        forwarder: Forwarder,
        screen: Screen | None = None,
    ) -> None:
        self._screen = screen
        self._address = address
        self._zone = zone
        self._forwarder = forwarder
        self._rates = Rates()
        self._opening = asyncio.Lock()
        self._answering: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()  # by guest
        self._connections: dict[str, int] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self) -> None:
        """Idempotent. Raises UnavailableError when something else has the port."""
        async with self._opening:  # many who start at once ask for it
            if not self.is_open:
                self._transport, self._server = await self._listen()

    async def _listen(self) -> tuple[asyncio.DatagramTransport, asyncio.Server]:
        """Both or none."""
        where = (str(self._address), PORT)
        transport: asyncio.DatagramTransport | None = None
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=where, family=socket.AF_INET
            )
            server = await asyncio.start_server(
                self._serve, *where, family=socket.AF_INET, limit=_MAX_QUESTION_BYTES
            )
        except BaseException as error:
            if transport is not None:
                transport.close()
            if not isinstance(error, OSError):
                raise
            raise UnavailableError(
                "names cannot be served",
                subject=f"{where[0]}:{PORT}",
                evidence=str(error),
                hint="a name server of the host's own listens there: let it leave out hyper's bridges"
                if error.errno == errno.EADDRINUSE
                else "",
            ) from error
        return transport, server

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        self._transport = self._server = None
        for task in self._answering:
            task.cancel()

    def hear(self, wire: bytes, peer: tuple[str, int]) -> None:
        """A datagram."""
        guest = peer[0]
        if len(self._answering) >= MAX_IN_FLIGHT or self._in_flight[guest] >= MAX_IN_FLIGHT_EACH:
            return
        if not self._rates.allows(guest):
            return
        task = asyncio.get_running_loop().create_task(self._answer_datagram(wire, peer))
        self._answering.add(task)
        self._in_flight[guest] += 1
        task.add_done_callback(functools.partial(self._answered, guest))

    def _answered(self, guest: str, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._in_flight[guest] -= 1
        if not self._in_flight[guest]:
            del self._in_flight[guest]

    async def _answer_datagram(self, wire: bytes, peer: tuple[str, int]) -> None:
        try:
            query = _parse(wire)
            if query is None:
                return
            made = await self._answer(query, peer[0])
            room = max(_LEAST_BYTES, min(query.payload, PAYLOAD_BYTES)) if query.edns >= 0 else _LEAST_BYTES
            if self._transport is not None:
                self._transport.sendto(_fitting(query, made, room), peer)
        except Exception:  # noqa: BLE001 - a guest's question ends no more than itself
            _log.exception("a question was not answered")

    async def _answer(self, query: dns.message.Message, guest: str) -> dns.message.Message:
        if query.opcode() != dns.opcode.QUERY:
            return refusal(query, dns.rcode.NOTIMP)
        zone = self._zone(guest)
        known = answer(zone, query)
        if self._screen is not None:
            screened = await self._screen.answer(guest, query, known, lambda: self._ask(zone, query, guest))
            if screened is not None:
                return screened
        return known if known is not None else await self._ask(zone, query, guest)

    async def _ask(self, zone: Zone, query: dns.message.Message, guest: str) -> dns.message.Message:
        """The others."""
        if not zone.is_outward:
            return refusal(query, dns.rcode.NXDOMAIN)
        return await self._forwarder.ask(query, guest)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = writer.get_extra_info("peername")[0]
        mine = self._connections.get(guest, 0)
        try:
            if mine >= MAX_CONNECTIONS_EACH or sum(self._connections.values()) >= MAX_CONNECTIONS:
                return
            self._connections[guest] = mine + 1
            try:
                while await self._serve_one(guest, reader, writer):
                    pass
            finally:
                self._connections[guest] -= 1
                if not self._connections[guest]:
                    del self._connections[guest]
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        except Exception:  # noqa: BLE001 - as above
            _log.exception("a connection was not served")
        finally:
            writer.close()

    async def _serve_one(
        self, guest: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        async with asyncio.timeout(IDLE_S):
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            if size > _MAX_QUESTION_BYTES:
                return False
            wire = await reader.readexactly(size)
        query = _parse(wire)
        if query is None or not self._rates.allows(guest):
            return False
        made = (await self._answer(query, guest)).to_wire(max_size=65535)
        async with asyncio.timeout(IDLE_S):
            writer.write(struct.pack("!H", len(made)) + made)
            await writer.drain()
        return True


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) <= _MAX_QUESTION_BYTES:
            self._server.hear(data, addr)

    def error_received(self, exc: Exception) -> None:
        """A guest that has gone: nobody waits for the answer."""


def _parse(wire: bytes) -> dns.message.Message | None:
    """None for what is no question."""
    try:
        query = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError, struct.error, IndexError):
        return None
    return query if not query.flags & dns.flags.QR and len(query.question) == 1 else None


def _fitting(query: dns.message.Message, made: dns.message.Message, room: int) -> bytes:
    """Cut, with the bit that has the guest ask again over TCP."""
    try:
        return made.to_wire(max_size=room)
    except dns.exception.TooBig:
        cut = refusal(query, made.rcode())
        cut.flags |= dns.flags.TC
        return cut.to_wire(max_size=room)
