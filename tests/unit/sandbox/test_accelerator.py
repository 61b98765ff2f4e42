# SPDX-License-Identifier: Apache-2.0
"""KVM by booting under it, TCG when that fails, and neither in silence."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hyperd.errors import ExhaustedError, HyperError, NotFoundError, TimeoutExpiredError, UnavailableError
from hyperd.host.workers import Workers
from hyperd.model.vm import Accelerator
from hyperd.sandbox import AcceleratorChooser, Findings, GuestSettings, SandboxPaths, fingerprint
from tests.fakes.guest import FakeDialer
from tests.fakes.hypervisor import FakeHypervisor, kvm_refused, qemu_died

GUEST = GuestSettings(Path("/k"), Path("/i"), "quiet")


@dataclass
class Host:
    root: Path
    files: Workers
    hypervisor: FakeHypervisor = field(default_factory=FakeHypervisor)
    dialer: FakeDialer = field(default_factory=FakeDialer)

    def chooser(self, wanted: str = "auto", key: tuple[str, ...] = ("kernel", "qemu"), device: str = "kvm"):
        def scratch(sandbox_id: str) -> SandboxPaths:
            return SandboxPaths(self.root / "run" / sandbox_id[:12], self.root / "state" / sandbox_id)

        findings = Findings(self.root / "accelerator.json", key, self.files)
        return AcceleratorChooser(
            wanted, self.hypervisor, self.dialer, GUEST, scratch, findings, self.files, self.root / device
        )

    @property
    def probes(self) -> int:
        return len(self.hypervisor.definitions)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "kvm").touch()
    files = Workers("files", 1)
    yield Host(tmp_path, files)
    files.close()


async def test_kvm_is_chosen_when_a_guest_comes_up_under_it(host: Host) -> None:
    chooser = host.chooser()
    assert await chooser.choose() is Accelerator.KVM
    assert "came up" in chooser.choice.reason
    assert host.hypervisor.definitions[0].accelerator is Accelerator.KVM
    assert not host.hypervisor.running
    assert not list((host.root / "run").iterdir()) + list((host.root / "state").iterdir())


@pytest.mark.parametrize("how", ["hangs", "dies"])
async def test_tcg_is_chosen_when_none_does_and_says_why(host: Host, how: str) -> None:
    if how == "hangs":
        host.dialer.fail_next_connect = TimeoutExpiredError("no hello in time")
    else:
        host.hypervisor.fail_next_start = kvm_refused()
    chooser = host.chooser()
    assert await chooser.choose() is Accelerator.TCG
    assert await chooser.choose() is Accelerator.TCG
    assert await host.chooser().choose() is Accelerator.TCG  # after a restart of hyperd, too
    assert host.probes == 1
    assert ("no hello in time" if how == "hangs" else "Permission denied") in chooser.choice.reason
    assert not host.hypervisor.running


@pytest.mark.parametrize(
    "passing",
    [
        ExhaustedError("no space left"),
        NotFoundError("there is no such kernel"),
        UnavailableError("libvirt did not answer"),
        TimeoutExpiredError("the VM did not start in time"),
        qemu_died(),
    ],
)
async def test_what_says_nothing_about_kvm_is_not_remembered(
    host: Host, passing: HyperError, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.hypervisor.fail_next_start = passing
    chooser = host.chooser()
    assert await chooser.choose() is Accelerator.TCG
    assert await chooser.choose() is Accelerator.TCG  # not again at once
    assert host.probes == 1
    assert await host.chooser().choose() is Accelerator.KVM
    chooser._probe_again_at = 0.0
    (host.root / "accelerator.json").unlink()
    assert await chooser.choose() is Accelerator.KVM


async def test_a_file_that_was_replaced_in_place_has_another_fingerprint(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    absent = fingerprint(kernel)
    kernel.write_text("one")
    first = fingerprint(kernel)
    os.utime(kernel, ns=(1, 1))
    assert len({absent, first, fingerprint(kernel)}) == 3


async def test_the_finding_is_remembered_until_something_it_depends_on_changes(host: Host) -> None:
    host.dialer.fail_next_connect = TimeoutExpiredError("no hello in time")
    await host.chooser().choose()
    assert await host.chooser().choose() is Accelerator.TCG
    assert host.probes == 1
    assert await host.chooser(key=("other kernel", "qemu")).choose() is Accelerator.KVM
    assert host.probes == 2


async def test_after_a_reboot_it_is_probed_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.chooser().choose()
    (host.root / "boot_id").write_text("another\n")
    monkeypatch.setattr("hyperd.sandbox.accelerator._BOOT_ID", host.root / "boot_id")
    await host.chooser().choose()
    assert host.probes == 2


@pytest.mark.parametrize("rubbish", ["", "[]", "{}", '{"key": 1}', "\xff"])
async def test_an_unreadable_memory_is_no_memory(host: Host, rubbish: str) -> None:
    (host.root / "accelerator.json").write_text(rubbish)
    assert await host.chooser().choose() is Accelerator.KVM
    assert host.probes == 1


async def test_a_memory_that_cannot_be_written_is_no_failure(host: Host) -> None:
    (host.root / "accelerator.new").mkdir()
    assert await host.chooser().choose() is Accelerator.KVM


async def test_all_who_ask_wait_for_one_probe(host: Host) -> None:
    chooser = host.chooser()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(chooser.choose()) for _ in range(5)]
    assert {task.result() for task in asked} == {Accelerator.KVM}
    assert host.probes == 1


async def test_without_a_device_or_told_so_nothing_is_probed(host: Host) -> None:
    missing = host.chooser(device="nowhere")
    assert await missing.choose() is Accelerator.TCG
    assert "is not there" in missing.choice.reason
    assert await host.chooser("tcg").choose() is Accelerator.TCG
    assert host.probes == 0


async def test_kvm_that_is_demanded_and_does_not_work_is_an_error_each_time(host: Host) -> None:
    host.dialer.fail_next_connect = TimeoutExpiredError("no hello in time")
    chooser = host.chooser("kvm")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="no hello in time"):
            await chooser.choose()
    assert host.probes == 1
