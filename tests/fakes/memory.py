# SPDX-License-Identifier: Apache-2.0
"""``tmp_path`` in memory where the host has such a place: a suite of fakes need not wait for a disk's fsync."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hyper-", dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        yield Path(directory)
