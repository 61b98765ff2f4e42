# SPDX-License-Identifier: Apache-2.0
"""Step `agent`: the guest agent as a static binary, and the initramfs around it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from setup import cache, initramfs
from setup.step import ASSETS, ROOT, StepError, capture, hash_of, link_asset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from setup.step import Job

SOURCE = ROOT / "agent"
CONTRACT = ROOT / "proto" / "hyper" / "agent"
HERE = Path(__file__).resolve().parent
TARGET = "x86_64-unknown-linux-gnu"
PROGRAM = "hyper-agent"
KIND = "agent"
LARGEST_BYTES = 8 << 20
INTERPRETER_SEGMENT = 3  # PT_INTERP
NOT_SOURCE = {"target", "tests", "benches"}


class Agent:
    name = "agent"

    def key(self) -> str:
        files = sorted([*source_files(SOURCE), *CONTRACT.rglob("*.proto")])
        named = (part for path in files for part in (str(path.relative_to(ROOT)), path))
        return hash_of(Path(__file__), HERE / "initramfs.py", capture("rustc", "--version"), *named)

    def is_ready(self) -> bool:
        return (ASSETS / "initramfs.cpio").exists() and (ASSETS / PROGRAM).exists()

    def run(self, job: Job) -> None:
        place = cache.make_entry(KIND, self.key(), lambda out: build(job, out))
        for name in ("initramfs.cpio", PROGRAM):
            link_asset(name, place / name)
        job.result = f"{(place / PROGRAM).stat().st_size / 1e6:.1f} MB, {place}"


def source_files(directory: Path) -> Iterator[Path]:
    """Everything that goes into the binary: all files but tests and what building leaves."""
    for path in directory.iterdir():
        if path.is_dir():
            if path.name not in NOT_SOURCE:
                yield from source_files(path)
        elif path.suffix != ".md":
            yield path


def build(job: Job, out: Path) -> None:
    job.hint = "the log's first error counts; `rustc --version` must be 1.85 or later"
    job.say("compiling the agent")
    environment = {"CARGO_TARGET_DIR": str(target_directory()), "CARGO_TERM_COLOR": "never"}
    # Cargo tells checkouts that share a target directory apart by the age of their files alone: what another one built,
    # with a contract of its own, would pass for ours.
    job.run(
        *("cargo", "clean", "--quiet", "--release", "--locked", "--target", TARGET, "--package", PROGRAM),
        cwd=SOURCE,
        environment=environment,
        quiet=True,
    )
    told = job.run(
        *("nice", "cargo", "build", "--release", "--locked", "--target", TARGET),
        *("--bin", PROGRAM, "--message-format=json-render-diagnostics"),
        cwd=SOURCE,
        environment=environment,
        quiet=True,
    )
    shutil.copyfile(executable_in(told), out / PROGRAM)
    (out / PROGRAM).chmod(0o755)
    agent = (out / PROGRAM).read_bytes()
    require_static(agent)
    if len(agent) > LARGEST_BYTES:
        raise StepError(
            f"the agent has {len(agent)} bytes; {LARGEST_BYTES} are allowed", hint="see agent/Cargo.toml"
        )
    (out / "initramfs.cpio").write_bytes(initramfs.render_newc(initramfs.agent_entries(agent)))
    (out / "initramfs.cpio").chmod(0o644)


def target_directory() -> Path:
    """Shared by all checkouts, so that a fresh clone does not compile every crate anew."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or cache.CACHE / "target")


def executable_in(messages: str) -> Path:
    """Where cargo says that it put the program."""
    for line in messages.splitlines():
        message = json.loads(line)
        if (
            message.get("reason") == "compiler-artifact"
            and message["target"]["name"] == PROGRAM
            and message["executable"]
        ):
            return Path(message["executable"])
    raise StepError(f"cargo built no program called {PROGRAM}", hint="see [[bin]] in agent/Cargo.toml")


def require_static(program: bytes) -> None:
    """An interpreter in the ELF header means shared libraries, which the initramfs has not."""
    offset, size, count = (
        int.from_bytes(program[0x20:0x28], "little"),
        int.from_bytes(program[0x36:0x38], "little"),
        int.from_bytes(program[0x38:0x3A], "little"),
    )
    kinds = {int.from_bytes(program[offset + i * size :][:4], "little") for i in range(count)}
    if not program.startswith(b"\x7fELF") or INTERPRETER_SEGMENT in kinds:
        raise StepError(
            "the agent is not a static program", hint="agent/.cargo/config.toml sets `+crt-static`"
        )
