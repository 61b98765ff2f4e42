# SPDX-License-Identifier: Apache-2.0
"""Every requirement of hyper held against this host, each with what to do about it."""

import asyncio
import grp
import json
import os
import platform
import pwd
import re
import shutil
import stat
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from hyperd.config import Config
from hyperd.errors import HyperError
from hyperd.host.process import run
from hyperd.model.host import CheckLevel, HostCheck
from hyperd.model.vm import OWN_UIDS, Accelerator
from hyperd.network import Network
from hyperd.sandbox import Choice, Templates

_SET_UP = "run `make setup` in the checkout, or install again"
_MIN_FREE_MIB = 2048
_KVM = Path("/dev/kvm")
_LINKS = Path("/sys/class/net")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


async def check_host(config: Config, choice: Choice | None) -> list[HostCheck]:
    """All checks, in the order in which they matter. ``choice``: what the accelerator's probe found, if it has run."""
    checks: Sequence[Callable[[Config], Coroutine[None, None, HostCheck]]] = (
        _root, _qemu, _libvirt, _qemu_user, _kvm, _kernel, _agent, _mkfs_erofs, _skopeo, _mkfs_ext4,
        _mkfs_xfs, _virtiofsd, _nft, _tun, _forwarding, _firewall, _socket, _disk,
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


def cache_check(*, asked_anew: bool) -> HostCheck:
    """Whether libvirt believed what it had kept of QEMU's answers: asking again makes a start of hyperd slow."""
    finding = "what QEMU answered is kept"
    if asked_anew:
        finding = (
            "what QEMU had answered was taken for old at hyperd's start, which took seconds longer: after an upgrade"
            " that is so once; where it comes again and again, the host's CPUID changes (docs/hypervisor.md)"
        )
    return HostCheck("libvirt cache", CheckLevel.OK, finding)


def template_check(config: Config, templates: Templates) -> HostCheck:
    """What containers start from."""
    if not config.template.enabled:
        return HostCheck("templates", CheckLevel.OK, "are turned off: every container boots a guest")
    trouble = templates.trouble
    if trouble is not None:
        finding = f"{trouble.subject}: {trouble.brief}" if trouble.subject else trouble.brief
        hint = trouble.hint or "see the daemon's log; containers boot a guest meanwhile"
        return HostCheck("templates", CheckLevel.WARNING, finding, hint)
    there = templates.list()
    taken_mib = sum(snapshot.allocated_bytes for snapshot in there) >> 20
    memory = "shared" if config.template.share_memory else "not shared"
    return HostCheck("templates", CheckLevel.OK, f"{len(there)}, {taken_mib} MiB on disk, memory {memory}")


def worst(checks: Sequence[HostCheck]) -> CheckLevel:
    levels = {check.level for check in checks}
    return next(
        (level for level in (CheckLevel.FAILED, CheckLevel.WARNING) if level in levels), CheckLevel.OK
    )


def _accelerator(config: Config, choice: Choice | None) -> HostCheck:
    if choice is None:
        device = "is there" if _KVM.exists() else "is not there"
        return HostCheck(
            "accelerator",
            CheckLevel.WARNING,
            f"not probed yet; /dev/kvm {device}",
            "hyperd probes it when it starts",
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
        "user", CheckLevel.FAILED, f"uid {os.geteuid()}",
        "hyperd needs root for bridge and taps, and to run QEMU as another user",
    )  # fmt: skip


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


async def _kvm(config: Config) -> HostCheck:
    try:
        uid, gid = pwd.getpwnam(config.vm.qemu_user).pw_uid, grp.getgrnam(config.vm.qemu_group).gr_gid
        groups = [gid]
        if config.vm.qemu_users == "own":
            uid = OWN_UIDS.start
        else:
            groups = os.getgrouplist(config.vm.qemu_user, gid)
    except KeyError as error:
        return HostCheck("kvm device", CheckLevel.FAILED, str(error.args[0]), _SET_UP)
    return judge_kvm(config, _find_status(_KVM), uid, frozenset(groups))


def judge_kvm(config: Config, device: os.stat_result | None, uid: int, groups: frozenset[int]) -> HostCheck:
    """Whether QEMU's user may open /dev/kvm; ``device`` None when there is none."""
    level = {"tcg": CheckLevel.OK, "kvm": CheckLevel.FAILED}.get(config.vm.accel, CheckLevel.WARNING)
    if device is None:
        return HostCheck(
            "kvm device", level, f"{_KVM} is not there", "modprobe kvm_intel or kvm_amd, where the CPU can"
        )
    mode = device.st_mode
    needed = (
        stat.S_IRUSR | stat.S_IWUSR if device.st_uid == uid
        else stat.S_IRGRP | stat.S_IWGRP if device.st_gid in groups
        else stat.S_IROTH | stat.S_IWOTH
    )  # fmt: skip
    if mode & needed == needed:
        return HostCheck("kvm device", CheckLevel.OK, f"QEMU may open {_KVM}")
    return HostCheck(
        "kvm device", level, f"QEMU's user may not open {_KVM} (mode {stat.S_IMODE(mode):04o})",
        f"chgrp {config.vm.qemu_group} {_KVM}; chmod 660 {_KVM} (udev does so where it runs)",
    )  # fmt: skip


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


async def _mkfs_xfs(_config: Config) -> HostCheck:
    """Not needed for anything else."""
    found = await _version_check("mkfs.xfs", ("mkfs.xfs", "-V"), (5, 19), "install xfsprogs >= 5.19")
    if found.level is CheckLevel.OK:
        return found
    finding = f"{found.finding}: no volume is made with --fs xfs"
    return HostCheck(found.name, CheckLevel.WARNING, finding, "install xfsprogs >= 5.19")


async def _virtiofsd(config: Config) -> HostCheck:
    """Not needed for anything else."""
    program = str(config.storage.virtiofsd.resolve())
    found = await _version_check("virtiofsd", (program, "--version"), (1, 11), _SET_UP)
    if found.level is CheckLevel.OK:
        return found
    finding = f"{found.finding}: directories of the host cannot be shared"
    return HostCheck(found.name, CheckLevel.WARNING, finding, f"install virtiofsd >= 1.11, or {_SET_UP}")


async def _nft(_config: Config) -> HostCheck:
    return await _version_check("nftables", ("nft", "--version"), (1, 0), "install nftables")


async def _tun(_config: Config) -> HostCheck:
    if os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return HostCheck("tun", CheckLevel.OK, "/dev/net/tun")
    return HostCheck("tun", CheckLevel.FAILED, "/dev/net/tun cannot be opened", "load the kernel module tun")


async def _forwarding(config: Config) -> HostCheck:
    bridge = _find_status(_LINKS / config.network.bridge)
    return judge_forwarding(_read(_FORWARDING), bridge_exists=bridge is not None)


def judge_forwarding(text: str, *, bridge_exists: bool) -> HostCheck:
    if text.strip() == "1":
        return HostCheck("forwarding", CheckLevel.OK, "net.ipv4.ip_forward is 1")
    if not bridge_exists:
        return HostCheck(
            "forwarding", CheckLevel.OK, "net.ipv4.ip_forward is 0; hyperd sets it to 1 at its start"
        )
    return HostCheck(
        "forwarding", CheckLevel.WARNING, "net.ipv4.ip_forward is 0: guests have no way out",
        "sysctl -w net.ipv4.ip_forward=1, or restart hyperd; find out who set it to 0",
    )  # fmt: skip


async def _firewall(config: Config) -> HostCheck:
    try:
        chains = await run(["nft", "-j", "list", "chains"], timeout_s=10)
        rules = [
            (await run(["nft", "list", "chain", family, table, chain], timeout_s=10)).stdout.decode(
                errors="replace"
            )
            for family, table, chain in (*dropping_chains(chains.stdout), ("ip", "filter", "DOCKER-USER"))
        ]
    except HyperError as error:
        return HostCheck("firewall", CheckLevel.WARNING, error.brief, "install nftables")
    return judge_firewall(dropping_chains(chains.stdout), "\n".join(rules), config.network.bridge)


def dropping_chains(listing: bytes) -> list[tuple[str, str, str]]:
    """Family, table and name of what drops forwarded packets that it does not know: Docker's does."""
    try:
        objects = json.loads(listing or b"{}").get("nftables", [])
    except ValueError:
        return []
    chains = (item["chain"] for item in objects if "chain" in item)
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and chain["family"] in ("ip", "inet")
    ]


def judge_firewall(dropping: Sequence[tuple[str, str, str]], rules: str, bridge: str) -> HostCheck:
    """``rules``: of these chains and of DOCKER-USER, in which an administrator may have let the bridge through."""
    let_through = re.search(rf'iifname "{re.escape(bridge)}".*accept', rules)
    if not dropping or let_through:
        return HostCheck("firewall", CheckLevel.OK, f"packets of {bridge} are forwarded")
    names = ", ".join(" ".join(chain) for chain in dropping)
    place = "DOCKER-USER" if "chain DOCKER-USER" in rules else "FORWARD"
    return HostCheck(
        "firewall", CheckLevel.WARNING, f"forwarded packets are dropped by default ({names}): guests have no way out",
        f"iptables -I {place} -i {bridge} -j ACCEPT; "
        f"iptables -I {place} -o {bridge} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    )  # fmt: skip


async def _socket(config: Config) -> HostCheck:
    group = config.daemon.socket_group
    directory = config.socket.parent
    if directory.exists() and not directory.stat().st_mode & stat.S_IXOTH:
        return HostCheck(
            "socket", CheckLevel.WARNING, f"only root passes {directory}", f"chmod o+x {directory}"
        )
    try:
        members = grp.getgrnam(group).gr_mem
    except KeyError:
        return HostCheck(
            "socket", CheckLevel.WARNING, f"there is no group {group}: {config.socket} is for root alone",
            f"groupadd --system {group}; usermod -aG {group} USER; then restart hyperd. Who is in it is root in effect",
        )  # fmt: skip
    return HostCheck(
        "socket", CheckLevel.OK, f"{config.socket}, for root and {group} ({', '.join(members) or 'nobody'})"
    )


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


def _find_status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


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
