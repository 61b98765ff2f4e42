# SPDX-License-Identifier: Apache-2.0
"""Debian as set-up needs it: which release this is, which versions there are, and how packages get in.

No mirror is named anywhere: what has to be added (backports, a source package of the next release) comes from
the mirror that this machine is already configured for.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from setup.step import BUILD, StepError, capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from setup.step import Job

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_HINT = (
    "see whether `apt-get update` works and no other package manager is running; "
    "after an interrupted installation `dpkg --configure -a` mends things"
)


def codename() -> str:
    """`bookworm` or `trixie`; anything else is refused."""
    release = {}
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        release[name] = value.strip('"')
    name = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or name not in {"bookworm", "trixie"}:
        raise StepError(
            f"this is {release.get('PRETTY_NAME', 'an unknown system')}; set-up knows Debian 12 and 13",
            hint="use one of these, or install by hand what setup/packages.py lists",
        )
    return name


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are fully installed."""
    found = {}
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\n", *names],
        capture_output=True,
        text=True,
        check=False,  # status 1 when one of the names is unknown
    )
    for line in listing.stdout.splitlines():
        name, status, *version = line.split()
        if status == "installed" and version:
            found[name] = version[0]
    return found


def is_at_least(version: str, wanted: str) -> bool:
    """Whether a Debian version is `wanted` or later; `wanted` is a plain upstream version."""
    upstream = version.split(":", 1)[-1]  # the epoch says nothing about the program
    return subprocess.run(["dpkg", "--compare-versions", upstream, "ge", wanted], check=False).returncode == 0


def known_versions(package: str) -> list[str]:
    """Versions that the configured sources offer, the latest first."""
    rows = capture("apt-cache", "madison", package).splitlines()
    columns = [[column.strip() for column in row.split("|")] for row in rows]
    return list(dict.fromkeys(row[1] for row in columns if row[0] == package and "Packages" in row[2]))


def mirror_of(release: str) -> str:
    """The URI from which this machine gets a release's `main`, or ""."""
    sources = ["Created-By: Packages", f"Codename: {release}", "Component: main"]
    return next(iter(capture("apt-get", "indextargets", "--format", "$(REPO_URI)", *sources).split()), "")


def update(job: Job) -> None:
    job.hint = APT_HINT
    job.run("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update")


def private_sources(job: Job, work: Path, kind: str, release: str) -> list[str]:
    """apt's options for ``release`` ("deb" or "deb-src"), from this machine's mirror, with its lists below ``work``.

    The host's own sources stay as they are, and so do the packages that it has.
    """
    mirror = mirror_of(codename())
    if not mirror:
        raise StepError("no Debian mirror is configured", hint="configure one in /etc/apt/sources.list.d")
    for directory in ("lists/partial", "cache/archives/partial"):
        (work / "apt" / directory).mkdir(parents=True)
    (work / "apt" / "status").touch()
    (work / "apt" / "sources.list").write_text(f"{kind} [signed-by={KEYRING}] {mirror} {release} main\n")
    options = {
        "Dir::Etc::sourcelist": work / "apt" / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State::lists": work / "apt" / "lists",
        "Dir::State::status": work / "apt" / "status",
        "Dir::Cache": work / "apt" / "cache",
        "APT::Sandbox::User": "root",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    job.hint = f"the mirror of this machine must carry {release}"
    job.run("apt-get", "-q", *words, "update")
    return words


def install(job: Job, packages: Sequence[str], *, preferences: str = "") -> None:
    """Install packages without their recommendations, without starting a service, and without removing anything."""
    existing = Path("/etc/apt/preferences")
    own = BUILD / "apt" / "preferences"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text((existing.read_text() + "\n" if existing.exists() else "") + preferences)
    job.hint = APT_HINT
    with services_held_back():
        job.run(
            *("apt-get", "-y", "-q", "install", "--no-install-recommends", "--no-remove"),
            *("-o", f"Dir::Etc::preferences={own}", "-o", "DPkg::Lock::Timeout=300"),
            *("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"),
            *packages,
            environment={"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"},
        )


@contextlib.contextmanager
def services_held_back() -> Iterator[None]:
    """Debian starts a service when its package is installed; this keeps new ones from starting (policy-rc.d(8)).

    A machine that has a policy of its own keeps it.
    """
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text(
        "#!/bin/sh\n# Put here by hyper's set-up for the time of an installation.\n"
        'case "$1" in docker-registry*|libvirt*|virt*|tgt*|ceph*|rbdmap*) exit 101 ;; esac\nexit 104\n'
    )
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
