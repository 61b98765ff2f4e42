# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hyperd.host.database import Database
from hyperd.image import ImageSettings, OciImageStore
from tests.images import mkfs_erofs
from tests.registry import Registry, registry


@contextlib.asynccontextmanager
async def opened(root: Path, **settings) -> AsyncIterator[OciImageStore]:
    """A store with a database of its own beside it, as the daemon opens it."""
    database = Database(root.parent / f"{root.name}.db")
    await database.open()
    try:
        async with asyncio.TaskGroup() as tasks:
            chosen = replace(ImageSettings(root, mkfs_erofs=mkfs_erofs()), **settings)
            store = OciImageStore(chosen, database, tasks)
            await store.open()
            try:
                yield store
            finally:
                await store.close()
    finally:
        await database.close()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "hub") as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[OciImageStore]:
    async with opened(tmp_path / "images") as it:
        yield it
