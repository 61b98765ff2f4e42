# SPDX-License-Identifier: Apache-2.0
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hyperd.errors import ExhaustedError, HyperError, UnavailableError
from hyperd.host.database import Database


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "db")
    await database.open()
    await database.migrate("room", ["CREATE TABLE thing (name TEXT NOT NULL UNIQUE, data BLOB) STRICT"])
    yield database
    await database.close()


def insert(name: str, size: int = 1):
    return lambda db: db.execute("INSERT INTO thing VALUES (?, ?)", (name, b"x" * size)).rowcount


async def names(database: Database) -> list[str]:
    return await database.transaction(
        lambda db: [row["name"] for row in db.execute("SELECT name FROM thing")]
    )


async def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    def half(db) -> None:
        insert("a")(db)
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        await database.transaction(half)
    assert await names(database) == []
    await database.transaction(insert("b"))
    with pytest.raises(UnavailableError, match="cannot be used"):
        await database.transaction(insert("b"))
    assert await names(database) == ["b"]


async def test_a_full_disk_is_said_and_the_next_transaction_works(database: Database) -> None:
    pages = await database.transaction(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await database.transaction(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()[0])
    with pytest.raises(ExhaustedError, match="no space left"):
        await database.transaction(insert("big", 1 << 20))
    await database.transaction(insert("small"))
    assert await names(database) == ["small"]


async def test_migrations_are_appended_to(database: Database) -> None:
    more = ["CREATE TABLE thing (name TEXT)", "ALTER TABLE thing ADD COLUMN extra TEXT"]
    await database.migrate("room", more)
    await database.transaction(lambda db: db.execute("SELECT extra FROM thing").fetchall())


async def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"rubbish" * 1000)
    for path in (tmp_path / "rubbish", tmp_path / "no" / "directory"):
        database = Database(path)
        with pytest.raises(UnavailableError):
            await database.open()
        await database.close()


async def test_a_closed_database_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    with pytest.raises(HyperError, match="not open"):
        await database.transaction(lambda db: None)
    await database.close()


async def test_records_are_for_root_alone(tmp_path: Path):
    (tmp_path / "records.sqlite").touch(0o644)
    database = Database(tmp_path / "records.sqlite")
    await database.open()
    await database.migrate("room", ["CREATE TABLE thing (name TEXT) STRICT"])
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    await database.close()
    assert set(modes.values()) == {0o600}, modes


async def test_what_is_to_last_is_synced_and_the_rest_is_not(database: Database) -> None:
    def synchronous(db) -> int:
        value: int = db.execute("PRAGMA synchronous").fetchone()[0]
        return value

    normal, full = 1, 2  # SQLite's numbers
    assert await database.transaction(synchronous) == normal
    assert await database.transaction(synchronous, lasting=True) == full
    assert await database.transaction(synchronous) == normal
