# SPDX-License-Identifier: Apache-2.0
"""`make setup`: the steps in their order."""

from __future__ import annotations

import argparse
import fcntl
import os

from setup.agent import Agent
from setup.builder import Builder
from setup.busybox import Busybox
from setup.environment import Environment
from setup.erofs import Erofs
from setup.kernel import Kernel
from setup.packages import Packages
from setup.postgres import Postgres
from setup.prepare import Prepare
from setup.step import BUILD, Step, run_steps
from setup.virtiofsd import Virtiofsd

NAMES = (
    "packages",
    "kernel",
    "builder",
    "python",
    "erofs",
    "virtiofsd",
    "busybox",
    "postgres",
    "agent",
    "prepare",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="setup", description=__doc__)
    parser.add_argument(
        "--force", action="append", default=[], choices=NAMES, help="do this step even if it is current"
    )
    parser.add_argument("--only", action="append", default=[], choices=NAMES, help="do no other step")
    arguments = parser.parse_args()
    force = frozenset(arguments.force)
    steps: tuple[Step, ...] = (
        *(Packages(), Kernel(renew="kernel" in force), Builder(renew="builder" in force)),
        *(Environment(), Erofs(), Virtiofsd(), Busybox(), Postgres(), Agent(), Prepare()),
    )
    os.umask(0o022)  # QEMU's user reads what is made here
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "setup.lock").open("w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # a second set-up of this checkout waits, then finds everything current
        chosen = [step for step in steps if not arguments.only or step.name in arguments.only]
        # These two take longest and need no other step: they are made while the others download.
        run_steps(chosen, force=force, alongside=frozenset({"kernel", "builder"}))


if __name__ == "__main__":
    main()
