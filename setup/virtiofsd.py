# SPDX-License-Identifier: Apache-2.0
"""Step `virtiofsd`: the program that serves directories of the host to guests.

Debian 13 has it. On Debian 12 it is Debian 13's own program beside the libraries that it was built with, some 4 MB
which apt downloads and checks: building the crate instead takes a quarter of an hour.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from setup import cache, debian
from setup.step import BUILD, StepError, capture, hash_of, link_asset

if TYPE_CHECKING:
    from setup.step import Job

RELEASE = "trixie"
KIND = "virtiofsd"
PROGRAM = "virtiofsd"
SYSTEM = Path("/usr/libexec/virtiofsd")
PACKAGES = ("virtiofsd", "libc6", "libgcc-s1", "libcap-ng0", "libseccomp2")
LOADER = "ld-linux-x86-64.so.2"
LIBRARIES = (LOADER, "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libcap-ng.so.0", "libseccomp.so.2")
# Started by its whole path, not through a link: what it needs is beside it, wherever it was copied to.
WRAPPER = f"""\
#!/bin/sh
here=${{0%/*}}
exec "$here/{LOADER}" --library-path "$here" "$here/{PROGRAM}.bin" "$@"
"""
MINIMUM = (1, 11)  # --readonly


class Virtiofsd:
    name = "virtiofsd"

    def key(self) -> str:
        return hash_of(Path(__file__), debian.codename())

    def is_ready(self) -> bool:
        return SYSTEM.exists() or (BUILD / "assets" / PROGRAM / PROGRAM).exists()

    def run(self, job: Job) -> None:
        program = SYSTEM
        if not SYSTEM.exists():
            place = cache.make_entry(KIND, hash_of(Path(__file__)), lambda out: assemble(job, out))
            link_asset(PROGRAM, place)
            program = place / PROGRAM
        job.result = f"{PROGRAM} {'.'.join(map(str, require_version(program)))}, {program}"


def require_version(program: Path) -> tuple[int, ...]:
    """`virtiofsd 1.13.2` -> (1, 13, 2). Raises StepError for one that does not run, or is too old."""
    found = re.search(r"\b(\d+)\.(\d+)\.(\d+)", capture(str(program), "--version"))
    version = tuple(int(part) for part in found.groups()) if found else ()
    if version < MINIMUM:
        raise StepError(
            f"{program} is version {version or 'unknown'}, {MINIMUM} is needed",
            hint=f"see what `{program} --version` says",
        )
    return version


def assemble(job: Job, out: Path) -> None:
    work = BUILD / "virtiofsd"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job.say(f"downloading {PROGRAM} and its libraries from {RELEASE}")
    options = debian.private_sources(job, work, "deb", RELEASE)
    job.run("apt-get", "-q", *options, "download", *PACKAGES, cwd=work)
    for package in work.glob("*.deb"):
        job.run("dpkg-deb", "-x", package, work / "tree")
    shutil.copy(work / "tree" / SYSTEM.relative_to("/"), out / f"{PROGRAM}.bin")
    for library in LIBRARIES:
        shutil.copy(work / "tree/usr/lib/x86_64-linux-gnu" / library, out / library)  # follows the link
    (out / PROGRAM).write_text(WRAPPER)
    (out / PROGRAM).chmod(0o755)
    require_version(out / PROGRAM)
    shutil.rmtree(work)
