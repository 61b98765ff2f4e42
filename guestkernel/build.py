#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the guest kernel: a source tarball and the fragment `config` become a stripped PVH `vmlinux`.

`make allnoconfig` with the fragment as its answers, so that nothing is in the kernel that the fragment does not ask
for or imply. Every option that the fragment sets is compared with what Kconfig made of it before anything is
compiled: a misspelt option, or one whose dependency is missing, fails the build by name.

    build.py --tarball linux-source-6.12.tar.xz --work DIR --out DIR     what `make setup` does
    build.py --tarball ... --work DIR --check                            only the comparison, some 20 s
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FRAGMENT = HERE / "config"
OPTION = re.compile(r"(CONFIG_\w+)=(.*)")
PVH_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY
NOTE_SEGMENT = 4  # PT_NOTE


class BuildError(Exception):
    """The kernel cannot be built as asked; the message is for a person."""


def parse_options(text: str) -> dict[str, str]:
    """Options set in a fragment or a `.config`; `n` and "not set" are the same and left out of a `.config`."""
    options: dict[str, str] = {}
    for line in text.splitlines():
        if found := OPTION.fullmatch(line.strip()):
            name, value = found.groups()
            if name in options:
                raise BuildError(f"{name} is set twice in {FRAGMENT}")
            options[name] = value
        elif line.strip() and not line.lstrip().startswith("#"):
            raise BuildError(f"not an option and not a comment: {line!r}")
    return options


def refused_options(wanted: dict[str, str], had: dict[str, str]) -> list[str]:
    """One line for each option that Kconfig did not take as asked."""
    return [
        f"{name}: asked for {value}, got {had.get(name, 'n')}"
        for name, value in wanted.items()
        if had.get(name, "n") != value
    ]


def unpack(tarball: Path, work: Path) -> Path:
    """The source tree, unpacked once per tarball."""
    source = work / tarball.name.removesuffix(".tar.xz")
    mark = source / ".unpacked"
    if not mark.exists():
        shutil.rmtree(source, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-xJf", str(tarball), "-C", str(work)], check=True)
        mark.touch()
    return source


def build_environment(tarball: Path) -> dict[str, str]:
    """The same bytes for the same source and compiler: no user, host or time of day in the kernel's banner."""
    stamp = dt.datetime.fromtimestamp(tarball.stat().st_mtime, tz=dt.UTC)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("KBUILD_", "MAKE"))
    }
    return environment | {
        "KBUILD_BUILD_USER": "hyper",
        "KBUILD_BUILD_HOST": "hyper",
        "KBUILD_BUILD_TIMESTAMP": stamp.strftime("%a %b %e %H:%M:%S UTC %Y"),
        "LC_ALL": "C",
    }


def configure(source: Path, environment: dict[str, str]) -> None:
    """Write `.config` and compare it with the fragment."""
    wanted = parse_options(FRAGMENT.read_text())
    (source / ".config").unlink(missing_ok=True)
    for target in (["allnoconfig", f"KCONFIG_ALLCONFIG={FRAGMENT}"], ["olddefconfig"]):
        subprocess.run(["make", "-s", *target], cwd=source, env=environment, check=True)
    if refused := refused_options(wanted, parse_options((source / ".config").read_text())):
        lines = "\n  ".join(refused)
        raise BuildError(
            f"{len(refused)} option(s) of {FRAGMENT} did not take:\n  {lines}\n"
            "Look for the option's name and its `depends on` in the source's Kconfig files."
        )


def require_pvh(vmlinux: Path) -> None:
    """QEMU boots a vmlinux directly only if it carries the PVH note; without it the error comes much later."""
    data = vmlinux.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise BuildError(f"{vmlinux} is not a 64-bit ELF file")
    offset, size, count = (
        int.from_bytes(data[0x20:0x28], "little"),
        int.from_bytes(data[0x36:0x38], "little"),
        int.from_bytes(data[0x38:0x3A], "little"),
    )
    for header in (data[offset + i * size :][:size] for i in range(count)):
        if int.from_bytes(header[:4], "little") == NOTE_SEGMENT:
            start, length = int.from_bytes(header[8:16], "little"), int.from_bytes(header[32:40], "little")
            if PVH_ENTRY in note_types(data[start : start + length]):
                return
    raise BuildError(f"{vmlinux} has no PVH entry note: CONFIG_PVH is not in effect")


def note_types(notes: bytes) -> set[int]:
    """Types of the notes that the name "Xen" owns."""
    types, at = set(), 0
    while at + 12 <= len(notes):
        name_size, value_size, kind = (
            int.from_bytes(notes[at + i : at + i + 4], "little") for i in (0, 4, 8)
        )
        if notes[at + 12 : at + 12 + name_size].rstrip(b"\0") == b"Xen":
            types.add(kind)
        at += 12 + (name_size + 3) // 4 * 4 + (value_size + 3) // 4 * 4
    return types


def compile_kernel(source: Path, out: Path, environment: dict[str, str], jobs: int) -> None:
    """Compile and strip into `out/vmlinux`, with the final configuration beside it."""
    subprocess.run(["make", "-s", f"-j{jobs}", "vmlinux"], cwd=source, env=environment, check=True)
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["strip", "-s", "-o", str(out / "vmlinux"), str(source / "vmlinux")], check=True)
    (out / "vmlinux").chmod(0o644)
    require_pvh(out / "vmlinux")
    shutil.copyfile(source / ".config", out / "config")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--tarball", type=Path, required=True, help="linux-source-*.tar.xz, as Debian packs it"
    )
    parser.add_argument("--work", type=Path, required=True, help="where to unpack and compile (some 2 GB)")
    parser.add_argument("--out", type=Path, help="where vmlinux, config and build.json go")
    parser.add_argument("--check", action="store_true", help="stop after comparing the configuration")
    parser.add_argument("--jobs", type=int, default=(os.cpu_count() or 1) + 1)
    arguments = parser.parse_args()
    if not arguments.check and not arguments.out:
        parser.error("--out is needed unless --check is given")
    began = time.monotonic()
    environment = build_environment(arguments.tarball)
    try:
        source = unpack(arguments.tarball, arguments.work)
        configure(source, environment)
        if arguments.check:
            return
        compile_kernel(source, arguments.out, environment, arguments.jobs)
    except BuildError as error:
        sys.exit(f"guest kernel: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"guest kernel: `{' '.join(error.cmd)}` failed with status {error.returncode}")
    vmlinux = arguments.out / "vmlinux"
    facts = {"seconds": round(time.monotonic() - began, 1), "size_bytes": vmlinux.stat().st_size}
    (arguments.out / "build.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{vmlinux}: {facts['size_bytes'] / 1e6:.1f} MB in {facts['seconds']:.0f} s")


if __name__ == "__main__":
    main()
