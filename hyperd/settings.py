# SPDX-License-Identifier: Apache-2.0
"""What the configuration says to each room, in the room's own words. Reads the host's users, and nothing else."""

import grp
import logging
import os
import pwd
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from hyperd.build import BuilderSizing, BuildSettings
from hyperd.config import Config
from hyperd.errors import InvalidError, UnavailableError
from hyperd.host import users
from hyperd.image import LOW_SHARE, ImageSettings, Marks, host_platform
from hyperd.model.container import Sizing
from hyperd.model.vm import OWN_UIDS, SandboxId, own_uid
from hyperd.network import BridgeSettings
from hyperd.sandbox import Admission, FleetSettings, GuestSettings, RunSettings, TemplateSettings
from hyperd.vm.libvirt import LibvirtSettings

log = logging.getLogger(__name__)

RECONNECT_TIMEOUT_S = 10.0
# reboot=t with QEMU's -no-reboot: a panicking guest ends its VM instead of hanging. The serial console is slow: quiet.
GUEST_CMDLINE = "console=ttyS0 quiet panic=1 reboot=t no_timer_check"


def libvirt(config: Config) -> LibvirtSettings:
    return LibvirtSettings(
        root=config.daemon.state_dir / "libvirt",
        qemu_user=config.vm.qemu_user,
        qemu_group=config.vm.qemu_group,
        own_uids=_has_own_uids(config),
        uri=config.vm.hypervisor_uri,
        translation_cache_mib=config.vm.translation_cache_mib,
    )


def images(config: Config) -> ImageSettings:
    return ImageSettings(
        root=config.daemon.state_dir / "images",
        mkfs_erofs=str(config.image.mkfs_erofs),
        skopeo=config.image.skopeo,
        budget=image_budget(config),
    )


def image_budget(config: Config) -> Marks:
    high, low = config.image.budget_mib, config.image.budget_low_mib
    try:
        return Marks(high << 20, (low or int(high * LOW_SHARE)) << 20)
    except ValueError as error:
        raise InvalidError(str(error), subject=f"[image] budget_low_mib {low}, budget_mib {high}") from error


def bridge(config: Config) -> BridgeSettings:
    try:
        subnet = IPv4Network(config.network.subnet)
    except ValueError as error:
        raise InvalidError(
            "is not an IPv4 network", subject=f"[network] subnet {config.network.subnet}"
        ) from error
    try:
        publish_address = IPv4Address(config.network.publish_address)
    except ValueError as error:
        raise InvalidError(
            "is not an IPv4 address", subject=f"[network] publish_address {config.network.publish_address}"
        ) from error
    return BridgeSettings(
        tap_owner_uid=qemu_owner(config)[0],
        bridge=config.network.bridge,
        subnet=subnet,
        mtu=config.network.mtu,
        publish_address=publish_address,
    )


def qemu_owner(config: Config) -> tuple[int, int]:
    try:
        return pwd.getpwnam(config.vm.qemu_user).pw_uid, grp.getgrnam(config.vm.qemu_group).gr_gid
    except KeyError as error:
        raise UnavailableError(
            f"there is no {error.args[0].rpartition(' ')[2]}",
            subject="[vm] qemu_user, qemu_group",
            hint="Debian's package libvirt-daemon-driver-qemu makes libvirt-qemu",
        ) from error


def _has_own_uids(config: Config) -> bool:
    """Whether each QEMU gets a uid of its own; not where hyperd runs in a user namespace without those uids."""
    if config.vm.qemu_users == "shared":
        return False
    if users.are_mapped(OWN_UIDS, users.read_uid_map()):
        return True
    log.warning(
        "uids are missing in this user namespace: all QEMUs share one", extra={"user": config.vm.qemu_user}
    )
    return False


def disk_owner(config: Config) -> Callable[[SandboxId], tuple[int, int]]:
    shared, group = qemu_owner(config)
    if not _has_own_uids(config):
        return lambda _: (shared, group)
    return lambda sandbox_id: (own_uid(sandbox_id), group)


def starts(config: Config) -> RunSettings:
    guest = GuestSettings(
        kernel=config.vm.kernel.resolve(),
        initramfs=config.vm.initramfs.resolve(),
        cmdline=f"{GUEST_CMDLINE} {config.vm.cmdline}".strip(),
    )
    return RunSettings(
        guest=guest,
        state_dir=config.daemon.state_dir / "sandboxes",
        run_dir=config.daemon.run_dir / "vm",
        boot_timeout_s=config.vm.boot_timeout_s,
        reconnect_timeout_s=RECONNECT_TIMEOUT_S,
        parallel_starts=config.vm.parallel_starts,
    )


def fleet(config: Config) -> FleetSettings:
    return FleetSettings(
        default_sizing=Sizing(config.vm.default_vcpus, config.vm.default_memory_mib),
        platform=host_platform(),
        log_dir=config.daemon.state_dir / "sandboxes",
        log_max_bytes=config.logs.max_mib << 20,
    )


def builds(config: Config) -> BuildSettings:
    sizing = BuilderSizing(
        cpus=min(config.build.cpus, float(os.cpu_count() or 1)),
        memory_bytes=config.build.memory_mib << 20,
        cache_bytes=config.build.cache_size_mib << 20,
    )
    return BuildSettings(config.build.image, sizing, host_platform())


def admission(config: Config) -> Admission:
    host_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Admission(
        memory_mib=int(host_mib * config.vm.memory_overcommit) - config.vm.host_reserve_mib,
        max_sandboxes=config.vm.max_sandboxes,
        max_vcpus_each=os.cpu_count() or 1,
    )


def templates(config: Config) -> TemplateSettings:
    return TemplateSettings(
        owner_of=disk_owner(config),
        budget_bytes=config.template.budget_mib << 20,
        enabled=config.template.enabled,
        share_memory=config.template.share_memory,
    )
