# SPDX-License-Identifier: Apache-2.0
"""Step `packages`: Debian packages, on Debian 12 with QEMU and libvirt from backports, and the group `hyper`."""

from __future__ import annotations

import grp
import pwd
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from setup import debian
from setup.step import StepError, capture, hash_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from setup.step import Job

# What hyperd uses while it runs.
RUNTIME = (
    *("qemu-system-x86", "qemu-utils", "qemu-block-extra", "libvirt-daemon", "libvirt-daemon-driver-qemu"),
    *("skopeo", "nftables", "iproute2", "e2fsprogs", "xfsprogs", "ca-certificates", "python3"),
)
# What builds the Python environment, the guest kernel and the agent.
BUILD = (
    *("gcc", "libc6-dev", "make", "pkg-config", "python3-dev", "python3-venv", "libvirt-dev"),
    *("flex", "bison", "bc", "perl", "libelf-dev", "libssl-dev", "xz-utils", "protobuf-compiler"),
)
# What makes, signs and reads images, the terminal that tests look at, an iSCSI server and an ssh-agent for them.
TRIAL = (
    *("mmdebstrap", "docker-registry", "umoci", "cpio", "tmux", "tgt", "buildah", "podman"),
    *("gpg", "gpg-agent", "gpgconf", "openssh-client"),
)
# What differs between the releases: mkfs.erofs is built on Debian 12, whose own is too old, and virtiofsd put together.
RELEASE = {
    "bookworm": (
        *("dpkg-dev", "autoconf", "automake", "libtool"),
        *("uuid-dev", "liblz4-dev", "zlib1g-dev", "libzstd-dev"),
    ),
    "trixie": ("erofs-utils", "virtiofsd"),
}
RUST = {
    "bookworm": ("cargo-web", "rustc-web", "rustfmt-web", "rust-web-clippy"),
    "trixie": ("cargo", "rustc", "rustfmt", "rust-clippy"),
}
MINIMUM = {
    "qemu-system-x86": "9",
    "libvirt-daemon": "11",
    "libvirt-daemon-driver-qemu": "11",
    "libvirt-dev": "11",
}
MINIMUM_CARGO = (1, 85)
# Only these come from backports, and with them what they alone need: no other package of the machine moves.
PREFERENCES = """
Package: qemu-* libvirt* seabios ipxe-qemu
Pin: release n=bookworm-backports
Pin-Priority: 600
"""
BACKPORTS = Path("/etc/apt/sources.list.d/hyper-backports.sources")
# Units that come with the packages and that nothing here uses: libvirt runs inside hyperd, a registry inside the demo.
UNITS = {
    "docker-registry": ("docker-registry.service",),
    "tgt": ("tgt.service",),
    "libvirt-daemon": ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"),
    "libvirt-daemon-log": ("virtlogd.service", "virtlogd.socket", "virtlogd-admin.socket"),
    "libvirt-daemon-common": ("libvirt-guests.service",),
}
GROUP = "hyper"


class Packages:
    name = "packages"

    def key(self) -> str:
        return hash_of(Path(__file__), debian.codename(), *wanted_packages())

    def is_ready(self) -> bool:
        return not missing_packages() and has_accounts()

    def run(self, job: Job) -> None:
        missing = missing_packages()
        before = debian.installed_versions(list(UNITS))
        if missing:
            debian.update(job)
            if debian.codename() == "bookworm":
                add_backports(job)
            job.say(f"installing {len(missing)} packages and what they need: {' '.join(missing)}")
            debian.install(job, missing, preferences=PREFERENCES if debian.codename() == "bookworm" else "")
            keep_services_off(job, before, UNITS)
            if still := missing_packages():
                raise StepError(
                    f"not to be had in the version needed: {', '.join(still)}", hint=debian.APT_HINT
                )
        add_group(job)
        versions = debian.installed_versions(list(MINIMUM))
        job.result = f"QEMU {plain(versions['qemu-system-x86'])}, libvirt {plain(versions['libvirt-daemon'])}"


def wanted_packages() -> list[str]:
    release = debian.codename()
    rust = () if has_cargo() else RUST[release]
    return [*RUNTIME, *BUILD, *TRIAL, *RELEASE[release], *rust]


def missing_packages() -> list[str]:
    """Packages that are not installed, or not in the version needed."""
    wanted = wanted_packages()
    have = debian.installed_versions(wanted)
    return [name for name in wanted if name not in have or is_too_old(name, have[name])]


def is_too_old(name: str, version: str) -> bool:
    return name in MINIMUM and not debian.is_at_least(version, MINIMUM[name])


def has_cargo() -> bool:
    """Whether PATH has a Rust that is new enough, and is not one that this step installed."""
    cargo = shutil.which("cargo")
    if not cargo or cargo == "/usr/bin/cargo":
        return False
    found = re.match(r"cargo (\d+)\.(\d+)", capture(cargo, "--version"))
    return found is not None and (int(found[1]), int(found[2])) >= MINIMUM_CARGO


def add_backports(job: Job) -> None:
    """Add bookworm-backports from the machine's own mirror, unless it is configured already."""
    if debian.mirror_of("bookworm-backports"):
        return
    mirror = debian.mirror_of("bookworm")
    if not mirror:
        raise StepError(
            "no source for Debian 12 itself is configured, so there is no mirror to take backports from",
            hint="configure a Debian mirror in /etc/apt/sources.list.d",
        )
    BACKPORTS.write_text(
        "# Added by hyper's set-up: QEMU and libvirt in the versions that it needs.\n"
        f"Types: deb\nURIs: {mirror}\nSuites: bookworm-backports\nComponents: main\nSigned-By: {debian.KEYRING}\n"
    )
    job.say(f"added {BACKPORTS}")
    try:
        debian.update(job)
    except StepError:
        BACKPORTS.unlink()
        raise
    if not debian.mirror_of("bookworm-backports"):
        raise StepError(
            "this machine's mirror has no bookworm-backports", hint=f"put one that has into {BACKPORTS}"
        )


def keep_services_off(job: Job, before: Mapping[str, str], units: Mapping[str, Sequence[str]]) -> None:
    """Disable the units of packages that were not installed before, so that a reboot does not start them either."""
    after = debian.installed_versions(list(units))
    new = [unit for name in units if name in after and name not in before for unit in units[name]]
    if new and shutil.which("systemctl"):
        job.run("systemctl", "disable", *new)
        job.say("new services are neither started nor enabled: what hyper needs of them it runs itself")


def has_accounts() -> bool:
    return has_group() and has_qemu_user()


def has_group() -> bool:
    return any(group.gr_name == GROUP for group in grp.getgrall())


def has_qemu_user() -> bool:
    try:
        return pwd.getpwnam("libvirt-qemu").pw_uid != 0
    except KeyError:
        return False


def add_group(job: Job) -> None:
    """The group whose members may talk to hyperd; and a check of the user that QEMU runs as."""
    if not has_qemu_user():
        raise StepError(
            "the user libvirt-qemu, which QEMU is to run as, does not exist",
            hint="`apt-get install --reinstall libvirt-daemon-driver-qemu` creates it",
        )
    if not has_group():
        job.run("groupadd", "--system", GROUP)


def plain(version: str) -> str:
    """`1:10.0.2+ds-2~bpo12+1` -> `10.0.2`."""
    return re.split(r"[+~-]", version.split(":", 1)[-1])[0]
