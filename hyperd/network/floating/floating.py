# SPDX-License-Identifier: Apache-2.0
"""``Floating``: floating addresses, from their records to the kernel.

One that is attached is an address of the host's loopback, so that the host answers for it (ARP) on whatever wire it is
asked, and an element of the maps in ``rules``. The record comes first; what was cut short is made right by ``stand``.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from pyroute2 import AsyncIPRoute

from hyperd.errors import InvalidError
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.model.network import FloatingAddress
from hyperd.model.vm import SandboxId
from hyperd.network import flows
from hyperd.network.elements import INET_FAMILY
from hyperd.network.floating.records import FloatingRecords
from hyperd.network.floating.rules import render, table_of
from hyperd.network.netlink import network_errors
from hyperd.network.policy.load import load_rules
from hyperd.network.policy.sets import has_table
from hyperd.network.standing import count_rules

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,62}")
_LOOPBACK = 1  # its index
AddressOf = Callable[[SandboxId], Awaitable[IPv4Address | None]]


class Floating:
    """``base``, ``bridge``: of the default network. ``address_of``: a sandbox's, when it has a lease."""

    def __init__(
        self, database: Database, pools: Sequence[IPv4Network], base: str, bridge: str, address_of: AddressOf
    ) -> None:
        self._records = FloatingRecords(database)
        self._pools = tuple(pools)
        self._base, self._bridge = base, bridge
        self._address_of = address_of
        self._changing = asyncio.Lock()
        self._is_prepared = False
        self._attached: set[SandboxId] = set()
        self._in_force: dict[IPv4Address, IPv4Address] | None = None  # None: an earlier hyperd's may be
        self._standing = 0  # rules in the table
        self._kernel = Workers("floating", 1)
        self._label = f"lo:{bridge}"[:15]  # what tells our addresses there from the host's own

    async def stand(self) -> None:
        """All of it as the records have it, whatever there is. Idempotent. Raises UnavailableError, DeniedError."""
        async with self._changing:
            await self._prepare()
            wanted = await self._wanted()
            ours = {address for address, label in await _addresses() if label == self._label}
            if wanted or ours or await self._has_table():
                await self._apply(wanted, ours)

    async def look(self) -> None:
        """Whether nobody has taken away what should be in force; else as ``stand``."""
        if self._in_force and await self._count_rules() != self._standing:
            await self.stand()

    def close(self) -> None:
        """What is in force stays."""
        self._kernel.close()

    async def list_addresses(self) -> list[FloatingAddress]:
        """In order."""
        await self._prepare()
        return await self._records.list_all()

    async def allocate(self, count: int, wanted: str = "") -> list[FloatingAddress]:
        """Raises ExhaustedError, ExistsError for the wanted one, InvalidError."""
        await self._prepare()
        others = {address for address, label in await _addresses() if label != self._label}
        return await self._records.allocate(self._pools, others, count, _address(wanted) if wanted else None)

    async def attach(self, reference: str, sandbox_id: SandboxId, *, force: bool = False) -> FloatingAddress:
        """Until it is detached or the sandbox released. Raises NotFoundError, WrongStateError, ExistsError."""
        await self._prepare()
        self._attached.add(sandbox_id)  # before: who releases it meanwhile finds it to do
        made = await self._records.attach(reference, sandbox_id, force=force)
        self._attached = {each.sandbox_id for each in await self._records.list_all() if each.sandbox_id}
        await self.stand()
        return made

    async def detach(self, sandbox_id: SandboxId) -> FloatingAddress | None:
        """None: it had none. Idempotent."""
        await self._prepare()
        if sandbox_id not in self._attached:
            return None
        had = await self._records.detach(sandbox_id)
        await self.stand()
        self._attached.discard(sandbox_id)  # only now: who tries again finds it to do
        return had

    async def owners(self) -> set[SandboxId]:
        """Whoever has one."""
        await self._prepare()
        return {each.sandbox_id for each in await self._records.list_all() if each.sandbox_id}

    async def follow(self, sandbox_id: SandboxId) -> None:
        """It has an address by now, perhaps another one than before."""
        await self._prepare()
        if sandbox_id in self._attached:
            await self.stand()

    async def name(self, reference: str, name: str) -> FloatingAddress:
        """``name`` "": none. Raises NotFoundError, ExistsError, InvalidError."""
        if name and not _NAME.fullmatch(name):
            raise InvalidError("is not a name for a floating address", subject=repr(name))
        await self._prepare()
        return await self._records.name(reference, name)

    async def release(self, reference: str) -> None:
        """Raises NotFoundError, WrongStateError while it is attached."""
        await self._prepare()
        await self._records.release(reference)

    async def _prepare(self) -> None:
        if not self._is_prepared:
            await self._records.prepare()
            known = await self._records.list_all()
            self._attached = {each.sandbox_id for each in known if each.sandbox_id}
            self._is_prepared = True

    async def _wanted(self) -> dict[IPv4Address, IPv4Address]:
        found = {}
        for known in await self._records.list_all():
            inside = await self._address_of(known.sandbox_id) if known.sandbox_id else None
            if inside is not None:
                found[IPv4Address(known.address)] = inside
        return found

    async def _apply(self, wanted: dict[IPv4Address, IPv4Address], ours: set[IPv4Address]) -> None:
        """No address without its rule: the host's own services are not to be found at one that it only answers for."""
        with network_errors("floating addresses"):
            async with AsyncIPRoute() as netlink:
                for address in ours - wanted.keys():
                    await netlink.addr("del", index=_LOOPBACK, address=str(address), prefixlen=32)
                await load_rules(render(self._base, self._bridge, wanted), table_of(self._base))
                for address in wanted.keys() - ours:
                    await netlink.addr(
                        "add", index=_LOOPBACK, address=str(address), prefixlen=32, label=self._label
                    )
                if wanted != self._in_force:
                    known = ours | wanted.keys() | (self._in_force or {}).keys()
                    await self._kernel.call(flows.forget_strays, known, wanted)
        self._in_force, self._standing = wanted, await self._count_rules()

    async def _count_rules(self) -> int:
        with network_errors("floating addresses"):
            return await self._kernel.call(count_rules, INET_FAMILY, table_of(self._base))

    async def _has_table(self) -> bool:
        with network_errors("floating addresses"):
            return await self._kernel.call(has_table, table_of(self._base))


async def _addresses() -> list[tuple[IPv4Address, str]]:
    """Of the host: each with its label."""
    with network_errors("the host's addresses"):
        async with AsyncIPRoute() as netlink:
            return [
                (IPv4Address(each.get_attr("IFA_LOCAL")), each.get_attr("IFA_LABEL") or "")
                async for each in await netlink.addr("dump", family=socket.AF_INET)
            ]


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise InvalidError("is no IPv4 address", subject=repr(text)) from error
