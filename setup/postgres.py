# SPDX-License-Identifier: Apache-2.0
"""Step `postgres`: Debian's PostgreSQL as the file system of an image, for the tests of durability.

The packages are unpacked and not configured: a cluster is made where it is used, in a guest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from setup import cache, debian
from setup.step import BUILD, hash_of, link_asset

if TYPE_CHECKING:
    from setup.step import Job

KIND = "postgres"
IMAGE = "postgres.tar"
PACKAGES = ("postgresql", "dash", "bash", "coreutils", "grep", "sed", "libc-bin")
# Neither documentation nor the compiler for its queries, which is larger than all the rest.
LEFT_OUT = ("/usr/share/*", "*/libLLVM*", "*/llvmjit*", "*/bitcode/*")
KEPT = "/usr/share/postgresql/*"
ACCOUNTS = r'printf "root:x:0:0::/root:/bin/sh\npostgres:x:100:100::/tmp:/bin/sh\n" > "$1/etc/passwd"'


class Postgres:
    name = "postgres"

    def key(self) -> str:
        return hash_of(Path(__file__), debian.codename())

    def is_ready(self) -> bool:
        return (BUILD / "assets" / IMAGE).exists()

    def run(self, job: Job) -> None:
        place = cache.make_entry(KIND, self.key(), lambda out: make(job, out / IMAGE))
        link_asset(IMAGE, place / IMAGE)
        job.result = str(place / IMAGE)


def make(job: Job, image: Path) -> None:
    left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    job.run(
        *("mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(PACKAGES)}"),
        *(*left_out, f"--dpkgopt=path-include={KEPT}", f"--extract-hook={ACCOUNTS}"),
        *(debian.codename(), image),
    )
