# SPDX-License-Identifier: Apache-2.0
"""Every requirement of hyper held against this host, each with what to do about it."""

import asyncio
import os
import platform
import pwd
import re
import shutil
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from hyperd.config import Config
from hyperd.errors import HyperError
from hyperd.host.process import run
from hyperd.model.host import CheckLevel, HostCheck
from hyperd.model.vm import Accelerator
from hyperd.network import Network
from hyperd.sandbox import Choice

_SET_UP = "run `make setup` in the checkout, or install again"
_MIN_FREE_MIB = 2048


async def check_host(config: Config, choice: Choice | None) -> list[HostCheck]:
    """All checks, in the order in which they matter. ``choice``: what the accelerator's probe found, if it has run."""
    checks: Sequence[Callable[[Config], Coroutine[None, None, HostCheck]]] = (
        _root, _qemu, _libvirt, _qemu_user, _kernel, _agent, _mkfs_erofs, _skopeo, _mkfs_ext4, _nft, _tun, _disk,
    )  # fmt: skip
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(check(config)) for check in checks]
    return [_accelerator(config, choice), *(task.result() for task in running)]


def network_check(network: Network) -> HostCheck:
    """What the daemon met when it prepared the network."""
    trouble = network.trouble
    if trouble is None:
        return HostCheck("network", CheckLevel.OK, "is prepared")
    finding = f"{trouble.subject}: {trouble.brief}" if trouble.subject else trouble.brief
    return HostCheck("network", CheckLevel.FAILED, finding, trouble.hint or "see the daemon's log")


def worst(checks: Sequence[HostCheck]) -> CheckLevel:
    levels = {check.level for check in checks}
    return next(
        (level for level in (CheckLevel.FAILED, CheckLevel.WARNING) if level in levels), CheckLevel.OK
    )


def _accelerator(config: Config, choice: Choice | None) -> HostCheck:
    if choice is None:
        device = "is there" if Path("/dev/kvm").exists() else "is not there"
        return HostCheck(
            "accelerator",
            CheckLevel.WARNING,
            f"not probed yet; /dev/kvm {device}",
            "the first start of a container probes it",
        )
    if choice.accelerator is Accelerator.KVM:
        return HostCheck("accelerator", CheckLevel.OK, f"kvm: {choice.reason}")
    if config.vm.accel == "tcg":
        return HostCheck("accelerator", CheckLevel.OK, f"tcg: {choice.reason}")
    return HostCheck(
        "accelerator",
        CheckLevel.WARNING,
        f"tcg (emulation, several times slower): {choice.reason}",
        "enable virtualization in the firmware, or nested virtualization in the cloud, for KVM",
    )


async def _root(_config: Config) -> HostCheck:
    if os.geteuid() == 0:
        return HostCheck("user", CheckLevel.OK, "root")
    return HostCheck(
        "user",
        CheckLevel.FAILED,
        f"uid {os.geteuid()}",
        "hyperd needs root for taps, nftables and QEMU's own user",
    )


async def _qemu(_config: Config) -> HostCheck:
    return await _version_check(
        "qemu",
        ("qemu-system-x86_64", "--version"),
        (9, 0),
        "install qemu-system-x86 >= 9 (Debian 12: from backports)",
    )


async def _libvirt(_config: Config) -> HostCheck:
    try:
        import libvirt  # noqa: PLC0415 - the check is whether it can be imported
    except ImportError as error:
        return HostCheck("libvirt", CheckLevel.FAILED, f"cannot be loaded: {error}", _SET_UP)
    number = libvirt.getVersion()
    version = (number // 1_000_000, number // 1_000 % 1_000)
    driver = (
        Path("/usr/lib")
        / f"{platform.machine()}-linux-gnu"
        / "libvirt/connection-driver/libvirt_driver_qemu.so"
    )
    if not driver.exists():
        return HostCheck(
            "libvirt", CheckLevel.FAILED, f"{version[0]}.{version[1]} without its QEMU driver",
            "install libvirt-daemon-driver-qemu",
        )  # fmt: skip
    if version < (11, 0):
        return HostCheck(
            "libvirt",
            CheckLevel.WARNING,
            f"{version[0]}.{version[1]}",
            "11 or newer is what hyper is tested with",
        )
    return HostCheck("libvirt", CheckLevel.OK, f"{version[0]}.{version[1]}")


async def _qemu_user(config: Config) -> HostCheck:
    user = config.vm.qemu_user
    try:
        pwd.getpwnam(user)
    except KeyError:
        return HostCheck(
            "qemu user", CheckLevel.FAILED, f"there is no user {user}", "install libvirt-daemon-driver-qemu"
        )
    return HostCheck("qemu user", CheckLevel.OK, user)


async def _kernel(config: Config) -> HostCheck:
    return _file_check("guest kernel", config.vm.kernel)


async def _agent(config: Config) -> HostCheck:
    return _file_check("agent", config.vm.initramfs)


async def _mkfs_erofs(config: Config) -> HostCheck:
    return await _version_check("mkfs.erofs", (str(config.image.mkfs_erofs), "-V"), (1, 8), _SET_UP)


async def _skopeo(config: Config) -> HostCheck:
    return await _version_check("skopeo", (config.image.skopeo, "--version"), (1, 9), "install skopeo")


async def _mkfs_ext4(_config: Config) -> HostCheck:
    return await _version_check("mkfs.ext4", ("mkfs.ext4", "-V"), (1, 47), "install e2fsprogs >= 1.47")


async def _nft(_config: Config) -> HostCheck:
    return await _version_check("nftables", ("nft", "--version"), (1, 0), "install nftables")


async def _tun(_config: Config) -> HostCheck:
    if os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return HostCheck("tun", CheckLevel.OK, "/dev/net/tun")
    return HostCheck("tun", CheckLevel.FAILED, "/dev/net/tun cannot be opened", "load the kernel module tun")


async def _disk(config: Config) -> HostCheck:
    place = next(
        path for path in (config.daemon.state_dir, *config.daemon.state_dir.parents) if path.exists()
    )
    free_mib = shutil.disk_usage(place).free >> 20
    if free_mib < _MIN_FREE_MIB:
        return HostCheck(
            "disk space", CheckLevel.FAILED, f"{free_mib} MiB free for {config.daemon.state_dir}",
            f"free some: images and disks want at least {_MIN_FREE_MIB} MiB",
        )  # fmt: skip
    return HostCheck(
        "disk space", CheckLevel.OK, f"{free_mib / 1024:.1f} GiB free for {config.daemon.state_dir}"
    )


def _file_check(name: str, path: Path) -> HostCheck:
    if not path.is_file():
        return HostCheck(name, CheckLevel.FAILED, f"{path} is missing", _SET_UP)
    return HostCheck(name, CheckLevel.OK, f"{path}, {path.stat().st_size / (1 << 20):.1f} MiB")


async def _version_check(name: str, argv: Sequence[str], least: tuple[int, int], advice: str) -> HostCheck:
    try:
        finished = await run(argv, timeout_s=10)
    except HyperError as error:
        return HostCheck(name, CheckLevel.FAILED, error.brief, advice)
    text = (finished.stdout + finished.stderr).decode(errors="replace")
    found = re.search(r"(\d+)\.(\d+)(\.\d+)?", text)
    if found is None:
        return HostCheck(name, CheckLevel.FAILED, f"{argv[0]} does not tell its version", advice)
    level = CheckLevel.OK if (int(found[1]), int(found[2])) >= least else CheckLevel.FAILED
    return HostCheck(name, level, found[0], "" if level is CheckLevel.OK else advice)
