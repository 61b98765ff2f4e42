# SPDX-License-Identifier: Apache-2.0
"""One SQLite file for all records, so that leases, image references and records can change together.

WAL, one connection, one thread. Each room brings its own tables as a list of migrations.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hyperd.errors import ExhaustedError, HyperError, UnavailableError
from hyperd.host.workers import Workers

R = TypeVar("R")
PRIVATE_MODE = 0o600
Transaction = Callable[[sqlite3.Connection], R]


class Database:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = Workers("database", 1)
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open or create the file. Raises UnavailableError when it is not a database or cannot be written."""
        self._connection = await self._thread.call(self._connect)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._thread.call(connection.close)
        self._thread.close()

    async def migrate(self, room: str, migrations: Sequence[str]) -> None:
        """Bring a room's tables up to date. Migrations are only ever appended to.

        Raises UnavailableError when the file was written by a newer hyperd.
        """

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute("SELECT version FROM room_schema WHERE room = ?", (room,)).fetchone()
            version: int = row[0] if row else 0
            if version > len(migrations):
                raise UnavailableError(
                    f"the {room} records are of version {version}, this hyperd knows {len(migrations)}",
                    subject=str(self._path),
                    hint="run the newer hyperd again, or move the state directory aside",
                )
            for statement in migrations[version:]:
                connection.execute(statement)
            connection.execute(
                "INSERT INTO room_schema (room, version) VALUES (?, ?)"
                " ON CONFLICT (room) DO UPDATE SET version = excluded.version",
                (room, len(migrations)),
            )

        await self.transaction(work)

    async def transaction(self, work: Transaction[R], *, lasting: bool = False) -> R:
        """Run ``work`` on the database thread inside one transaction: all of it or nothing.

        ``lasting``: when this returns it is on the disk, and so is all before it. Else a power cut may undo it.

        Raises ExhaustedError when the disk is full, UnavailableError for any other database error; what
        ``work`` itself raises passes through after the rollback.
        """
        return await self._thread.call(self._transact, work, lasting=lasting)

    def _make_private(self) -> None:
        """Records hold environments and arguments: root's alone. SQLite gives its -wal and -shm the same mode."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
            try:
                os.fchmod(fd, PRIVATE_MODE)  # one that an earlier hyperd made wider
            finally:
                os.close(fd)
        except OSError as error:
            raise UnavailableError(
                f"the records cannot be opened: {error.strerror}", subject=str(self._path)
            ) from error

    def _connect(self) -> sqlite3.Connection:
        self._make_private()
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
        except sqlite3.Error as error:
            raise self._translated(error) from error
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS room_schema (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT"
            )
        except sqlite3.Error as error:
            connection.close()
            raise self._translated(error) from error
        return connection

    def _transact(self, work: Transaction[R], *, lasting: bool) -> R:
        connection = self._connection
        if connection is None:
            raise HyperError("the database is not open", subject=str(self._path))
        try:
            connection.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite ends it by itself when the disk is full
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._translated(error) from error
        return result

    def _translated(self, error: sqlite3.Error) -> HyperError:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return ExhaustedError("no space left for records", subject=str(self._path), evidence=str(error))
        return UnavailableError("the records cannot be used", subject=str(self._path), evidence=str(error))
