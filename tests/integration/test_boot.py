# SPDX-License-Identifier: Apache-2.0
"""Guests that do not come up, and what one costs when it does."""

from pathlib import Path

import pytest

from bench.qemu import Machine, bare_vm
from tests.harness import Hyper, hyper

BUSYBOX = "test.local/busybox"


def _pulled(host: Hyper, layouts: Path) -> Hyper:
    host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
    return host


def test_a_kernel_without_an_init_shows_its_panic(layouts: Path):
    with hyper(settings={"vm.cmdline": "rdinit=/nowhere"}) as host:
        finished = _pulled(host, layouts).run("run", "--rm", BUSYBOX, "true", timeout_s=120)
        message = finished.stderr.decode()
        assert finished.returncode == 125
        assert "Kernel panic" in message or "No working init" in message
        host.require_no_leaks()


def test_an_agent_that_does_not_answer_in_time_is_an_error(layouts: Path):
    with hyper(settings={"vm.boot_timeout_s": "0.2"}) as host:
        finished = _pulled(host, layouts).run("run", "--rm", BUSYBOX, "true")
        assert finished.returncode == 125
        assert "0.2 s" in finished.stderr.decode()
        host.require_no_leaks()


def test_a_missing_kernel_is_named(layouts: Path):
    with hyper(settings={"vm.kernel": "/nowhere/vmlinux"}) as host:
        finished = _pulled(host, layouts).run("run", "--rm", BUSYBOX, "true")
        assert finished.returncode == 125
        assert "/nowhere/vmlinux" in finished.stderr.decode()
        host.require_no_leaks()


async def test_the_agent_stays_within_its_memory():
    with bare_vm(Machine("tcg")) as vm:
        async with vm.guest() as guest:
            stats = await guest.stats()
    assert 0 < stats.agent_rss_bytes <= 8 << 20


@pytest.mark.parametrize("accelerator", ["kvm"])
def test_kvm_or_an_error_when_the_configuration_asks_for_it(layouts: Path, accelerator: str):
    """Where KVM works the container runs under it; where it does not, it is refused, never emulated silently."""
    with hyper(accel=accelerator) as host:
        finished = _pulled(host, layouts).run("run", "--name", "kvm", BUSYBOX, "true", timeout_s=120)
        if finished.returncode == 0:
            assert host.ok("inspect", "-f", "{{.Sandbox.Accelerator}}", "kvm") == "kvm"
        else:
            assert finished.returncode == 125
            assert "KVM does not work here" in finished.stderr.decode()


def test_a_full_host_disk_is_an_error_in_the_guest_and_not_its_end(layouts: Path):
    with hyper(tmpfs_mib=330) as host:
        room = host.home / "room"
        room.write_bytes(bytes(4 << 20))
        _pulled(host, layouts).ok("run", "-d", "--name", "full", BUSYBOX, "sleep", "600")
        filled = host.run(
            "exec", "full", "dd", "if=/dev/zero", "of=/fill", "bs=1M", "count=400", "conv=fsync"
        )
        assert filled.returncode == 1
        assert b"I/O error" in filled.stderr or b"Input/output error" in filled.stderr, filled.stderr
        assert host.ok("exec", "full", "echo", "on it goes") == "on it goes"
        room.unlink()  # records need some to be removed
        host.ok("rm", "-f", "full")
        host.require_no_leaks()
