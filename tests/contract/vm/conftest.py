# SPDX-License-Identifier: Apache-2.0
"""Real QEMU for the hypervisor room. Guests are tiny, the capability cache is filled once for all tests."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hyperd.host.reaper import Reaper
from hyperd.vm.libvirt import LibvirtHypervisor, LibvirtSettings
from tests.contract.vm.lab import Lab, short_directory
from tests.contract.vm.subject import Subject
from tests.fakes.hypervisor import FakeHypervisor


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


@pytest.fixture
def own_lab(libvirt_root: Path) -> Iterator[Lab]:
    """With a root of its own, for processes of their own."""
    with short_directory() as path:
        shutil.copytree(libvirt_root / "cache", path / "libvirt/cache")
        laboratory = Lab(path, path / "libvirt")
        yield laboratory
        laboratory.require_nothing_left()


@pytest.fixture
async def hypervisor(lab: Lab) -> AsyncIterator[LibvirtHypervisor]:
    async with Reaper(), LibvirtHypervisor(lab.settings) as opened:
        yield opened


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Lab]:
    return request.param, Lab(tmp_path, tmp_path) if request.param == "fake" else request.getfixturevalue(
        "lab"
    )


@pytest.fixture
async def subject(place: tuple[str, Lab]) -> AsyncIterator[Subject]:
    kind, lab = place
    if kind == "fake":
        yield Subject(FakeHypervisor(), lab)
        return
    async with Reaper(), LibvirtHypervisor(lab.settings) as hypervisor:
        yield Subject(hypervisor, lab)
