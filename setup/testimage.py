# SPDX-License-Identifier: Apache-2.0
"""Steps `postgres` and `servers`: Debian's own servers as file systems of images, for tests alone.

The packages are unpacked and not configured: what they need is made where they are used, in a guest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from setup import cache, debian
from setup.step import BUILD, hash_of, link_asset

if TYPE_CHECKING:
    from setup.step import Job

SHELL = ("dash", "bash", "coreutils", "grep", "sed", "libc-bin")
# Neither documentation nor the compiler for PostgreSQL's queries, which is larger than all the rest.
LEFT_OUT = ("/usr/share/*", "*/libLLVM*", "*/llvmjit*", "*/bitcode/*")


@dataclass
class TestImage:
    """``accounts``: lines of /etc/passwd after root's. ``kept``: of what is left out of others."""

    name: str
    packages: tuple[str, ...]
    kept: tuple[str, ...]
    accounts: tuple[str, ...]

    @property
    def archive(self) -> str:
        return f"{self.name}.tar"

    def key(self) -> str:
        return hash_of(Path(__file__), self.name, debian.codename())

    def is_ready(self) -> bool:
        return (BUILD / "assets" / self.archive).exists()

    def run(self, job: Job) -> None:
        place = cache.make_entry(self.name, self.key(), lambda out: self.make(job, out / self.archive))
        link_asset(self.archive, place / self.archive)
        job.result = str(place / self.archive)

    def make(self, job: Job, archive: Path) -> None:
        job.hint = debian.APT_HINT
        filters = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        filters += [f"--dpkgopt=path-include={pattern}" for pattern in self.kept]
        lines = "".join(f"{line}\\n" for line in ("root:x:0:0::/root:/bin/sh", *self.accounts))
        job.run(
            *("mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(SHELL + self.packages)}"),
            *(*filters, f'--extract-hook=printf "{lines}" > "$1/etc/passwd"'),
            '--extract-hook=printf "root:x:0:\\n" > "$1/etc/group"',
            *(debian.codename(), archive),
        )


POSTGRES = TestImage(
    "postgres", ("postgresql",), ("/usr/share/postgresql/*",), ("postgres:x:100:100::/tmp:/bin/sh",)
)
# What people run behind a port, and what they look at a network with.
SERVERS = TestImage(
    "servers",
    (
        *("nginx-light", "redis-server", "postgresql-client"),
        *("bind9-dnsutils", "iperf3", "curl", "iproute2", "iputils-ping"),
    ),
    ("/usr/share/nginx/*",),
    ("www-data:x:33:33::/tmp:/bin/sh", "nobody:x:65534:65534::/tmp:/bin/sh"),
)
