# SPDX-License-Identifier: Apache-2.0
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperd.host.workers import Workers
from hyperd.storage.space import ENOUGH_BYTES, LOW_BYTES, SpaceWatch


@pytest.fixture
def workers() -> Iterator[Workers]:
    subject = Workers("test", 1)
    yield subject
    subject.close()


async def test_little_space_is_told_once_and_its_end_too(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hyperd.storage.space")
    free = [LOW_BYTES, LOW_BYTES - 1, 0, LOW_BYTES, ENOUGH_BYTES, ENOUGH_BYTES, 0]
    watch = SpaceWatch(Path("/state"), workers, lambda _: free.pop(0))
    levels = []
    while free:
        await watch.look()
        levels.append([record.levelname for record in caplog.records])
        caplog.clear()
    assert levels == [[], ["WARNING"], [], [], ["INFO"], [], ["WARNING"]]


async def test_a_directory_that_cannot_be_asked_is_told(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    await SpaceWatch(Path("/no/such/place"), workers).look()
    assert "free space cannot be read" in caplog.text
