# SPDX-License-Identifier: Apache-2.0
"""The records of security groups: what changes them comes one after the other."""

import asyncio
import sqlite3

import pytest

from hyperd.errors import NotFoundError, UnavailableError
from hyperd.host.database import Database
from hyperd.network.policy.groups import MIGRATION, Groups


@pytest.fixture
async def database(database: Database) -> Database:
    await database.migrate("policy", (MIGRATION,))
    return database


@pytest.fixture
async def groups(database: Database) -> Groups:
    async def changed(_: str) -> None:
        return

    made = Groups(database, changed)
    await made.create("{}", "web")
    return made


async def recorded(database: Database) -> list[str]:
    def work(connection: sqlite3.Connection) -> list[str]:
        return [row[0] for row in connection.execute("SELECT name FROM security_group")]

    return await database.transaction(work)


async def test_nobody_gets_one_whose_removal_has_begun(groups: Groups) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(groups.remove("web"))
        await asyncio.sleep(0)
        with pytest.raises(NotFoundError):
            groups.get("web")


async def test_one_that_is_removed_and_changed_at_once_is_gone_everywhere(
    database: Database, groups: Groups
) -> None:
    _, changed = await asyncio.gather(
        groups.remove("web"), groups.update("{}", "web"), return_exceptions=True
    )
    assert isinstance(changed, NotFoundError)
    assert await recorded(database) == [group.name for group in groups.list_groups()] == []


async def test_one_that_could_not_be_removed_is_there(database: Database, groups: Groups) -> None:
    def break_it(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE security_group RENAME TO elsewhere")

    await database.transaction(break_it)
    with pytest.raises(UnavailableError):
        await groups.remove("web")
    assert groups.get("web").name == "web"
