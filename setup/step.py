# SPDX-License-Identifier: Apache-2.0
"""A step of the set-up: skipped while its inputs are the same, loud about what it does, clear about why it failed.

A step is current when its stamp holds the hash of its present inputs and its outputs are there. All output of the
programs that it runs goes to `build/log/<step>.log`; the person sees one line a step, and the log's tail on failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOGS = BUILD / "log"
STAMPS = BUILD / "stamp"
ASSETS = BUILD / "assets"
TAIL_LINES = 15


class StepError(Exception):
    """What failed in a step; `hint` is what the person can do about it."""

    def __init__(self, brief: str, *, hint: str = "") -> None:
        super().__init__(brief)
        self.hint = hint


@dataclass
class Job:
    """A running step's means: its log, the programs it runs, and the words for its result line."""

    name: str
    log: IO[str]
    result: str = ""
    hint: str = ""  # what to do if the next program fails
    environment: dict[str, str] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Tell the person what takes time just now."""
        print(f"setup: {self.name}: {text}", flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        self.log.write(f"## {text}\n")
        self.log.flush()

    def run(
        self,
        *command: str | Path,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> str:
        """Run a program with its output in the log; returns what it wrote to its standard output when `quiet`."""
        argv = [str(word) for word in command]
        self.note(shlex.join(argv))
        try:
            done = subprocess.run(
                argv,
                cwd=cwd,
                env={**os.environ, **self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if quiet else self.log,
                stderr=self.log,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise StepError(f"{argv[0]} is not installed", hint=self.hint) from error
        if done.returncode:
            raise StepError(f"`{shlex.join(argv)[:300]}` ended with status {done.returncode}", hint=self.hint)
        return done.stdout or ""


class Step(Protocol):
    """One module's offer to `run_steps`."""

    name: str

    def key(self) -> str:
        """Hash of everything that the outcome depends on."""

    def is_ready(self) -> bool:
        """Whether the outputs are there (somebody may have deleted them)."""

    def run(self, job: Job) -> None:
        """Make the outputs."""


def hash_of(*parts: str | bytes | Path) -> str:
    """A short hash of texts and of files' contents; order matters."""
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def capture(*command: str) -> str:
    """A quick look at the host: standard output, or "" when the program fails or is not there."""
    with contextlib.suppress(OSError):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        return done.stdout if done.returncode == 0 else ""
    return ""


def link_asset(name: str, target: Path) -> None:
    """Point `build/assets/<name>` at an artifact, atomically."""
    ASSETS.mkdir(parents=True, exist_ok=True)
    fresh = ASSETS / f".{name}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(ASSETS / name)


@contextlib.contextmanager
def logging_to(name: str) -> Iterator[IO[str]]:
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("w") as log:
        yield log


def run_steps(
    steps: Sequence[Step], *, force: frozenset[str] = frozenset(), alongside: frozenset[str] = frozenset()
) -> None:
    """Run the steps that are not current, in order; exits with status 1 at the first that fails.

    A step that is `alongside` runs beside those after it; the last of all waits for it.
    """
    began = time.monotonic()
    did: list[str] = []

    def run(step: Step) -> None:
        if run_step(step, forced=step.name in force):
            did.append(step.name)

    with ThreadPoolExecutor(max_workers=1) as background:
        beside: list[Future[None]] = []
        for step in steps:
            if step is steps[-1]:
                wait_for(beside)
            if step.name in alongside and step is not steps[-1]:
                beside.append(background.submit(run, step))
            else:
                run(step)
    what = f"did {', '.join(did)}" if did else "everything is current"
    print(f"setup: {what} ({time.monotonic() - began:.1f} s)", flush=True)


def wait_for(beside: Sequence[Future[None]]) -> None:
    """A failure there has explained itself; here it ends the set-up (SystemExit travels through the future)."""
    for future in beside:
        future.result()


def run_step(step: Step, *, forced: bool) -> bool:
    """Whether there was anything to do."""
    stamp = STAMPS / step.name
    began = time.monotonic()
    try:
        key = step.key()
        if not forced and stamp.exists() and stamp.read_text() == key and step.is_ready():
            return False
        print(f"setup: {step.name} ...", flush=True)
        with logging_to(step.name) as log:
            job = Job(step.name, log)
            step.run(job)
        STAMPS.mkdir(parents=True, exist_ok=True)
        stamp.write_text(step.key())
    except (StepError, OSError, subprocess.SubprocessError) as error:
        stamp.unlink(missing_ok=True)
        explain(step.name, error)
        sys.exit(1)
    words = f": {job.result}" if job.result else ""
    print(f"setup: {step.name} done in {time.monotonic() - began:.1f} s{words}", flush=True)
    return True


def explain(name: str, error: Exception) -> None:
    """Which step, why, and what to do."""
    log = LOGS / f"{name}.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    tail = [line for line in lines if not line.startswith("## ")][-TAIL_LINES:]
    out = [f"setup: step `{name}` FAILED: {error}"]
    if tail:
        out += ["  the end of its log:", *(f"  | {line}" for line in tail)]
    if lines:
        out.append(f"  whole log:  {log}")
    hint = getattr(error, "hint", "") or "read the log, put it right, and run the same command again"
    out.append(f"  what to do: {hint}; steps already done are not done again")
    print("\n".join(out), file=sys.stderr, flush=True)
