# SPDX-License-Identifier: Apache-2.0
"""Step `testpackages`: Debian's programs that only tests and the bench have a use for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from setup import debian, packages
from setup.step import StepError, hash_of

if TYPE_CHECKING:
    from setup.step import Job

# A Ceph cluster on loopback, with the units that come with it; and what measures disks.
UNITS = {
    "ceph-base": ("ceph.target", "ceph-crash.service"),
    "ceph-common": ("rbdmap.service",),
    "ceph-mon": ("ceph-mon.target",),
    "ceph-osd": ("ceph-osd.target",),
}
WANTED = (*UNITS, "fio")


class TestPackages:
    name = "testpackages"

    def key(self) -> str:
        return hash_of(Path(__file__), debian.codename())

    def is_ready(self) -> bool:
        return not missing()

    def run(self, job: Job) -> None:
        if wanted := missing():
            debian.update(job)
            job.say(f"installing {' '.join(wanted)} and what they need; their services are not started")
            before = debian.installed_versions(list(UNITS))
            debian.install(job, wanted)
            packages.keep_services_off(job, before, UNITS)
            if still := missing():
                raise StepError(f"not to be had: {', '.join(still)}", hint=debian.APT_HINT)
        job.result = ", ".join(f"{name} {version}" for name, version in sorted(versions().items()))


def versions() -> dict[str, str]:
    return debian.installed_versions(WANTED)


def missing() -> list[str]:
    return [name for name in WANTED if name not in versions()]
