# SPDX-License-Identifier: Apache-2.0
"""Volumes, of the fake and of real files."""

import pytest
import pytest_asyncio

from tests.contract.storage.volumes import opened
from tests.fakes.volumes import FakeVolumes


@pytest_asyncio.fixture
async def local(database, tmp_path):
    subject = await opened(database, tmp_path / "volumes")
    yield subject
    subject.close()


@pytest.fixture(params=["fake", "local"])
def volumes(request):
    return FakeVolumes() if request.param == "fake" else request.getfixturevalue("local")
