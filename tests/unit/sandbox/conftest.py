# SPDX-License-Identifier: Apache-2.0
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hyperd.sandbox import Fleet
from tests.fakes.memory import tmp_path as tmp_path  # noqa: PLC0414 - a fixture
from tests.fakes.world import World


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest_asyncio.fixture
async def fleet(world: World) -> AsyncIterator[Fleet]:
    async with world.daemon() as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadlines of the tenure, short: what is waited for here does not come."""
    for name in (
        "KILL_TIMEOUT_S",
        "LOST_GRACE_S",
        "REDIAL_DELAY_S",
        "DRAIN_TIMEOUT_S",
    ):
        monkeypatch.setattr(f"hyperd.sandbox.tenure.{name}", 0.001 if name == "REDIAL_DELAY_S" else 0.02)
    for name in (
        "errands.ADOPT_DELAY_S",
        "execs.DRAIN_TIMEOUT_S",
        "execs.EXEC_DRAIN_TIMEOUT_S",
        "lookout.LOST_GRACE_S",
        "riding.BUSY_DELAY_S",
    ):
        monkeypatch.setattr(f"hyperd.sandbox.{name}", 0.02)
