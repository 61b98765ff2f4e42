# SPDX-License-Identifier: Apache-2.0
"""How this host's libvirt is to be used, and the files that tell it so."""

import grp
import os
import pwd
import stat
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import InvalidError, UnavailableError
from hyperd.model.vm import HOT_PLUG_DEVICES, OWN_UIDS, Accelerator
from hyperd.vm.libvirt.platform import X86_64, Platform

# `<root>/lib/qemu/domain-ID-NAME/monitor.sock`, NAME cut to 20 characters, must fit into sun_path (108 bytes).
_ROOT_PATH_BYTES = 108 - len("/lib/qemu/domain-1000000-") - 20 - len("/monitor.sock") - 1

_QEMU_CONF = """\
# Written by hyperd at every start; docs/hypervisor.md says why each line is as it is.
stdio_handler = "file"
security_driver = "none"
security_default_confined = 0
user = "{user}"
group = "{group}"
dynamic_ownership = 0
remember_owner = 0
namespaces = [ "mount" ]
cgroup_controllers = [ ]
cgroup_device_acl = [ "/dev/null", "/dev/full", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/kvm" ]
seccomp_sandbox = 1
hugetlbfs_mount = [ ]
max_core = 0
dump_guest_core = 0
"""


@dataclass(frozen=True, slots=True)
class LibvirtSettings:
    """``root`` is where the embedded driver keeps its files; it is made when missing."""

    root: Path
    qemu_user: str = "libvirt-qemu"
    qemu_group: str = "libvirt-qemu"
    own_uids: bool = (
        False  # each QEMU runs under a uid of its own instead of qemu_user's; see model.vm.own_uid
    )
    uri: str = ""  # "": embedded in this process, under ``root``
    kvm_driver: str = "kvm"  # libvirt's domain types
    tcg_driver: str = "qemu"
    platform: Platform = X86_64
    spare_ports: int = HOT_PLUG_DEVICES  # for hot-plug; each costs the guest time at boot
    start_timeout_s: float = 60.0  # a fresh capability cache is filled in some 5 s
    destroy_timeout_s: float = 30.0
    steer_timeout_s: float = 30.0  # pause; resume, which may have to break off a save
    unplug_timeout_s: float = 15.0  # a guest blinks for 5 s before it lets go
    save_timeout_s: float = 1800.0  # 64 GiB at 40 MB/s
    save_stall_s: float = 30.0  # without a byte written
    save_bytes_per_s: int = 1 << 40  # no limit
    translation_cache_mib: int = 0  # what QEMU may keep of translated code under TCG; 0: its own choice
    kvm_device: Path = Path("/dev/kvm")

    @property
    def embedded(self) -> bool:
        return not self.uri

    @property
    def connection_uri(self) -> str:
        return self.uri or f"qemu:///embed?root={urllib.parse.quote(str(self.root))}"

    @property
    def pid_dir(self) -> Path:
        return self.root / "run/qemu" if self.embedded else Path("/run/libvirt/qemu")

    @property
    def log_dir(self) -> Path:
        return self.root / "log/qemu" if self.embedded else Path("/var/log/libvirt/qemu")

    def driver(self, accelerator: Accelerator) -> str:
        return self.kvm_driver if accelerator is Accelerator.KVM else self.tcg_driver


def write_configuration(settings: LibvirtSettings) -> None:
    """The embedded root's `etc`. Raises InvalidError for settings that cannot work, UnavailableError for a bad host."""
    root = settings.root
    if not root.is_absolute():
        raise InvalidError("the hypervisor's root is not an absolute path", subject=str(root))
    if not 0 <= settings.spare_ports <= 8:
        raise InvalidError("from 0 to 8 spare ports are possible", subject=str(settings.spare_ports))
    if len(os.fsencode(root)) > _ROOT_PATH_BYTES:
        raise InvalidError(
            f"the hypervisor's root has a path of more than {_ROOT_PATH_BYTES} bytes",
            subject=str(root),
            hint="QEMU's monitor socket lies below it and a socket's path is limited to 107 bytes: use a shorter path",
        )
    for program in (settings.platform.emulator, settings.platform.firmware):
        if not program.exists():
            raise UnavailableError(
                "is not installed",
                subject=str(program),
                hint="Debian's packages qemu-system-x86 and qemu-system-data have it",
            )
    uid, gid = _identity(settings)
    groups = frozenset(os.getgrouplist(settings.qemu_user, gid))
    try:
        (root / "etc").mkdir(parents=True, exist_ok=True)
        if settings.own_uids:
            _require_searchable(root, OWN_UIDS.start, frozenset({gid}))
        else:
            _require_searchable(root, uid, groups)
        # libvirt checks /dev/kvm with the rights of `user`, but its capability probe may open it whatever its mode
        # (CAP_DAC_OVERRIDE). Where the two disagree it declares its cache stale at every single start: 17 s instead of
        # 0.1 s. Then the probes get the rights they take anyway. No VM is touched by this: each names its own user.
        probe_as_root = settings.kvm_device.exists() and not _may(settings.kvm_device, 6, uid, groups)
        user, group = ("root", "root") if probe_as_root else (settings.qemu_user, settings.qemu_group)
        (root / "etc/qemu.conf").write_text(_QEMU_CONF.format(user=user, group=group))
        (root / "etc/libvirt.conf").write_text("")  # no aliases, no default URI: nothing of the host's own
    except OSError as error:
        raise UnavailableError(
            f"the hypervisor's root cannot be written: {error.strerror}", subject=str(error.filename or root)
        ) from error


def _identity(settings: LibvirtSettings) -> tuple[int, int]:
    try:
        user = pwd.getpwnam(settings.qemu_user)
        group = grp.getgrnam(settings.qemu_group)
    except KeyError as error:
        raise UnavailableError(
            "QEMU's user or group does not exist",
            subject=f"{settings.qemu_user}:{settings.qemu_group}",
            hint="Debian's package libvirt-daemon-driver-qemu makes libvirt-qemu; or set another one",
        ) from error
    return user.pw_uid, group.gr_gid


def _require_searchable(path: Path, uid: int, groups: frozenset[int]) -> None:
    for directory in (path, *path.parents):
        if not _may(directory, 1, uid, groups):
            raise UnavailableError(
                "QEMU's user cannot pass through this directory",
                subject=str(directory),
                hint=f"chmod o+x {directory}, or keep the state elsewhere",
            )


def _may(path: Path, wanted: int, uid: int, groups: frozenset[int]) -> bool:
    """Mode bits only. ``wanted`` as in chmod: 4 read, 2 write, 1 search."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if uid == 0:
        return True
    if status.st_uid == uid:
        return mode >> 6 & wanted == wanted
    if status.st_gid in groups:
        return mode >> 3 & wanted == wanted
    return mode & wanted == wanted
