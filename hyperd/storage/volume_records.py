# SPDX-License-Identifier: Apache-2.0
"""Volumes and who has them, in SQLite. Functions for ``Database.transaction``.

A user is a container that has a volume, running or not; it is ``attached`` while a VM has it, or is about to.
"""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from hyperd.errors import ExistsError, NotFoundError, WrongStateError
from hyperd.model.vm import SandboxId
from hyperd.model.volume import (
    LOCAL,
    SHARED,
    Consistency,
    VolumeName,
    VolumeSnapshot,
    VolumeSnapshotId,
    VolumeUser,
)
from hyperd.storage.remote_disks import Server
from hyperd.storage.remote_rules import DRIVERS, parse

ROOM = "volume"
MIGRATIONS = (
    """CREATE TABLE volume (
        name TEXT PRIMARY KEY, volume_id TEXT NOT NULL UNIQUE, size_bytes INTEGER NOT NULL,
        filesystem TEXT NOT NULL, labels TEXT NOT NULL, anonymous INTEGER NOT NULL,
        created_at TEXT NOT NULL) STRICT""",
    """CREATE TABLE volume_user (
        volume TEXT NOT NULL REFERENCES volume, sandbox_id TEXT NOT NULL, holder TEXT NOT NULL,
        readonly INTEGER NOT NULL, attached INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (volume, sandbox_id)) STRICT""",
    "CREATE INDEX volume_user_sandbox ON volume_user (sandbox_id)",
    """CREATE TABLE volume_snapshot (
        snapshot_id TEXT PRIMARY KEY, name TEXT NOT NULL, volume TEXT NOT NULL, size_bytes INTEGER NOT NULL,
        filesystem TEXT NOT NULL, consistency TEXT NOT NULL, created_at TEXT NOT NULL) STRICT""",
    "CREATE UNIQUE INDEX volume_snapshot_name ON volume_snapshot (name) WHERE name <> ''",
    "ALTER TABLE volume ADD COLUMN driver TEXT NOT NULL DEFAULT 'local'",
    "ALTER TABLE volume ADD COLUMN options TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE volume_user ADD COLUMN lent INTEGER NOT NULL DEFAULT 0",
)


@dataclass(frozen=True, slots=True)
class Row:
    name: VolumeName
    volume_id: str  # names its directory
    size_bytes: int
    filesystem: str
    labels: dict[str, str]
    anonymous: bool
    created_at: datetime
    driver: str = LOCAL
    options: dict[str, str] = field(default_factory=dict)


def insert(connection: sqlite3.Connection, row: Row) -> None:
    """One of that name that is there stays: whoever came second uses it. Raises as ``require_nobodys``."""
    if row.driver in DRIVERS:
        require_nobodys(connection, row.name, server_of(row))
    connection.execute(
        "INSERT OR IGNORE INTO volume VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.name,
            row.volume_id,
            row.size_bytes,
            row.filesystem,
            json.dumps(row.labels),
            int(row.anonymous),
            row.created_at.isoformat(),
            row.driver,
            json.dumps(row.options),
        ),
    )


def require_nobodys(connection: sqlite3.Connection, name: VolumeName, server: Server) -> None:
    """Raises ExistsError: two names of one disk would be written to by two VMs."""
    other = next((found for found in _of_server(connection, server) if found != name), None)
    if other is not None:
        raise ExistsError(
            f"{server} is volume {other} already", subject=f"volume {name}", hint=f"use {other}, or remove it"
        )


def _of_server(connection: sqlite3.Connection, server: Server) -> list[VolumeName]:
    """All names that it has: an older hyperd gave it any number."""
    rows = connection.execute("SELECT * FROM volume WHERE driver <> ?", (LOCAL,)).fetchall()
    return [row.name for row in map(_row, rows) if server_of(row).is_same(server)]


def server_of(row: Row) -> Server:
    return parse(row.driver, row.options, f"volume {row.name}")[0]


def use(
    connection: sqlite3.Connection,
    sandbox_id: SandboxId,
    holder: str,
    uses: Mapping[VolumeName, bool],
    *,
    lent: bool = False,
) -> None:
    """``uses``: volume -> read-only; ``lent``: to no container. Raises NotFoundError for one removed meanwhile."""
    for name, readonly in uses.items():
        require(connection, name)
        connection.execute(
            "INSERT INTO volume_user (volume, sandbox_id, holder, readonly, lent) VALUES (?, ?, ?, ?, ?)",
            (name, sandbox_id, holder, int(readonly), int(lent)),
        )


def release(connection: sqlite3.Connection, sandbox_id: SandboxId) -> None:
    connection.execute("DELETE FROM volume_user WHERE sandbox_id = ?", (sandbox_id,))


def delete(connection: sqlite3.Connection, name: VolumeName) -> Row | None:
    """None when there is none. Raises WrongStateError while a container has it."""
    row = find(connection, name)
    if row is None:
        return None
    users = users_of(connection, name)
    if users:
        raise in_use(name, users)
    connection.execute("DELETE FROM volume WHERE name = ?", (name,))
    return row


def grow(connection: sqlite3.Connection, row: Row, size_bytes: int) -> None:
    """Of the same one only; never smaller, whoever else grows it."""
    connection.execute(
        "UPDATE volume SET size_bytes = ? WHERE volume_id = ? AND size_bytes < ?",
        (size_bytes, row.volume_id, size_bytes),
    )


def uses_of(connection: sqlite3.Connection, sandbox_id: SandboxId) -> list[tuple[Row, bool]]:
    """And whether each is read only."""
    rows = connection.execute("SELECT * FROM volume_user WHERE sandbox_id = ?", (sandbox_id,)).fetchall()
    return [(require(connection, VolumeName(row["volume"])), bool(row["readonly"])) for row in rows]


def attach(
    connection: sqlite3.Connection, sandbox_id: SandboxId, only: Collection[VolumeName] | None = None
) -> list[Row]:
    """Volumes of a sandbox, for its VM: all, or those. Raises WrongStateError that names who has one already."""
    rows = []
    found = connection.execute("SELECT * FROM volume_user WHERE sandbox_id = ?", (sandbox_id,)).fetchall()
    own = [mine for mine in found if only is None or mine["volume"] in only]
    for mine in own:
        name = VolumeName(mine["volume"])
        rows.append(require(connection, name))
        if rows[-1].filesystem == SHARED:
            continue
        names = _of_server(connection, server_of(rows[-1])) if rows[-1].driver in DRIVERS else [name]
        others = [
            user
            for each in names
            for user in users_of(connection, each)
            if user.attached and user.sandbox_id != sandbox_id
        ]
        if any(user.lent for user in others):
            raise being_filled(name)
        if not mine["readonly"] and others:
            brief = f"cannot be written to: container {others[0].name} has it"
            raise WrongStateError(brief, subject=f"volume {name}", hint=_share_hint(others[0].name))
        writer = next((user for user in others if not user.readonly), None)
        if writer is not None:
            brief = f"cannot be read: container {writer.name} writes to it"
            raise WrongStateError(brief, subject=f"volume {name}", hint=_share_hint(writer.name))
    connection.executemany(
        "UPDATE volume_user SET attached = 1 WHERE sandbox_id = ? AND volume = ?",
        [(sandbox_id, mine["volume"]) for mine in own],
    )
    return rows


def detach(connection: sqlite3.Connection, sandbox_id: SandboxId) -> list[Row]:
    """Those that it had."""
    names = connection.execute(
        "SELECT volume FROM volume_user WHERE sandbox_id = ? AND attached = 1", (sandbox_id,)
    ).fetchall()
    connection.execute("UPDATE volume_user SET attached = 0 WHERE sandbox_id = ?", (sandbox_id,))
    return [require(connection, VolumeName(row["volume"])) for row in names]


def keep_only(
    connection: sqlite3.Connection, known: Collection[SandboxId], running: Collection[SandboxId]
) -> list[Row]:
    """Users that no record knows and attachments without a VM go. Return the volumes whose owner changes."""
    changed: dict[str, Row] = {}
    for row in connection.execute("SELECT volume, sandbox_id, attached FROM volume_user").fetchall():
        sandbox_id = SandboxId(row["sandbox_id"])
        if row["attached"] and sandbox_id not in running:
            detach(connection, sandbox_id)
            changed[row["volume"]] = require(connection, VolumeName(row["volume"]))
        if sandbox_id not in known:
            release(connection, sandbox_id)
    return list(changed.values())


def attached(connection: sqlite3.Connection) -> set[SandboxId]:
    """Who has volumes attached."""
    rows = connection.execute("SELECT DISTINCT sandbox_id FROM volume_user WHERE attached = 1")
    return {SandboxId(row["sandbox_id"]) for row in rows}


def users_of(connection: sqlite3.Connection, name: VolumeName) -> list[VolumeUser]:
    rows = connection.execute("SELECT * FROM volume_user WHERE volume = ? ORDER BY holder", (name,))
    return [
        VolumeUser(
            SandboxId(row["sandbox_id"]),
            row["holder"],
            bool(row["readonly"]),
            bool(row["attached"]),
            bool(row["lent"]),
        )
        for row in rows
    ]


def find(connection: sqlite3.Connection, name: VolumeName) -> Row | None:
    row = connection.execute("SELECT * FROM volume WHERE name = ?", (name,)).fetchone()
    return None if row is None else _row(row)


def require(connection: sqlite3.Connection, name: VolumeName) -> Row:
    row = find(connection, name)
    if row is None:
        raise NotFoundError("no such volume", subject=name, hint="`hyper volume ls` lists all")
    return row


def load(connection: sqlite3.Connection) -> list[Row]:
    return [_row(row) for row in connection.execute("SELECT * FROM volume ORDER BY name")]


def insert_snapshot(connection: sqlite3.Connection, snapshot: VolumeSnapshot) -> None:
    """Raises ExistsError: somebody else has taken the name meanwhile."""
    try:
        connection.execute(
            "INSERT INTO volume_snapshot VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                snapshot.snapshot_id,
                snapshot.name,
                snapshot.volume,
                snapshot.size_bytes,
                snapshot.filesystem,
                snapshot.consistency,
                snapshot.created_at.isoformat(),
            ),
        )
    except sqlite3.IntegrityError as error:
        raise ExistsError("the name is in use", subject=f"snapshot {snapshot.name}") from error


def delete_snapshot(connection: sqlite3.Connection, snapshot_id: VolumeSnapshotId) -> None:
    connection.execute("DELETE FROM volume_snapshot WHERE snapshot_id = ?", (snapshot_id,))


def load_snapshots(connection: sqlite3.Connection) -> list[VolumeSnapshot]:
    """Newest first."""
    rows = connection.execute("SELECT * FROM volume_snapshot ORDER BY created_at DESC")
    return [
        VolumeSnapshot(
            VolumeSnapshotId(row["snapshot_id"]),
            row["name"],
            VolumeName(row["volume"]),
            row["size_bytes"],
            row["filesystem"],
            Consistency(row["consistency"]),
            datetime.fromisoformat(row["created_at"]),
            Path(),
        )
        for row in rows
    ]


def being_filled(name: VolumeName) -> WrongStateError:
    return WrongStateError(
        "is being filled", subject=f"volume {name}", hint="try again when its `hyper volume init` has ended"
    )


def in_use(name: VolumeName, users: Sequence[VolumeUser]) -> WrongStateError:
    if any(user.lent for user in users):
        return being_filled(name)
    holders = ", ".join(user.name for user in users[:5]) + (", ..." if len(users) > 5 else "")
    return WrongStateError(
        f"is in use by {'container' if len(users) == 1 else 'containers'} {holders}",
        subject=f"volume {name}",
        hint=f"`hyper rm {users[0].name}` first",
    )


def _row(row: sqlite3.Row) -> Row:
    return Row(
        VolumeName(row["name"]),
        row["volume_id"],
        row["size_bytes"],
        row["filesystem"],
        json.loads(row["labels"]),
        bool(row["anonymous"]),
        datetime.fromisoformat(row["created_at"]),
        row["driver"],
        json.loads(row["options"]),
    )


def _share_hint(holder: str) -> str:
    return (
        f"a volume is written to by one running container, or read by many: `hyper stop {holder}`, or :ro in all; "
        "one that is made with --shared is written to by many"
    )
