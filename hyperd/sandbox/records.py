# SPDX-License-Identifier: Apache-2.0
"""Containers and their states in SQLite. Specs and states are stored as JSON, decoded strictly."""

import dataclasses
import json
import sqlite3
import types
import typing
from collections.abc import Collection
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from hyperd.errors import ExistsError, HyperError, UnavailableError
from hyperd.host.database import Database
from hyperd.model.container import ContainerRecord, ContainerSpec, ExitReason, Sizing
from hyperd.model.guest import ContainerId
from hyperd.model.image import ImageId
from hyperd.model.vm import SandboxId
from hyperd.sandbox import machine
from hyperd.storage.base import Recording

_MIGRATIONS = (
    """CREATE TABLE sandbox (
        sandbox_id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        image_id TEXT NOT NULL,
        created_at TEXT NOT NULL,
        spec TEXT NOT NULL,
        command TEXT NOT NULL,
        vcpus INTEGER NOT NULL,
        memory_mib INTEGER NOT NULL,
        state_kind TEXT NOT NULL,
        state TEXT NOT NULL,
        generation INTEGER NOT NULL
    ) STRICT""",
    "ALTER TABLE sandbox ADD COLUMN container_id TEXT",
    # One of several clones that come all or not at all: 1 until all are there.
    "ALTER TABLE sandbox ADD COLUMN pending INTEGER NOT NULL DEFAULT 0",
)
_STATES = {kind.__name__: kind for kind in machine.STATES}


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    record: ContainerRecord
    state: machine.State
    generation: int
    unreadable: HyperError | None = None  # then record and state are what could be made out
    pending: bool = False  # of clones that should have come together, and have not: it goes


class Records:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        await self._database.migrate("sandbox", _MIGRATIONS)

    async def insert(
        self, *records: ContainerRecord, pending: bool = False, along: Recording | None = None
    ) -> None:
        """All or none. ``along`` is recorded with them, and lasts. Raises ExistsError when a name is taken."""

        def work(connection: sqlite3.Connection) -> None:
            for record in records:
                _insert(connection, record, pending=pending)
            if along is not None:
                along(connection)

        await self._database.transaction(work, lasting=along is not None)

    async def settle(self, sandbox_ids: Collection[SandboxId]) -> None:
        """They are all there: none is pending any more."""

        def work(connection: sqlite3.Connection) -> None:
            for sandbox_id in sandbox_ids:
                connection.execute("UPDATE sandbox SET pending = 0 WHERE sandbox_id = ?", (sandbox_id,))

        await self._database.transaction(work)

    async def save_state(
        self,
        sandbox_id: SandboxId,
        state: machine.State,
        generation: int,
        *,
        lasting: bool = False,
        spec: ContainerSpec | None = None,
    ) -> None:
        """``lasting``: it survives a power cut. ``spec``: that changes with it."""
        kind, body = _state_columns(state)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE sandbox SET state_kind = ?, state = ?, generation = ? WHERE sandbox_id = ?",
                (kind, body, generation, sandbox_id),
            )
            if spec is not None:
                connection.execute(
                    "UPDATE sandbox SET spec = ? WHERE sandbox_id = ?", (dumps(spec), sandbox_id)
                )

        await self._database.transaction(work, lasting=lasting)

    async def delete(self, sandbox_id: SandboxId) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM sandbox WHERE sandbox_id = ?", (sandbox_id,))

        await self._database.transaction(work)

    async def load(self) -> list[Stored]:
        """Oldest first. One that cannot be read is ``unreadable`` and stops no other."""

        def work(connection: sqlite3.Connection) -> list[Stored]:
            return [_stored(row) for row in connection.execute("SELECT * FROM sandbox ORDER BY created_at")]

        return await self._database.transaction(work)


def _insert(connection: sqlite3.Connection, record: ContainerRecord, *, pending: bool) -> None:
    owner = connection.execute("SELECT sandbox_id FROM sandbox WHERE name = ?", (record.name,)).fetchone()
    if owner is not None:
        raise ExistsError(
            f"the name is in use by container {owner[0][:12]}",
            subject=record.name,
            hint=f"`hyper rm {record.name}` frees it, or give another --name",
        )
    connection.execute(
        "INSERT INTO sandbox (sandbox_id, name, image_id, created_at, spec, command, vcpus, memory_mib,"
        " state_kind, state, generation, container_id, pending) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
        (
            record.sandbox_id,
            record.name,
            record.image_id,
            record.created_at.isoformat(),
            dumps(record.spec),
            json.dumps(record.command),
            record.sizing.vcpus,
            record.sizing.memory_mib,
            *_state_columns(machine.Created()),
            record.container_id,
            int(pending),
        ),
    )


def _state_columns(state: machine.State) -> tuple[str, str]:
    return type(state).__name__, dumps(state)


def _stored(row: sqlite3.Row) -> Stored:
    try:
        record = ContainerRecord(
            sandbox_id=SandboxId(row["sandbox_id"]),
            name=row["name"],
            spec=loads(ContainerSpec, row["spec"]),
            image_id=ImageId(row["image_id"]),
            command=tuple(json.loads(row["command"])),
            sizing=Sizing(row["vcpus"], row["memory_mib"]),
            created_at=datetime.fromisoformat(row["created_at"]),
            container_id=ContainerId(row["container_id"]) if row["container_id"] else None,
        )
        state = loads(_STATES[row["state_kind"]], row["state"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        return _set_aside(row, error)
    state = typing.cast("machine.State", state)
    return Stored(record, state, row["generation"], pending=bool(row["pending"]))


def _set_aside(row: sqlite3.Row, cause: Exception) -> Stored:
    error = UnavailableError(
        "the record cannot be read",
        subject=f"container {row['name']}",
        evidence=f"{cause!r}",
        hint=f"a newer hyperd may have written it: run that one again; `hyper rm {row['name']}` gives it up",
    )
    try:
        created_at = datetime.fromisoformat(row["created_at"]).astimezone(UTC)
    except ValueError:
        created_at = datetime.fromtimestamp(0, UTC)
    record = ContainerRecord(
        sandbox_id=SandboxId(row["sandbox_id"]),
        name=row["name"],
        spec=ContainerSpec(image=row["image_id"]),
        image_id=ImageId(row["image_id"]),
        command=(),
        sizing=Sizing(row["vcpus"], row["memory_mib"]),
        created_at=created_at,
    )
    exit_ = machine.lost(ExitReason.START_FAILED, str(error))
    state = machine.Failed(exit_, None, created_at)
    return Stored(record, state, row["generation"], error, bool(row["pending"]))


def dumps(value: Any) -> str:
    """A dataclass of plain fields as JSON; fields at their default are left out."""
    return json.dumps(_plain(value), separators=(",", ":"))


def loads(kind: type[Any], text: str) -> Any:
    """The inverse of ``dumps``. Raises ValueError or TypeError for a field that ``kind`` has not."""
    return _build(kind, json.loads(text), kind.__name__)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: _plain(item) for field, item in fields if item != field.default}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value


def _build(kind: Any, value: Any, where: str) -> Any:
    """``where``: the field's path. What is raised has that and types, never a value: that may be a secret."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return None if value is None else _build(choices[0], value, where)
    if dataclasses.is_dataclass(kind):
        _require(isinstance(value, dict), kind, value, where)
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"unknown field {sorted(unknown)[0]} in {where}")
        built: Any = kind
        return built(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is tuple:
        _require(isinstance(value, list), kind, value, where)
        return tuple(_build(typing.get_args(kind)[0], item, f"{where}[]") for item in value)
    if origin is dict:
        _require(isinstance(value, dict), kind, value, where)
        return {str(key): _build(typing.get_args(kind)[1], item, f"{where}[]") for key, item in value.items()}
    if kind is datetime or (isinstance(kind, type) and issubclass(kind, Enum)):
        try:
            if kind is datetime:
                return datetime.fromisoformat(value)
            made: Any = kind
            return made(value)
        except (ValueError, TypeError):  # it has the value in its text
            raise ValueError(f"{where} is no {kind.__name__}") from None
    plain = {float: int | float}.get(kind, kind) if kind in (str, int, float, bool) else _base_of(kind)
    _require(isinstance(value, plain) and (kind is bool or not isinstance(value, bool)), kind, value, where)
    return value


def _require(fits: bool, kind: Any, value: Any, where: str) -> None:  # noqa: FBT001 - an assertion
    if not fits:
        raise TypeError(f"{where} is of type {type(value).__name__}, not {getattr(kind, '__name__', kind)}")


def _base_of(kind: Any) -> Any:
    """The type below a NewType, through however many."""
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    return kind
