# SPDX-License-Identifier: Apache-2.0
"""Records of published ports: those of one network."""

import sqlite3
from collections.abc import Iterable
from ipaddress import ip_address

from hyperd.host.database import Database
from hyperd.model.network import Protocol
from hyperd.model.vm import SandboxId
from hyperd.network.forwards import Forward

MIGRATION = """CREATE TABLE network_port (
    network TEXT NOT NULL, sandbox_id TEXT NOT NULL, holder TEXT NOT NULL, address INTEGER NOT NULL,
    protocol TEXT NOT NULL, host_ip INTEGER NOT NULL, host_port INTEGER NOT NULL, container_port INTEGER NOT NULL,
    PRIMARY KEY (protocol, host_ip, host_port)
) STRICT"""


def _dotted(column: str) -> str:
    return f"printf('%d.%d.%d.%d', {', '.join(f'({column} >> {bits}) & 255' for bits in (24, 16, 8, 0))})"


# IPv6 addresses are no integers of SQLite's.
FURTHER_MIGRATIONS = (
    """CREATE TABLE published_port (
        network TEXT NOT NULL, sandbox_id TEXT NOT NULL, holder TEXT NOT NULL, address TEXT NOT NULL,
        protocol TEXT NOT NULL, host_ip TEXT NOT NULL, host_port INTEGER NOT NULL, container_port INTEGER NOT NULL,
        PRIMARY KEY (protocol, host_ip, host_port)
    ) STRICT""",
    f"""INSERT INTO published_port SELECT network, sandbox_id, holder, {_dotted("address")}, protocol,
        {_dotted("host_ip")}, host_port, container_port FROM network_port""",  # noqa: S608 - our own words
    "DROP TABLE network_port",
    "ALTER TABLE published_port ADD COLUMN is_anywhere INTEGER NOT NULL DEFAULT 0",
)

Owned = tuple[SandboxId, str, Forward]  # whose, by id and name


class PortRecords:
    def __init__(self, database: Database, network: str) -> None:
        self._database = database
        self._network = network

    async def list_all(self) -> list[Owned]:
        def work(connection: sqlite3.Connection) -> list[Owned]:
            rows = connection.execute(
                "SELECT sandbox_id, holder, protocol, host_ip, host_port, address, container_port, is_anywhere"
                " FROM published_port WHERE network = ?",
                (self._network,),
            )
            return [
                (
                    SandboxId(row[0]),
                    row[1],
                    Forward(
                        *(Protocol(row[2]), ip_address(row[3]), row[4], ip_address(row[5]), row[6]),
                        is_anywhere=bool(row[7]),
                    ),
                )
                for row in rows
            ]

        return await self._database.transaction(work)

    async def insert(self, made: Iterable[Owned]) -> None:
        """All or none."""
        rows = [
            (
                *(self._network, sandbox_id, holder, str(forward.address), forward.protocol.value),
                *(str(forward.host_ip), forward.host_port, forward.container_port, forward.is_anywhere),
            )
            for sandbox_id, holder, forward in made
        ]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT INTO published_port VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

        await self._database.transaction(work)

    async def delete(self, gone: Iterable[Forward]) -> None:
        """Idempotent."""
        keys = [(forward.protocol.value, str(forward.host_ip), forward.host_port) for forward in gone]

        def work(connection: sqlite3.Connection) -> None:
            statement = "DELETE FROM published_port WHERE protocol = ? AND host_ip = ? AND host_port = ?"
            connection.executemany(statement, keys)

        await self._database.transaction(work)
