# SPDX-License-Identifier: Apache-2.0
"""`make setup` and `make test-images`: the steps in their order."""

from __future__ import annotations

import argparse
import fcntl
import os
from typing import TYPE_CHECKING

from setup.agent import Agent
from setup.builder import Builder
from setup.busybox import Busybox
from setup.environment import Environment
from setup.erofs import Erofs
from setup.kernel import Kernel
from setup.packages import Packages
from setup.prepare import Prepare
from setup.step import BUILD, Step, run_steps
from setup.testimage import POSTGRES, SERVERS
from setup.testpackages import TestPackages
from setup.virtiofsd import Virtiofsd

if TYPE_CHECKING:
    from collections.abc import Sequence

TESTS = ("testpackages", "busybox", "postgres", "servers")  # no user has any use for these
NAMES = ("packages", "kernel", "builder", "python", "erofs", "virtiofsd", "agent", "prepare", *TESTS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="setup", description=__doc__)
    parser.add_argument(
        "--force", action="append", default=[], choices=NAMES, help="do this step even if it is current"
    )
    parser.add_argument("--only", action="append", default=[], choices=NAMES, help="do no other step")
    parser.add_argument("--tests", action="store_true", help="do what tests need besides, and nothing else")
    arguments = parser.parse_args()
    force = frozenset(arguments.force)
    steps: tuple[Step, ...] = (
        *(Packages(), Kernel(renew="kernel" in force), Builder(renew="builder" in force)),
        *(
            Environment(),
            Erofs(),
            Virtiofsd(),
            TestPackages(),
            Busybox(),
            POSTGRES,
            SERVERS,
            Agent(),
            Prepare(),
        ),
    )
    wanted = chosen(arguments.only, tests=arguments.tests)
    os.umask(0o022)  # QEMU's user reads what is made here
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "setup.lock").open("w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # a second set-up of this checkout waits, then finds everything current
        # These two take longest and need no other step: they are made while the others download.
        run_steps(
            [step for step in steps if step.name in wanted],
            force=force,
            alongside=frozenset({"kernel", "builder"}),
        )


def chosen(only: Sequence[str], *, tests: bool) -> frozenset[str]:
    """The names of the steps to do."""
    if only:
        return frozenset(only)
    return frozenset(TESTS) if tests else frozenset(NAMES) - frozenset(TESTS)


if __name__ == "__main__":
    main()
