# SPDX-License-Identifier: Apache-2.0
"""Step `busybox`: the program that the tests' images are made of.

Debian's package `busybox` (the dynamic one) is downloaded and unpacked, not installed: it conflicts with
busybox-static, which a host may have, and whose applets run inside its shell, so that a masked path would not be
noticed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from setup import cache, debian
from setup.step import BUILD, StepError, hash_of, link_asset

if TYPE_CHECKING:
    from setup.step import Job

KIND = "busybox"
PROGRAM = "busybox"


class Busybox:
    name = "busybox"

    def key(self) -> str:
        return hash_of(Path(__file__), debian.codename())

    def is_ready(self) -> bool:
        return (BUILD / "assets" / PROGRAM).exists()

    def run(self, job: Job) -> None:
        place = cache.make_entry(KIND, self.key(), lambda out: fetch(job, out))
        link_asset(PROGRAM, place / PROGRAM)
        job.result = str(place / PROGRAM)


def fetch(job: Job, out: Path) -> None:
    work = BUILD / "busybox"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    download = ("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PROGRAM)
    try:
        job.run(*download, cwd=work)
    except StepError:  # the lists are older than the mirror
        debian.update(job)
        job.run(*download, cwd=work)
    package = next(work.glob(f"{PROGRAM}_*.deb"))
    job.run("dpkg-deb", "-x", package, work / "root")
    found = [
        path for path in (work / "root/usr/bin" / PROGRAM, work / "root/bin" / PROGRAM) if path.is_file()
    ]
    if not found:
        raise StepError(f"{package.name} holds no {PROGRAM}")
    shutil.copyfile(found[0], out / PROGRAM)
    (out / PROGRAM).chmod(0o755)
    shutil.rmtree(work)
