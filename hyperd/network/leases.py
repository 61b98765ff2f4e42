# SPDX-License-Identifier: Apache-2.0
"""Who has which address, in the records: a lease outlives taps, sandboxes' stops and hyperd itself."""

import asyncio
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from hyperd.errors import ExistsError, InvalidError, WrongStateError
from hyperd.host.database import Database
from hyperd.model.vm import SandboxId
from hyperd.network import definitions, port_records
from hyperd.network.pool import Pool, address4_of, address_of, mac_of
from hyperd.network.settings import BridgeSettings
from hyperd.network.tap import tap_name

_MIGRATIONS = (
    """CREATE TABLE network_lease (
        network TEXT NOT NULL, sandbox_id TEXT NOT NULL, address INTEGER NOT NULL,
        PRIMARY KEY (network, sandbox_id), UNIQUE (network, address)
    ) STRICT""",
    "CREATE TABLE network_cursor (network TEXT PRIMARY KEY, last_address INTEGER NOT NULL) STRICT",
    "CREATE TABLE network_owner (id TEXT PRIMARY KEY) STRICT",
    port_records.MIGRATION,
    definitions.MIGRATION,
    "ALTER TABLE network_lease ADD COLUMN mac TEXT NOT NULL DEFAULT ''",  # asked for; else it follows from the address
    "ALTER TABLE network_lease ADD COLUMN slot INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE network_lease ADD COLUMN address6 TEXT NOT NULL DEFAULT ''",  # asked for; else it follows
    *definitions.FURTHER_MIGRATIONS,
    *port_records.FURTHER_MIGRATIONS,
    "ALTER TABLE network_lease ADD COLUMN gateway_priority INTEGER NOT NULL DEFAULT 0",
)


@dataclass(frozen=True, slots=True)
class Lease:
    sandbox_id: SandboxId
    address: IPv4Address
    is_new: bool = False
    own_mac: str = ""  # "" = follows from the address
    slot: int = 0
    own_address6: IPv6Address | None = None  # None: follows from the address, where there is IPv6
    gateway_priority: int = 0  # as of an endpoint

    @property
    def mac(self) -> str:
        return self.own_mac or mac_of(self.address)

    @property
    def tap(self) -> str:
        return tap_name(self.sandbox_id, self.slot)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a sandbox wants its lease to be; what it leaves open is chosen."""

    address: IPv4Address | None = None
    mac: str = ""
    slot: int = 0  # of its NICs
    address6: IPv6Address | None = None
    gateway_priority: int = 0


NO_WISH = Wish()


class _TakenError(Exception):
    """By whom: told outside of the transaction, whose thread does not ask what he is called."""

    def __init__(self, owner: str, subject: str) -> None:
        super().__init__(subject)
        self.owner = SandboxId(owner)
        self.subject = subject


def in_short(sandbox_id: SandboxId) -> str:
    return sandbox_id[:12]


class Leases:
    """The leases of one network. ``called``: how users are told of an owner."""

    def __init__(
        self, database: Database, settings: BridgeSettings, called: Callable[[SandboxId], str] = in_short
    ) -> None:
        self._database = database
        self._settings = settings
        self._called = called

    async def prepare(self) -> None:
        await self._database.migrate("network", _MIGRATIONS)

    async def owner(self) -> str:
        """What tells the taps of these records from those of another state directory on the same host."""

        def work(connection: sqlite3.Connection) -> str:
            row = connection.execute("SELECT id FROM network_owner").fetchone()
            if row is not None:
                return str(row[0])
            made = secrets.token_hex(8)
            connection.execute("INSERT INTO network_owner (id) VALUES (?)", (made,))
            return made

        return await self._database.transaction(work)

    async def lease(self, sandbox_id: SandboxId, wish: Wish = NO_WISH) -> Lease:
        """The sandbox's lease, made when it has none in this subnet.

        Raises ExhaustedError; of an address or a MAC that is wished for ExistsError, InvalidError.

        A caller that is cancelled leaves no new lease: the transaction runs to its end all the same, so it is undone
        by one that runs behind it.
        """
        made: list[Lease] = []

        def work(connection: sqlite3.Connection) -> Lease:
            made.append(self._lease(connection, sandbox_id, wish))
            return made[0]

        def undo(connection: sqlite3.Connection) -> None:
            if made and made[0].is_new:
                self._release(connection, sandbox_id)

        try:
            return await self._database.transaction(work)
        except _TakenError as taken:
            raise ExistsError(self._in_use(taken), subject=taken.subject) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._database.transaction(undo))
            raise

    async def find(self, sandbox_id: SandboxId) -> Lease | None:
        return await self._database.transaction(lambda connection: self._find(connection, sandbox_id))

    async def networks_of(self, sandbox_id: SandboxId) -> set[str]:
        """Of all networks, by name."""

        def work(connection: sqlite3.Connection) -> set[str]:
            rows = connection.execute("SELECT network FROM network_lease WHERE sandbox_id = ?", (sandbox_id,))
            return {row[0] for row in rows}

        return await self._database.transaction(work)

    async def release(self, sandbox_id: SandboxId) -> None:
        await self._database.transaction(lambda connection: self._release(connection, sandbox_id))

    async def forget_all(self) -> None:
        """The network goes. Raises WrongStateError when there is a lease."""
        name = self._settings.name

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(
                "SELECT sandbox_id FROM network_lease WHERE network = ?", (name,)
            ).fetchone()
            if row is not None:
                raise _TakenError(row[0], f"network {name}")
            connection.execute("DELETE FROM network_cursor WHERE network = ?", (name,))

        try:
            await self._database.transaction(work)
        except _TakenError as taken:
            raise WrongStateError(self._in_use(taken), subject=taken.subject) from None

    async def list_owners(self) -> set[SandboxId]:
        return {lease.sandbox_id for lease in await self.list_all()}

    async def list_all(self) -> list[Lease]:
        def work(connection: sqlite3.Connection) -> list[Lease]:
            rows = connection.execute("SELECT * FROM network_lease WHERE network = ?", (self._settings.name,))
            return [_decode(row) for row in rows]

        return await self._database.transaction(work)

    def _in_use(self, taken: _TakenError) -> str:
        return f"is in use by {self._called(taken.owner)}"

    def _find(self, connection: sqlite3.Connection, sandbox_id: SandboxId) -> Lease | None:
        row = connection.execute(
            "SELECT * FROM network_lease WHERE network = ? AND sandbox_id = ?",
            (self._settings.name, sandbox_id),
        ).fetchone()
        return _decode(row) if row else None

    def _release(self, connection: sqlite3.Connection, sandbox_id: SandboxId) -> None:
        connection.execute(
            "DELETE FROM network_lease WHERE network = ? AND sandbox_id = ?",
            (self._settings.name, sandbox_id),
        )

    def _lease(self, connection: sqlite3.Connection, sandbox_id: SandboxId, wish: Wish) -> Lease:
        held = self._find(connection, sandbox_id)
        if held is not None and held.address in self._settings.subnet:
            lease = _as_wished(held, wish)
            if wish.address not in (None, held.address):
                lease = replace(lease, address=self._choose(connection, wish.address), is_new=True)
            elif lease == held:
                return held
        else:  # none, or one from before the configuration changed
            made = Lease(sandbox_id, self._choose(connection, wish.address), is_new=True)
            lease = _as_wished(made, wish)
        self._require_own_mac(connection, lease)
        self._require_own_address6(connection, lease)
        connection.execute(
            "INSERT INTO network_lease (network, sandbox_id, address, mac, slot, address6, gateway_priority)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (network, sandbox_id) DO UPDATE SET address = excluded.address,"
            " mac = excluded.mac, slot = excluded.slot, address6 = excluded.address6,"
            " gateway_priority = excluded.gateway_priority",
            (
                self._settings.name,
                sandbox_id,
                int(lease.address),
                lease.own_mac,
                lease.slot,
                str(lease.own_address6 or ""),
                lease.gateway_priority,
            ),
        )
        return lease

    def _require_own_mac(self, connection: sqlite3.Connection, lease: Lease) -> None:
        implied = address_of(lease.mac)
        owner = connection.execute(
            "SELECT sandbox_id FROM network_lease WHERE network = ? AND sandbox_id != ?"
            " AND (mac = ? OR (mac = '' AND address = ?))",
            (self._settings.name, lease.sandbox_id, lease.mac, int(implied) if implied else -1),
        ).fetchone()
        if owner is not None:
            raise _TakenError(owner[0], f"MAC address {lease.mac}")
        if lease.mac == mac_of(self._settings.gateway):
            raise ExistsError("is in use by the gateway", subject=f"MAC address {lease.mac}")

    def _require_own_address6(self, connection: sqlite3.Connection, lease: Lease) -> None:
        """Raises InvalidError, ExistsError."""
        wanted, settings = lease.own_address6, self._settings
        if wanted is None:
            return
        subnet6 = settings.subnet6
        if subnet6 is None:
            raise InvalidError("has no IPv6", subject=f"network {settings.name}", hint="make it with --ipv6")
        if wanted not in subnet6 or wanted in (subnet6.network_address, settings.gateway6):
            raise InvalidError(f"is none that a sandbox can have in {subnet6}", subject=f"address {wanted}")
        implied = address4_of(wanted, settings.subnet, subnet6)
        owner = connection.execute(
            "SELECT sandbox_id FROM network_lease WHERE network = ? AND sandbox_id != ?"
            " AND (address6 = ? OR address = ?)",
            (settings.name, lease.sandbox_id, str(wanted), int(implied) if implied else -1),
        ).fetchone()
        if owner is not None:
            raise _TakenError(owner[0], f"address {wanted}")

    def _taken(self, connection: sqlite3.Connection) -> list[IPv4Address]:
        """Those of which the IPv6 address that would follow is somebody's, too."""
        settings = self._settings
        rows = connection.execute(
            "SELECT address, address6 FROM network_lease WHERE network = ?", (settings.name,)
        ).fetchall()
        taken = [IPv4Address(row[0]) for row in rows]
        if settings.subnet6 is not None:
            asked_for = (_address6(row[1]) for row in rows if row[1])
            implied = (address4_of(address, settings.subnet, settings.subnet6) for address in asked_for)
            taken += [address for address in implied if address is not None]
        return taken

    def _choose(self, connection: sqlite3.Connection, wanted: IPv4Address | None) -> IPv4Address:
        """``wanted``, or the next one, of which it is remembered that it was the last."""
        network, settings = self._settings.name, self._settings
        cursor = connection.execute(
            "SELECT last_address FROM network_cursor WHERE network = ?", (network,)
        ).fetchone()
        pool = Pool.of(
            settings.subnet,
            settings.gateway,
            self._taken(connection),
            IPv4Address(cursor[0]) if cursor else None,
            settings.ip_range,
        )
        if wanted is not None:
            owner = connection.execute(
                "SELECT sandbox_id FROM network_lease WHERE network = ? AND address = ?",
                (network, int(wanted)),
            ).fetchone()
            if owner is not None:
                raise _TakenError(owner[0], f"address {wanted}")
            pool.require(wanted)
            if wanted in pool.taken:
                raise ExistsError("stands where an IPv6 address is in use", subject=f"address {wanted}")
            return wanted
        address, _ = pool.give()
        connection.execute(
            "INSERT INTO network_cursor (network, last_address) VALUES (?, ?)"
            " ON CONFLICT (network) DO UPDATE SET last_address = excluded.last_address",
            (network, int(address)),
        )
        return address


def _as_wished(lease: Lease, wish: Wish) -> Lease:
    return replace(
        lease,
        own_mac=wish.mac,
        slot=wish.slot,
        own_address6=wish.address6,
        gateway_priority=wish.gateway_priority,
    )


def _address6(text: str) -> IPv6Address:
    """Without the scope that an earlier hyperd let in, which nftables does not."""
    return IPv6Address(text.partition("%")[0])


def _decode(row: sqlite3.Row) -> Lease:
    return Lease(
        SandboxId(row["sandbox_id"]),
        IPv4Address(row["address"]),
        own_mac=row["mac"],
        slot=row["slot"],
        own_address6=_address6(row["address6"]) if row["address6"] else None,
        gateway_priority=row["gateway_priority"],
    )
