# SPDX-License-Identifier: Apache-2.0
"""Real QEMU for the hypervisor room. Guests are tiny, the capability cache is filled once for all tests."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperd.host.reaper import Reaper
from hyperd.vm.libvirt import LibvirtHypervisor, LibvirtSettings
from tests.contract.vm.lab import Lab, short_directory


@pytest.fixture(scope="session")
def libvirt_root() -> Iterator[Path]:
    """One for the whole run: a process can open one embedded root in its life. With a capability cache."""

    async def fill(settings: LibvirtSettings) -> None:
        async with Reaper(), LibvirtHypervisor(settings) as hypervisor:
            await hypervisor.prepare()

    with short_directory() as path:
        asyncio.run(fill(LibvirtSettings(root=path)))
        yield path


@pytest.fixture
def lab(libvirt_root: Path) -> Iterator[Lab]:
    with short_directory() as path:
        laboratory = Lab(path, libvirt_root)
        yield laboratory
        laboratory.require_nothing_left()
