# SPDX-License-Identifier: Apache-2.0
"""Networks that users have made, in the records."""

import json
import sqlite3
from datetime import UTC, datetime

from hyperd.errors import ExistsError
from hyperd.host.database import Database
from hyperd.model.network import NetworkSpec, NetworkView

MIGRATION = """CREATE TABLE network (
    name TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, subnet TEXT NOT NULL, gateway TEXT NOT NULL,
    ip_range TEXT NOT NULL, internal INTEGER NOT NULL, mtu INTEGER NOT NULL, labels TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT"""

FURTHER_MIGRATIONS = (
    "ALTER TABLE network ADD COLUMN subnet6 TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE network ADD COLUMN gateway6 TEXT NOT NULL DEFAULT ''",
)


class Definitions:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, view: NetworkView) -> None:
        """Raises ExistsError."""
        spec = view.spec
        row = (
            spec.name,
            view.network_id,
            spec.subnet,
            spec.gateway,
            spec.ip_range,
            int(spec.internal),
            spec.mtu,
            json.dumps(spec.labels),
            (view.created_at or datetime.now(UTC)).isoformat(),
            spec.subnet6,
            spec.gateway6,
        )

        def work(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM network WHERE name = ?", (spec.name,)).fetchone():
                raise ExistsError("there is one of this name", subject=f"network {spec.name}")
            connection.execute("INSERT INTO network VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

        await self._database.transaction(work)

    async def delete(self, name: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM network WHERE name = ?", (name,))

        await self._database.transaction(work)

    async def list_all(self) -> list[NetworkView]:
        """Oldest first."""

        def work(connection: sqlite3.Connection) -> list[NetworkView]:
            rows = connection.execute("SELECT * FROM network ORDER BY created_at").fetchall()
            return [_view(row) for row in rows]

        return await self._database.transaction(work)


def _view(row: sqlite3.Row) -> NetworkView:
    spec = NetworkSpec(
        name=row["name"],
        subnet=row["subnet"],
        gateway=row["gateway"],
        ip_range=row["ip_range"],
        internal=bool(row["internal"]),
        mtu=row["mtu"],
        labels=dict(json.loads(row["labels"])),
        ipv6=bool(row["subnet6"]),
        subnet6=row["subnet6"],
        gateway6=row["gateway6"],
    )
    return NetworkView(spec, row["id"], f"hyb{row['id'][:12]}", datetime.fromisoformat(row["created_at"]))
