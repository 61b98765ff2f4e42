# SPDX-License-Identifier: Apache-2.0
"""Policies and what was refused because of them, in the records: the latter also when the sandbox has gone."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hyperd.errors import InvalidError, NotFoundError
from hyperd.host.database import Database
from hyperd.model.policy import Attempt, EgressReport, Limits
from hyperd.model.vm import SandboxId
from hyperd.network.policy import groups

_MIGRATIONS = (
    "CREATE TABLE policy (sandbox_id TEXT PRIMARY KEY, egress TEXT NOT NULL, earlier TEXT NOT NULL) STRICT",
    """CREATE TABLE egress_subject (
        sandbox_id TEXT PRIMARY KEY, name TEXT NOT NULL, is_cut INTEGER NOT NULL, last_at REAL NOT NULL
    ) STRICT""",
    """CREATE TABLE egress_attempt (
        sandbox_id TEXT NOT NULL, destination TEXT NOT NULL, protocol TEXT NOT NULL, port INTEGER NOT NULL,
        name TEXT NOT NULL, finished INTEGER NOT NULL, running INTEGER NOT NULL,
        first_at REAL NOT NULL, last_at REAL NOT NULL,
        PRIMARY KEY (sandbox_id, destination, protocol, port)
    ) STRICT""",
    "ALTER TABLE policy ADD COLUMN groups TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE policy ADD COLUMN rate_in INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE policy ADD COLUMN rate_out INTEGER NOT NULL DEFAULT 0",
    groups.MIGRATION,
)
_PUT = (
    "INSERT INTO egress_attempt VALUES (:sandbox_id, :destination, :protocol, :port, :name, {}, :first_at, :last_at)"
    " ON CONFLICT (sandbox_id, destination, protocol, port) DO UPDATE SET {}, last_at = max(last_at, excluded.last_at),"
    " name = iif(excluded.name = '', name, excluded.name)"
)
_COUNTED = _PUT.format("0, :count", "running = excluded.running")
_ADDED = _PUT.format(":count, 0", "finished = finished + excluded.finished")
MAX_ATTEMPTS = 1024  # of one sandbox
MAX_GONE = 500  # sandboxes that have gone, and of which is still known what they tried


@dataclass(frozen=True, slots=True)
class Held:
    """``earlier``: documents before ``limits.egress`` that the kernel may still have sets of."""

    limits: Limits
    earlier: tuple[str, ...] = ()


class PolicyRecords:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> dict[SandboxId, Held]:
        await self._database.migrate("policy", _MIGRATIONS)

        def work(connection: sqlite3.Connection) -> dict[SandboxId, Held]:
            rows = connection.execute(
                "SELECT sandbox_id, egress, groups, rate_in, rate_out, earlier FROM policy"
            )
            return {SandboxId(row[0]): _held(row) for row in rows}

        return await self._database.transaction(work)

    async def save(self, sandbox_id: SandboxId, held: Held) -> None:
        limits = held.limits
        row = (
            sandbox_id,
            limits.egress,
            json.dumps(held.earlier),
            json.dumps(limits.groups),
            limits.rate_in,
            limits.rate_out,
        )

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO policy VALUES (?, ?, ?, ?, ?, ?)", row)

        await self._database.transaction(work, lasting=True)

    async def delete(self, sandbox_id: SandboxId) -> None:
        """The policy; what was tried stays, of the last ``MAX_GONE``."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM policy WHERE sandbox_id = ?", (sandbox_id,))
            gone = connection.execute(
                "SELECT sandbox_id FROM egress_subject WHERE sandbox_id NOT IN (SELECT sandbox_id FROM policy)"
                " ORDER BY last_at DESC LIMIT -1 OFFSET ?",
                (MAX_GONE,),
            ).fetchall()
            for row in gone:
                connection.execute("DELETE FROM egress_attempt WHERE sandbox_id = ?", (row[0],))
                connection.execute("DELETE FROM egress_subject WHERE sandbox_id = ?", (row[0],))

        await self._database.transaction(work)

    async def note(
        self,
        sandbox_id: SandboxId,
        name: str,
        attempts: Iterable[Attempt],
        *,
        finished: Iterable[Attempt] = (),
        end_run: bool = False,
    ) -> None:
        """``attempts``: as counted since the run began, each time anew; ``finished``: counted once.

        ``end_run``: the kernel has forgotten its counts. Saying so twice changes nothing.
        """
        running = [_row(sandbox_id, attempt) for attempt in attempts]
        once = [_row(sandbox_id, attempt) for attempt in finished]
        now = datetime.now(UTC).timestamp()

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(_COUNTED, running)
            connection.executemany(_ADDED, once)
            if end_run:
                connection.execute(
                    "UPDATE egress_attempt SET finished = finished + running, running = 0"
                    " WHERE sandbox_id = ? AND running > 0",
                    (sandbox_id,),
                )
            is_cut = _cut(connection, sandbox_id)
            connection.execute(
                "INSERT INTO egress_subject VALUES (?, ?, ?, ?) ON CONFLICT (sandbox_id) DO UPDATE SET"
                " name = iif(excluded.name = '', name, excluded.name), is_cut = max(is_cut, excluded.is_cut),"
                " last_at = excluded.last_at",
                (sandbox_id, name, is_cut, now),
            )

        await self._database.transaction(work)

    async def report(self, reference: str) -> EgressReport:
        """By id, name (of several the latest) or unique prefix of an id. Raises NotFoundError, InvalidError."""

        def work(connection: sqlite3.Connection) -> EgressReport:
            row = _subject(connection, reference)
            attempts = connection.execute(
                "SELECT * FROM egress_attempt WHERE sandbox_id = ? ORDER BY last_at DESC, destination, port",
                (row["sandbox_id"],),
            )
            return EgressReport(
                SandboxId(row["sandbox_id"]),
                row["name"],
                tuple(_attempt(each) for each in attempts),
                bool(row["is_cut"]),
            )

        return await self._database.transaction(work)


def _held(row: sqlite3.Row) -> Held:
    limits = Limits(row["egress"], tuple(json.loads(row["groups"])), row["rate_in"], row["rate_out"])
    return Held(limits, tuple(json.loads(row["earlier"])))


def moved(held: Held, limits: Limits) -> Held:
    """With another document; the one before is remembered until nothing of it is in force."""
    earlier = (
        held.earlier if held.limits.egress in ("", *held.earlier) else (*held.earlier, held.limits.egress)
    )
    return replace(held, limits=limits, earlier=earlier)


def _subject(connection: sqlite3.Connection, reference: str) -> sqlite3.Row:
    for where in ("sandbox_id = ?", "name = ?"):
        row: sqlite3.Row | None = connection.execute(
            f"SELECT * FROM egress_subject WHERE {where} ORDER BY last_at DESC",  # noqa: S608 - as above
            (reference,),
        ).fetchone()
        if row is not None:
            return row
    found = connection.execute(
        "SELECT * FROM egress_subject WHERE substr(sandbox_id, 1, ?) = ?", (len(reference), reference)
    ).fetchmany(2)
    if len(found) > 1:
        raise InvalidError("several sandboxes begin with it", subject=repr(reference))
    if not found or not reference:
        raise NotFoundError(
            "had no egress policy, or is not known any more",
            subject=f"container {reference}",
            hint="`hyper run --egress FILE` gives a container one",
        )
    only: sqlite3.Row = found[0]
    return only


def _cut(connection: sqlite3.Connection, sandbox_id: SandboxId) -> int:
    """Whether there was more than is kept, which is then what came last."""
    done = connection.execute(
        "DELETE FROM egress_attempt WHERE sandbox_id = :id AND rowid NOT IN (SELECT rowid FROM egress_attempt"
        " WHERE sandbox_id = :id ORDER BY last_at DESC LIMIT :most)",
        {"id": sandbox_id, "most": MAX_ATTEMPTS},
    )
    return int(done.rowcount > 0)


def _row(sandbox_id: SandboxId, attempt: Attempt) -> dict[str, object]:
    return {
        "sandbox_id": sandbox_id,
        "destination": attempt.destination,
        "protocol": attempt.protocol,
        "port": attempt.port,
        "name": attempt.name,
        "count": attempt.count,
        "first_at": attempt.first_at.timestamp(),
        "last_at": attempt.last_at.timestamp(),
    }


def _attempt(row: sqlite3.Row) -> Attempt:
    return Attempt(
        row["destination"],
        row["protocol"],
        row["port"],
        row["name"],
        row["finished"] + row["running"],
        datetime.fromtimestamp(row["first_at"], UTC),
        datetime.fromtimestamp(row["last_at"], UTC),
    )
