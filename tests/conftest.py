# SPDX-License-Identifier: Apache-2.0
"""Rules for every suite: nothing is green by skipping."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from hyperd.host.database import Database

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("hyper", deadline=None)
hypothesis.settings.load_profile("hyper")

# As the `hyper` program does (cli/hyperctl/entry.py), for commands that tests run in this process.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# A run in a shell's background ignores it, and so would the programs that tests type ctrl-c at.
signal.signal(signal.SIGINT, signal.default_int_handler)

# test id -> why it cannot run there
ALLOWED_SKIPS: dict[str, str] = {}


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> "AsyncIterator[Database]":
    """Records, with nothing in them."""
    from hyperd.host.database import Database  # noqa: PLC0415 - the black box's tests import nothing of hyperd

    opened = Database(tmp_path / "records.sqlite")
    await opened.open()
    yield opened
    await opened.close()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = [
        report.nodeid for report in reporter.stats.get("skipped", []) if report.nodeid not in ALLOWED_SKIPS
    ]
    if skipped and exitstatus == 0:
        reporter.write_line(
            f"skipped without a listed reason (tests/conftest.py): {', '.join(skipped)}", red=True
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
