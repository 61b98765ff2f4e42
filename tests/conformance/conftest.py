# SPDX-License-Identifier: Apache-2.0
"""The product as a black box: a daemon, the command, a registry on loopback. Nothing here imports hyperd."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.harness import Hyper, hyper
from tests.registry import Registry, registry


@pytest.fixture(scope="session")
def shared() -> Iterator[Hyper]:
    with hyper() as host:
        host.wait_for_template()  # what the tests start does not boot
        yield host


@pytest.fixture
def host(shared: Hyper) -> Iterator[Hyper]:
    """The suite's daemon; the test leaves neither containers nor images behind."""
    yield shared
    shared.clear()
    stored = sorted(set(shared.ok("images", "-q", "--no-trunc").split()))
    if stored:
        shared.ok("rmi", "-f", *stored)
    shared.require_no_leaks()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as served:
        yield served
