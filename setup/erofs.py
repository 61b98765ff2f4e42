# SPDX-License-Identifier: Apache-2.0
"""Step `erofs`: an mkfs.erofs that reads tar streams (1.8 or later).

Debian 13 has one. On Debian 12 it is built from Debian 13's source package, which a private apt configuration
downloads and checks: the host's own sources stay as they are.
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

MINIMUM = (1, 8)  # --sort=none
RELEASE = "trixie"
KIND = "erofs"
PROGRAM = "mkfs.erofs"


class Erofs:
    name = "erofs"

    def key(self) -> str:
        system = debian.installed_versions(["erofs-utils"]).get("erofs-utils", "none")
        return hash_of(Path(__file__), debian.codename(), system)

    def is_ready(self) -> bool:
        return (BUILD / "assets" / PROGRAM).exists()

    def run(self, job: Job) -> None:
        program = (
            system_program()
            or cache.make_entry(KIND, hash_of(Path(__file__)), lambda out: build(job, out)) / PROGRAM
        )
        link_asset(PROGRAM, program)
        job.result = f"{PROGRAM} {'.'.join(map(str, version_of(program)))}, {program}"


def version_of(program: str | Path) -> tuple[int, ...]:
    """`mkfs.erofs (erofs-utils) 1.8.6` -> (1, 8, 6); () if the program does not say."""
    found = re.search(r"\b(\d+)\.(\d+)(?:\.(\d+))?", capture(str(program), "--version"))
    return tuple(int(part) for part in found.groups() if part) if found else ()


def system_program() -> Path | None:
    """The system's mkfs.erofs, if it is new enough."""
    program = shutil.which(PROGRAM)
    return Path(program) if program and version_of(program) >= MINIMUM else None


def build(job: Job, out: Path) -> None:
    work = BUILD / "erofs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    fetch(job, work)
    job.hint = "the log's first error counts"
    source = next(path for path in work.glob("erofs-utils-*") if path.is_dir())
    job.say(f"building {source.name}")
    job.run("autoreconf", "-fi", cwd=source)
    job.run("./configure", "--disable-fuse", "--without-selinux", "--disable-lzma", cwd=source)
    job.run("make", "-j3", cwd=source)
    job.run("strip", "-o", out / PROGRAM, source / "mkfs" / PROGRAM)
    (out / PROGRAM).chmod(0o755)
    if version_of(out / PROGRAM) < MINIMUM:
        raise StepError(f"what was built says it is version {version_of(out / PROGRAM)}")
    shutil.rmtree(work)


def fetch(job: Job, work: Path) -> None:
    """Download and unpack the source package; apt and dpkg-source check it."""
    job.say(f"downloading erofs-utils from {RELEASE}")
    options = debian.private_sources(job, work, "deb-src", RELEASE)
    job.run("apt-get", "-q", *options, "source", "erofs-utils", cwd=work)
