# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that lead to sandboxes: chosen, held, recorded, told to the kernel; and all of it back.

The record comes before the rule and goes after it, so that what a killed hyperd left is found by the next one, which
makes the rules from the records.
"""

import asyncio
import errno
import logging
import socket
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from hyperd.errors import ExistsError, InvalidError, NotFoundError, UnsupportedError
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.model.network import PortRequest, Protocol, PublishedPort
from hyperd.model.vm import SandboxId
from hyperd.network import elements, flows, holds
from hyperd.network.elements import INET_FAMILY
from hyperd.network.forwards import Forward, are_as_asked, element
from hyperd.network.netlink import network_errors

_log = logging.getLogger(__name__)
MAX_PORTS = 1024  # of one sandbox: each is a file descriptor of hyperd's
MIGRATION = """CREATE TABLE network_port (
    network TEXT NOT NULL, sandbox_id TEXT NOT NULL, holder TEXT NOT NULL, address INTEGER NOT NULL,
    protocol TEXT NOT NULL, host_ip INTEGER NOT NULL, host_port INTEGER NOT NULL, container_port INTEGER NOT NULL,
    PRIMARY KEY (protocol, host_ip, host_port)
) STRICT"""

AtPort = dict[int, list[tuple[Forward, str]]]  # of the host: what is published there, and for whom


class Publishing:
    """Of one network. ``lock``: nobody else changes the rules meanwhile. ``taps``: the thread for the kernel."""

    def __init__(
        self,
        database: Database,
        network: str,
        table: str,
        default_address: IPv4Address,
        taps: Workers,
        lock: asyncio.Lock,
        at_port: "AtPort | None" = None,
        loopback: Callable[[], None] = lambda: None,
    ) -> None:
        """``at_port``: shared by the networks of one host, so that the owner of a port is known to all.

        ``loopback``: called under the lock when something was published or withdrawn.
        """
        self._loopback = loopback
        self._database = database
        self._network = network
        self._table = table
        self._default_address = default_address
        self._taps = taps
        self._lock = lock
        self._forwards: dict[Forward, tuple[SandboxId, str]] = {}  # whose, by id and name
        self._of_sandbox: dict[SandboxId, list[Forward]] = {}
        self._at_port: AtPort = {} if at_port is None else at_port
        self._sockets: dict[Forward, socket.socket] = {}

    async def load(self) -> None:
        """What the records say, when hyperd begins."""

        def work(connection: sqlite3.Connection) -> list[tuple[SandboxId, str, Forward]]:
            rows = connection.execute(
                "SELECT sandbox_id, holder, protocol, host_ip, host_port, address, container_port"
                " FROM network_port WHERE network = ?",
                (self._network,),
            )
            return [
                (
                    SandboxId(row[0]),
                    row[1],
                    Forward(Protocol(row[2]), IPv4Address(row[3]), row[4], IPv4Address(row[5]), row[6]),
                )
                for row in rows
            ]

        for sandbox_id, holder, forward in await self._database.transaction(work):
            self._remember(forward, sandbox_id, holder)
            try:
                self._sockets[forward] = await self._hold_again(forward)
            except OSError as error:  # taken while no hyperd ran; the rules lead to the sandbox all the same
                fields = {"port": str(forward.published), "sandbox": holder, "error": str(error)}
                _log.warning("a published port is not held", extra=fields)

    async def _hold_again(self, forward: Forward) -> socket.socket:
        try:
            return holds.hold(forward.protocol, forward.host_ip, forward.host_port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or forward.protocol is not Protocol.TCP:
                raise
            held = await self._taps.call(holds.hold_beside, forward.host_ip, forward.host_port)
            if held is None:
                raise
            return held

    @property
    def forwards(self) -> Collection[Forward]:
        return self._forwards.keys()

    @property
    def owners(self) -> set[SandboxId]:
        return set(self._of_sandbox)

    def of(self, sandbox_id: SandboxId) -> tuple[PublishedPort, ...]:
        published = (forward.published for forward in self._of(sandbox_id))
        return tuple(sorted(published, key=lambda p: (p.container_port, p.protocol, p.host_ip, p.host_port)))

    async def publish(
        self,
        sandbox_id: SandboxId,
        holder: str,
        address: IPv4Address,
        requests: Sequence[PortRequest],
        require: Callable[[], None] = lambda: None,
    ) -> tuple[PublishedPort, ...]:
        """All or none; ``require`` is asked when nobody else can change anything any more.

        Raises ExistsError with the owner of a port that is taken, InvalidError, ExhaustedError.
        """
        made: list[Forward] = []
        try:
            async with self._lock:
                require()
                self._require_room(sandbox_id, holder, len(requests))
                for request in requests:
                    made.append(await self._take(sandbox_id, holder, address, request))  # noqa: PERF401 - undone
                await self._record(made)
                await self._taps.call(self._put_in, made)
                self._loopback()
            await self._taps.call(_forget_flows, [f for f in made if f.protocol is Protocol.UDP], ())
        except BaseException as error:
            await asyncio.shield(self._undo(made))
            if isinstance(error, _HostHasIt):
                raise await self._explained(error) from None
            raise
        return tuple(forward.published for forward in made)

    async def publish_again(
        self, sandbox_id: SandboxId, holder: str, address: IPv4Address, requests: Sequence[PortRequest]
    ) -> None:
        """As ``publish``; what is there of it stays, its rules made sure of, and all else of the sandbox goes."""
        async with self._lock:
            mine = self._of(sandbox_id)
            if mine and are_as_asked(mine, requests, address, self._default_address):
                await self._taps.call(self._put_in, mine)
                return
        await self.withdraw(sandbox_id)
        await self.publish(sandbox_id, holder, address, requests)

    async def withdraw(
        self,
        sandbox_id: SandboxId,
        ports: Collection[PublishedPort] | None = None,
        *,
        hang_up: bool = False,
    ) -> None:
        """``ports`` None: all of them. Idempotent. ``hang_up``: TCP connections over them end, too.

        Raises NotFoundError for one that is not published.
        """
        # One task, which whoever is cancelled leaves behind with its lock.
        await asyncio.shield(self._withdraw(sandbox_id, ports, hang_up=hang_up))

    def close(self) -> None:
        """The rules stay, and with them the connections."""
        for held in self._sockets.values():
            held.close()
        self._sockets.clear()
        for forward in list(self._forwards):
            self._forget(forward)

    async def _withdraw(
        self, sandbox_id: SandboxId, ports: Collection[PublishedPort] | None, *, hang_up: bool
    ) -> None:
        async with self._lock:
            mine = self._of(sandbox_id)
            if ports is not None:
                known = {forward.published for forward in mine}
                for port in ports:
                    if port not in known:
                        raise NotFoundError("is not published", subject=f"port {port}")
                mine = [forward for forward in mine if forward.published in ports]
            await self._drop(mine)
        stale = [forward for forward in mine if hang_up or forward.protocol is Protocol.UDP]
        await self._taps.call(_forget_flows, (), stale)

    async def _undo(self, made: Collection[Forward]) -> None:
        async with self._lock:
            await self._drop([forward for forward in made if forward in self._forwards])

    def _of(self, sandbox_id: SandboxId) -> list[Forward]:
        return list(self._of_sandbox.get(sandbox_id, ()))

    def _remember(self, forward: Forward, sandbox_id: SandboxId, holder: str) -> None:
        self._forwards[forward] = (sandbox_id, holder)
        self._of_sandbox.setdefault(sandbox_id, []).append(forward)
        self._at_port.setdefault(forward.host_port, []).append((forward, holder))

    def _forget(self, forward: Forward) -> None:
        if forward in self._forwards:
            sandbox_id, holder = self._forwards.pop(forward)
            _take_from(self._of_sandbox, sandbox_id, forward)
            _take_from(self._at_port, forward.host_port, (forward, holder))

    async def _take(
        self, sandbox_id: SandboxId, holder: str, address: IPv4Address, request: PortRequest
    ) -> Forward:
        """Held from here on, and in memory."""
        host_ip = self._host_ip(request)
        refused: ExistsError | _HostHasIt | None = None
        for host_port in range(request.host_port, max(request.host_port, request.host_port_end) + 1):
            try:
                held = await self._hold(request.protocol, host_ip, host_port)
            except (ExistsError, _HostHasIt) as error:
                refused = error
                continue
            number = host_port or held.getsockname()[1]
            forward = Forward(request.protocol, host_ip, number, address, request.container_port)
            self._remember(forward, sandbox_id, holder)
            self._sockets[forward] = held
            return forward
        assert refused is not None  # noqa: S101 - a range has at least one
        if isinstance(refused, _HostHasIt):
            refused.request = request
            raise refused
        raise _refusal(request, host_ip, refused)

    async def _hold(self, protocol: Protocol, host_ip: IPv4Address, host_port: int) -> socket.socket:
        """Raises ExistsError when a container has it, _HostHasIt when a process of the host has."""
        self._require_free(protocol, host_ip, host_port)
        try:
            return holds.hold(protocol, host_ip, host_port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise holds.refusal(error, _title(protocol, host_ip, host_port)) from error
        if protocol is not Protocol.TCP or not host_port:
            raise _HostHasIt(protocol, host_ip, host_port)
        held = await self._taps.call(holds.hold_beside, host_ip, host_port)
        if held is None:
            raise _HostHasIt(protocol, host_ip, host_port)
        try:
            self._require_free(protocol, host_ip, host_port)  # it took a while
        except ExistsError:
            held.close()
            raise
        return held

    def _require_room(self, sandbox_id: SandboxId, holder: str, count: int) -> None:
        if len(self._of(sandbox_id)) + count > MAX_PORTS:
            raise InvalidError(f"more than {MAX_PORTS} ports", subject=f"container {holder}")

    def _require_free(self, protocol: Protocol, host_ip: IPv4Address, host_port: int) -> None:
        for forward, holder in self._at_port.get(host_port, ()):
            if forward.overlaps(protocol, host_ip, host_port):
                raise _taken(protocol, host_ip, host_port, f"container {holder}")

    async def _explained(self, held: "_HostHasIt") -> ExistsError:
        """With who has it, which takes a while to find out: nobody waits for that."""
        owner = await self._taps.call(holds.find_owner, held.protocol, held.host_port)
        refused = _taken(held.protocol, held.host_ip, held.host_port, owner or "a process of the host")
        return _refusal(held.request, held.host_ip, refused)

    def _host_ip(self, request: PortRequest) -> IPv4Address:
        if not request.host_ip:
            return self._default_address
        if ":" in request.host_ip:
            raise UnsupportedError(
                "ports are published at IPv4 addresses only",
                subject=f"host address {request.host_ip}",
                hint="leave it out, or give an IPv4 address of this host",
            )
        try:
            host_ip = IPv4Address(request.host_ip)
        except AddressValueError as error:
            raise InvalidError("is not an IP address", subject=repr(request.host_ip)) from error
        if host_ip.is_multicast or host_ip == IPv4Address("255.255.255.255"):
            raise InvalidError("is not an address of this host", subject=str(host_ip))
        return host_ip

    async def _record(self, made: Iterable[Forward]) -> None:
        rows = [
            (
                self._network,
                *self._forwards[forward],
                int(forward.address),
                forward.protocol.value,
                int(forward.host_ip),
                forward.host_port,
                forward.container_port,
            )
            for forward in made
        ]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT INTO network_port VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

        await self._database.transaction(work)

    async def _drop(self, gone: Collection[Forward]) -> None:
        """In whatever state they are."""
        if not gone:
            return
        keys = [(forward.protocol.value, int(forward.host_ip), forward.host_port) for forward in gone]

        def work(connection: sqlite3.Connection) -> None:
            statement = "DELETE FROM network_port WHERE protocol = ? AND host_ip = ? AND host_port = ?"
            connection.executemany(statement, keys)

        await self._taps.call(self._take_out, gone)
        await self._database.transaction(work)
        for forward in gone:
            self._forget(forward)
            held = self._sockets.pop(forward, None)
            if held is not None:
                held.close()
        self._loopback()

    def _put_in(self, made: Sequence[Forward]) -> None:
        with network_errors("published ports"):
            elements.add(INET_FAMILY, self._table, [element(forward) for forward in made])

    def _take_out(self, gone: Iterable[Forward]) -> None:
        for forward in gone:
            with network_errors("published ports"):
                try:
                    elements.remove(INET_FAMILY, self._table, [element(forward)])
                except OSError as error:
                    if error.errno != errno.ENOENT:  # nor is there perhaps a table
                        raise


def _take_from(index: dict[Any, list[Any]], key: Any, entry: Any) -> None:
    index[key].remove(entry)
    if not index[key]:
        del index[key]


class _HostHasIt(Exception):  # noqa: N818 - says who, not what failed
    """A process of the host's; which one is looked for once, when nobody waits."""

    def __init__(self, protocol: Protocol, host_ip: IPv4Address, host_port: int) -> None:
        super().__init__(_title(protocol, host_ip, host_port))
        self.protocol, self.host_ip, self.host_port = protocol, host_ip, host_port
        self.request = PortRequest(0)


def _refusal(request: PortRequest, host_ip: IPv4Address, refused: ExistsError) -> ExistsError:
    if request.host_port_end <= request.host_port:
        return refused
    brief = f"all ports from {request.host_port} to {request.host_port_end} are taken"
    return ExistsError(brief, subject=f"{host_ip}/{request.protocol}", evidence=str(refused))


def _forget_flows(begun: Collection[Forward], ended: Collection[Forward]) -> None:
    """Blocking."""
    if not begun and not ended:
        return
    try:
        flows.forget(begun, ended)
    except (
        OSError,
        LookupError,
    ) as error:  # a kernel without it: what is known keeps its way until it is idle
        _log.debug("flows not forgotten", extra={"error": str(error)})


def _title(protocol: Protocol, host_ip: IPv4Address, host_port: int) -> str:
    return f"port {host_ip}:{host_port}/{protocol}"


def _taken(protocol: Protocol, host_ip: IPv4Address, host_port: int, owner: str) -> ExistsError:
    return ExistsError(
        f"is in use by {owner}",
        subject=_title(protocol, host_ip, host_port),
        hint="publish another port of the host, or leave it out for one that is free",
    )
