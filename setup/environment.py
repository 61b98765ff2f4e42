# SPDX-License-Identifier: Apache-2.0
"""Step `python`: `.venv` with locked versions, and this checkout installed into it, editable.

Every download is checked against the lock's hashes. libvirt-python comes as source only and is built against the
system's libvirt, with a locked setuptools. `make lock` renews the locks.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from setup.debian import installed_versions
from setup.step import ROOT, StepError, hash_of

if TYPE_CHECKING:
    from setup.step import Job

HERE = Path(__file__).resolve().parent
PYTHON = Path("/usr/bin/python3")
VENV = ROOT / ".venv"
BUILD_LOCK = HERE / "requirements-build.lock"
RUNTIME_LOCK = HERE / "requirements.lock"
DEV_LOCK = HERE / "requirements-dev.lock"
HINT = "see whether the package index that pip is configured for answers (`pip download --no-deps typer`)"


class Environment:
    name = "python"

    def key(self) -> str:
        system = installed_versions(["libvirt-dev", "python3"])
        return hash_of(
            *(Path(__file__), BUILD_LOCK, DEV_LOCK, ROOT / "pyproject.toml"),
            *(str(ROOT), *sorted(system.values())),
        )

    def is_ready(self) -> bool:
        return all((VENV / "bin" / name).exists() for name in ("python", "hyper", "hyperd", "pytest"))

    def run(self, job: Job) -> None:
        make_venv(job, VENV, DEV_LOCK)
        install_project(job, VENV, editable=True)
        job.result = (
            f"{len(list(VENV.glob('lib/*/site-packages/*.dist-info')))} packages in {VENV.relative_to(ROOT)}"
        )


def make_venv(job: Job, venv: Path, lock: Path) -> None:
    """A fresh virtual environment with exactly what the lock names."""
    shutil.rmtree(venv, ignore_errors=True)
    job.hint = "install Debian's python3-venv"
    job.run(PYTHON, "-m", "venv", venv)
    job.hint = HINT
    job.say(f"installing {lock.relative_to(ROOT)}")
    for each in (BUILD_LOCK, lock):
        pip(job, venv, "--require-hashes", "--no-deps", "--no-build-isolation", "-r", each)


def install_project(job: Job, venv: Path, *, editable: bool) -> None:
    """hyperd, the command and the contract; their dependencies are there already."""
    job.hint = "pyproject.toml and what it names must be in order"
    pip(job, venv, "--no-deps", "--no-build-isolation", *(["--editable"] if editable else []), ROOT)
    missing = [name for name in ("hyper", "hyperd") if not (venv / "bin" / name).exists()]
    if missing:
        raise StepError(f"{', '.join(missing)} did not come with the project", hint=job.hint)


def pip(job: Job, venv: Path, *arguments: str | Path) -> None:
    job.run(
        *(
            venv / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--no-warn-script-location",
        ),
        *arguments,
        environment={
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PYTHONPATH": "",
        },
    )
