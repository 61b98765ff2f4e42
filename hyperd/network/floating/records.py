# SPDX-License-Identifier: Apache-2.0
"""Floating addresses that are allocated, in the records: chosen and written down in one transaction."""

import sqlite3
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

from hyperd.errors import ExistsError, NotFoundError, WrongStateError
from hyperd.host.database import Database
from hyperd.model.network import FloatingAddress
from hyperd.model.vm import SandboxId
from hyperd.network.floating.pools import choose

_MIGRATIONS = (
    """CREATE TABLE floating_address (
        address INTEGER PRIMARY KEY, name TEXT NOT NULL, sandbox_id TEXT NOT NULL, allocated_at TEXT NOT NULL
    ) STRICT""",
    "CREATE UNIQUE INDEX floating_name ON floating_address (name) WHERE name != ''",
    "CREATE UNIQUE INDEX floating_sandbox ON floating_address (sandbox_id) WHERE sandbox_id != ''",
)


class FloatingRecords:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def prepare(self) -> None:
        await self._database.migrate("floating", _MIGRATIONS)

    async def list_all(self) -> list[FloatingAddress]:
        """In order."""

        def work(connection: sqlite3.Connection) -> list[FloatingAddress]:
            return [
                _decode(row) for row in connection.execute("SELECT * FROM floating_address ORDER BY address")
            ]

        return await self._database.transaction(work)

    async def allocate(
        self,
        pools: Sequence[IPv4Network],
        others: Collection[IPv4Address],
        count: int,
        wanted: IPv4Address | None,
    ) -> list[FloatingAddress]:
        """``others``: that the host has itself. Raises as ``choose``."""

        def work(connection: sqlite3.Connection) -> list[FloatingAddress]:
            rows = connection.execute("SELECT address FROM floating_address")
            taken = {*others, *(IPv4Address(row[0]) for row in rows)}
            chosen = choose(pools, taken, count, wanted)
            now = datetime.now(UTC).isoformat()
            connection.executemany(
                "INSERT INTO floating_address VALUES (?, '', '', ?)",
                [(int(address), now) for address in chosen],
            )
            return [FloatingAddress(str(address)) for address in chosen]

        return await self._database.transaction(work, lasting=True)

    async def attach(self, reference: str, sandbox_id: SandboxId, *, force: bool) -> FloatingAddress:
        """``force``: whoever has it loses it. Raises NotFoundError, WrongStateError, ExistsError."""

        def work(connection: sqlite3.Connection) -> FloatingAddress:
            row = _require(connection, reference)
            if row["sandbox_id"] == sandbox_id:
                return _decode(row)
            if row["sandbox_id"] and not force:
                raise WrongStateError(
                    f"is attached to {row['sandbox_id'][:12]}",
                    subject=f"floating address {reference}",
                    hint="-f moves it",
                )
            other = connection.execute(
                "SELECT address FROM floating_address WHERE sandbox_id = ?", (sandbox_id,)
            ).fetchone()
            if other is not None:
                raise ExistsError(
                    f"has the floating address {IPv4Address(other[0])}",
                    subject=f"container {sandbox_id[:12]}",
                )
            connection.execute(
                "UPDATE floating_address SET sandbox_id = ? WHERE address = ?", (sandbox_id, row["address"])
            )
            return FloatingAddress(str(IPv4Address(row["address"])), row["name"], sandbox_id)

        return await self._database.transaction(work, lasting=True)

    async def detach(self, sandbox_id: SandboxId) -> FloatingAddress | None:
        """As it was; None: it had none."""

        def work(connection: sqlite3.Connection) -> FloatingAddress | None:
            row = connection.execute(
                "SELECT * FROM floating_address WHERE sandbox_id = ?", (sandbox_id,)
            ).fetchone()
            connection.execute(
                "UPDATE floating_address SET sandbox_id = '' WHERE sandbox_id = ?", (sandbox_id,)
            )
            return _decode(row) if row is not None else None

        return await self._database.transaction(work, lasting=True)

    async def name(self, reference: str, name: str) -> FloatingAddress:
        """Raises NotFoundError, ExistsError."""

        def work(connection: sqlite3.Connection) -> FloatingAddress:
            row = _require(connection, reference)
            other = connection.execute(
                "SELECT address FROM floating_address WHERE name = ? AND name != '' AND address != ?",
                (name, row["address"]),
            ).fetchone()
            if other is not None:
                raise ExistsError(f"is the name of {IPv4Address(other[0])}", subject=repr(name))
            connection.execute(
                "UPDATE floating_address SET name = ? WHERE address = ?", (name, row["address"])
            )
            return FloatingAddress(str(IPv4Address(row["address"])), name, _owner(row))

        return await self._database.transaction(work)

    async def release(self, reference: str) -> None:
        """Raises NotFoundError, WrongStateError while it is attached."""

        def work(connection: sqlite3.Connection) -> None:
            row = _require(connection, reference)
            if row["sandbox_id"]:
                raise WrongStateError(
                    f"is attached to {row['sandbox_id'][:12]}",
                    subject=f"floating address {reference}",
                    hint="`hyper fip detach` first",
                )
            connection.execute("DELETE FROM floating_address WHERE address = ?", (row["address"],))

        await self._database.transaction(work, lasting=True)


def _require(connection: sqlite3.Connection, reference: str) -> sqlite3.Row:
    """By address or name."""
    try:
        number = int(IPv4Address(reference))
    except ValueError:
        number = -1
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM floating_address WHERE address = ? OR (name = ? AND name != '')", (number, reference)
    ).fetchone()
    if row is None:
        raise NotFoundError(
            "no such floating address",
            subject=reference,
            hint="`hyper fip ls` lists those that are allocated",
        )
    return row


def _decode(row: sqlite3.Row) -> FloatingAddress:
    return FloatingAddress(str(IPv4Address(row["address"])), row["name"], _owner(row))


def _owner(row: sqlite3.Row) -> SandboxId | None:
    return SandboxId(row["sandbox_id"]) if row["sandbox_id"] else None
