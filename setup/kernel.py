# SPDX-License-Identifier: Apache-2.0
"""Step `kernel`: the guest kernel, built once per (source version, fragment, build script).

`guestkernel/version` pins the upstream version. Debian replaces it with each security update, so the pinned one may
be gone from the mirror: then the latest that there is gets built, and the step says so. Whichever it was stays in use
until the pin, the fragment or the build script changes, or the mirror is looked at again (`make setup FORCE=kernel`).
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

from setup import cache, debian
from setup.step import BUILD, ROOT, Job, StepError, explain, hash_of, link_asset, logging_to

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = ROOT / "guestkernel"
PACKAGE = "linux-source-6.12"
KIND = "kernel"


class Kernel:
    name = "kernel"

    def __init__(self, *, renew: bool = False) -> None:
        self.renew = renew

    def key(self) -> str:
        return recipe_hash()

    def is_ready(self) -> bool:
        return (BUILD / "assets" / "vmlinux").exists()

    def run(self, job: Job) -> None:
        place = cache.entry(KIND, f"recipe-{recipe_hash()}").resolve()
        if self.renew or not (place / "vmlinux").exists():
            place = build(job)
        link_asset("vmlinux", place / "vmlinux")
        facts = json.loads((place / "build.json").read_text())
        job.result = f"Linux {facts['version']}, {facts['size_bytes'] / 1e6:.1f} MB, {place}"


def pinned_version() -> str:
    return (SOURCE / "version").read_text().strip()


def recipe_hash() -> str:
    """What the checkout says about the kernel; the source version that it led to is known only to the cache."""
    return hash_of(pinned_version(), SOURCE / "config", SOURCE / "build.py")


def build(job: Job) -> Path:
    """The cache entry for the version chosen, built now if it is not there."""
    version = choose_version(job)
    key = hash_of(version, SOURCE / "config", SOURCE / "build.py")

    def fill(out: Path) -> None:
        work = BUILD / "kernel"
        tarball = fetch(job, version, work)
        job.hint = "the log's first error counts; guestkernel/README.md says how to change an option"
        job.say(f"building Linux {version}: some 10 minutes on 2 cores, while the other steps go on")
        job.run(
            "nice",
            "/usr/bin/python3",
            SOURCE / "build.py",
            "--tarball",
            tarball,
            "--work",
            work,
            "--out",
            out,
        )
        facts = json.loads((out / "build.json").read_text())
        (out / "build.json").write_text(json.dumps({"version": version, **facts}, indent=2) + "\n")
        shutil.rmtree(work)

    place = cache.make_entry(KIND, key, fill)
    cache.set_alias(KIND, f"recipe-{recipe_hash()}", key)
    return place


def choose_version(job: Job) -> str:
    """The pinned version as Debian numbers it, or the latest that there is."""
    known = debian.known_versions(PACKAGE)
    if not known:
        debian.update(job)
        known = debian.known_versions(PACKAGE)
    if not known:
        raise StepError(
            f"no source has {PACKAGE}", hint="Debian's security archive has it; see /etc/apt/sources.list.d"
        )
    pinned = [version for version in known if version.split("-")[0] == pinned_version()]
    if not pinned:
        job.say(f"Debian no longer has {pinned_version()} (guestkernel/version); taking {known[0]}")
    return (pinned or known)[0]


def fetch(job: Job, version: str, work: Path) -> Path:
    """Download the source package (apt checks its signature) and take the tarball out of it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job.say(f"downloading {PACKAGE} {version}")
    job.hint = debian.APT_HINT
    # Root downloads: apt's own user cannot write below a checkout that only root may enter.
    job.run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", f"{PACKAGE}={version}", cwd=work)
    package = next(work.glob("*.deb"))
    job.run("dpkg-deb", "-x", package, work / "package")
    package.unlink()
    tarball = next((work / "package/usr/src").glob("linux-source-*.tar.xz"))
    return tarball.rename(work / tarball.name)


def check_options() -> None:
    """`make kernel-config`: compare the fragment with what Kconfig makes of it, without compiling."""
    try:
        with logging_to("kernel-config") as log:
            job = Job("kernel-config", log)
            work = BUILD / "kernel-config"
            tarball = next(work.glob("*.tar.xz"), None) or fetch(job, choose_version(job), work)
            job.hint = "see guestkernel/README.md"
            job.run("/usr/bin/python3", SOURCE / "build.py", "--check", "--tarball", tarball, "--work", work)
    except (StepError, OSError) as error:
        explain("kernel-config", error)
        sys.exit(1)
    print("kernel-config: every option of guestkernel/config took")


if __name__ == "__main__":
    check_options()
