# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that lead to sandboxes: chosen, held, recorded, told to the kernel; and all of it back.

The record comes before the rule and goes after it, so that what a killed hyperd left is found by the next one, which
makes the rules from the records.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hyperd.errors import ExistsError, InvalidError, NotFoundError, UnsupportedError
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.model.network import PortRequest, Protocol, PublishedPort, shown
from hyperd.model.vm import SandboxId
from hyperd.network import elements, flows, holds
from hyperd.network.bridge import is_loopback6_led
from hyperd.network.elements import INET_FAMILY
from hyperd.network.forwards import Forward, Inside, element
from hyperd.network.netlink import network_errors
from hyperd.network.port_places import are_as_asked, places
from hyperd.network.port_records import PortRecords
from hyperd.network.settings import Address

_log = logging.getLogger(__name__)
MAX_PORTS = 1024  # of one sandbox: each is a file descriptor of hyperd's
_TRIES = 20  # for a port that is free in both families

_LOOPBACK6 = IPv6Address("::1")

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
        self._records = PortRecords(database, network)
        self._table = table
        self._default_address = default_address
        self._taps = taps
        self._looking = Workers("ports", 1)  # at all that the host has of something: no start waits for that
        self._lock = lock
        self._forwards: dict[Forward, tuple[SandboxId, str]] = {}  # whose, by id and name
        self._of_sandbox: dict[SandboxId, list[Forward]] = {}
        self._at_port: AtPort = {} if at_port is None else at_port
        self._sockets: dict[Forward, socket.socket] = {}

    async def load(self) -> None:
        """What the records say, when hyperd begins."""
        for sandbox_id, holder, forward in await self._records.list_all():
            if forward in self._sockets:
                continue  # the last time failed later
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
            held = await self._looking.call(holds.hold_beside, forward.host_ip, forward.host_port)
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
        inside: Inside,
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
                    made += await self._take(sandbox_id, holder, inside, request)
                await self._records.insert((*self._forwards[forward], forward) for forward in made)
                await self._taps.call(self._put_in, made)
                self._loopback()
            await self._looking.call(_forget_flows, [f for f in made if f.protocol is Protocol.UDP], ())
        except BaseException as error:
            await asyncio.shield(self._undo(made))
            if isinstance(error, _HostHasIt):
                raise await self._explained(error) from None
            raise
        return tuple(forward.published for forward in made)

    async def publish_again(
        self, sandbox_id: SandboxId, holder: str, inside: Inside, requests: Sequence[PortRequest]
    ) -> None:
        """As ``publish``; what is there of it stays, its rules made sure of, and all else of the sandbox goes."""
        async with self._lock:
            mine = self._of(sandbox_id)
            if mine and are_as_asked(mine, requests, inside, self._default_address):
                await self._taps.call(self._put_in, mine)
                return
        await self.withdraw(sandbox_id)
        await self.publish(sandbox_id, holder, inside, requests)

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
        self._looking.close()
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
        await self._looking.call(_forget_flows, (), stale)

    async def _undo(self, made: Collection[Forward]) -> None:
        async with self._lock:
            await self._drop([forward for forward in made if forward in self._forwards])

    def _of(self, sandbox_id: SandboxId) -> list[Forward]:
        return list(self._of_sandbox.get(sandbox_id, ()))

    def _remember(self, forward: Forward, sandbox_id: SandboxId, holder: str) -> None:
        if forward in self._forwards:
            return
        self._forwards[forward] = (sandbox_id, holder)
        self._of_sandbox.setdefault(sandbox_id, []).append(forward)
        self._at_port.setdefault(forward.host_port, []).append((forward, holder))

    def _forget(self, forward: Forward) -> None:
        if forward in self._forwards:
            sandbox_id, holder = self._forwards.pop(forward)
            _take_from(self._of_sandbox, sandbox_id, forward)
            _take_from(self._at_port, forward.host_port, (forward, holder))

    async def _take(
        self, sandbox_id: SandboxId, holder: str, inside: Inside, request: PortRequest
    ) -> list[Forward]:
        """Held from here on, and in memory."""
        host_ips = places(request, self._default_address, inside)
        if host_ips == (_LOOPBACK6,) and not is_loopback6_led():
            raise UnsupportedError(
                "is not led to containers while net.bridge.bridge-nf-call-ip6tables is 1",
                subject=f"host address {_LOOPBACK6}",
                hint="set it to 0, or publish at 127.0.0.1",
            )
        last = max(request.host_port, request.host_port_end)
        numbers = range(request.host_port, last + 1) if request.host_port else [0] * _TRIES
        refused: ExistsError | _HostHasIt | None = None
        for host_port in numbers:
            try:
                number, held = await self._hold_at(request.protocol, host_ips, host_port)
            except (ExistsError, _HostHasIt) as error:
                refused = error
                continue
            made = [inside.forward(request, host_ip, number) for host_ip in host_ips]
            for forward, one in zip(made, held, strict=True):
                self._remember(forward, sandbox_id, holder)
                self._sockets[forward] = one
            return made
        assert refused is not None  # noqa: S101 - a range has at least one
        if isinstance(refused, _HostHasIt):
            refused.request = request
            raise refused
        raise _refusal(request, host_ips[0], refused)

    async def _hold_at(
        self, protocol: Protocol, host_ips: Sequence[Address], host_port: int
    ) -> tuple[int, list[socket.socket]]:
        """One port at all of them; ``host_port`` 0: that is free at the first. Raises as ``_hold``."""
        held: list[socket.socket] = []
        number = host_port
        try:
            for host_ip in host_ips:
                held.append(await self._hold(protocol, host_ip, number))
                number = number or held[0].getsockname()[1]
        except BaseException:
            for one in held:
                one.close()
            raise
        return number, held

    async def _hold(self, protocol: Protocol, host_ip: Address, host_port: int) -> socket.socket:
        """Raises ExistsError when a container has it, _HostHasIt when a process of the host has."""
        self._require_free(protocol, host_ip, host_port)
        try:
            return holds.hold(protocol, host_ip, host_port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise holds.refusal(error, _title(protocol, host_ip, host_port)) from error
        if protocol is not Protocol.TCP or not host_port:
            raise _HostHasIt(protocol, host_ip, host_port)
        held = await self._looking.call(holds.hold_beside, host_ip, host_port)
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

    def _require_free(self, protocol: Protocol, host_ip: Address, host_port: int) -> None:
        for forward, holder in self._at_port.get(host_port, ()):
            if forward.overlaps(protocol, host_ip, host_port):
                raise _taken(protocol, host_ip, host_port, f"container {holder}")

    async def _explained(self, held: "_HostHasIt") -> ExistsError:
        """With who has it, which takes a while to find out: no start waits for that."""
        owner = await self._looking.call(holds.find_owner, held.protocol, held.host_port)
        refused = _taken(held.protocol, held.host_ip, held.host_port, owner or "a process of the host")
        return _refusal(held.request, held.host_ip, refused)

    async def _drop(self, gone: Collection[Forward]) -> None:
        """In whatever state they are."""
        if not gone:
            return
        await self._taps.call(self._take_out, gone)
        await self._records.delete(gone)
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

    def __init__(self, protocol: Protocol, host_ip: Address, host_port: int) -> None:
        super().__init__(_title(protocol, host_ip, host_port))
        self.protocol, self.host_ip, self.host_port = protocol, host_ip, host_port
        self.request = PortRequest(0)


def _refusal(request: PortRequest, host_ip: Address, refused: ExistsError) -> ExistsError:
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


def _title(protocol: Protocol, host_ip: Address, host_port: int) -> str:
    return f"port {shown(str(host_ip))}:{host_port}/{protocol}"


def _taken(protocol: Protocol, host_ip: Address, host_port: int, owner: str) -> ExistsError:
    return ExistsError(
        f"is in use by {owner}",
        subject=_title(protocol, host_ip, host_port),
        hint="publish another port of the host, or leave it out for one that is free",
    )
