# SPDX-License-Identifier: Apache-2.0
"""`make install` and `make uninstall`: hyper below a prefix, without the checkout that it came from.

PREFIX/lib/hyper/N/venv      the runtime lock and the project
PREFIX/lib/hyper/N/assets    kernel, initramfs, mkfs.erofs, virtiofsd, the builder's image: copies, not links
PREFIX/lib/hyper/current     link to the N in use
PREFIX/lib/hyper/installed   what was put elsewhere, for uninstall
PREFIX/bin/{hyper,hyperd}    links into current's venv
hyperd.service               where systemd looks for units of that prefix, if systemd runs this machine

An N is made whole before `current` is moved to it, and the one before stays until the next install: a hyperd that runs
goes on with its own program, kernel and agent until it is restarted, and a failed install changes nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from setup.environment import RUNTIME_LOCK, install_project, make_venv
from setup.step import ASSETS, ROOT, Job, StepError, explain, logging_to

ASSET_NAMES = ("vmlinux", "initramfs.cpio", "hyper-agent", "mkfs.erofs", "builder.tar")
OPTIONAL_ASSETS = ("virtiofsd",)  # where Debian has none of its own
PROGRAMS = ("hyper", "hyperd")
UNIT = "hyperd.service"
STATE = (Path("/var/lib/hyper"), Path("/run/hyper"))
SOCKET = Path("/run/hyper/hyperd.sock")
# Where systemd.unit(5) looks besides /etc; a unit of another prefix goes to /etc.
UNIT_DIRECTORIES = {
    Path("/usr"): Path("/usr/lib/systemd/system"),
    Path("/usr/local"): Path("/usr/local/lib/systemd/system"),
}
COMPLETIONS = {
    "bash": "share/bash-completion/completions/hyper",
    "zsh": "share/zsh/site-functions/_hyper",
    "fish": "share/fish/vendor_completions.d/hyper.fish",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="setup.install", description="Install hyper, or undo it.")
    parser.add_argument("action", choices=("install", "uninstall"))
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    parser.add_argument(
        "--purge", action="store_true", help="uninstall: remove images, volumes and records too"
    )
    arguments = parser.parse_args()
    prefix = arguments.prefix.absolute()
    os.umask(0o022)
    if arguments.action == "uninstall":
        uninstall(prefix, purge=arguments.purge)
        return
    try:
        with logging_to("install") as log:
            install(prefix, Job("install", log))
    except (StepError, OSError, subprocess.SubprocessError) as error:
        explain("install", error)
        sys.exit(1)


def install(prefix: Path, job: Job) -> None:
    home = prefix / "lib" / "hyper"
    put_version(home, lambda place: fill_version(job, place))
    if (ROOT / "README.md").exists():
        shutil.copyfile(ROOT / "README.md", home / "README.md")
    before = recorded(home)
    outside: list[Path] = []
    (prefix / "bin").mkdir(exist_ok=True)
    for name in PROGRAMS:
        outside.append(prefix / "bin" / name)
        move_link(outside[-1], home / "current" / "venv" / "bin" / name)
    outside += write_completions(prefix)
    outside.append(write_unit(prefix))
    (home / "installed").write_text("".join(f"{path}\n" for path in outside))
    for path in set(before) - set(outside):
        path.unlink(missing_ok=True)
    print(f"install: {home}, {', '.join(str(path) for path in outside)}")
    if has_systemd():
        job.run("systemctl", "daemon-reload")
    print(f"install: {next_step()}")


def next_step() -> str:
    restart, start = "hyper daemon stop && hyper daemon start", "hyper daemon start"
    if has_systemd():
        restart, start = "systemctl restart hyperd", "systemctl enable --now hyperd"
    if is_answering():
        return f"the hyperd that runs is the one from before; containers run on through: {restart}"
    return f"start it: {start}"


def put_version(home: Path, fill: Callable[[Path], None]) -> Path:
    """Make the next version with `fill`, then make it the current one. A `fill` that fails leaves what was."""
    home.mkdir(parents=True, exist_ok=True)
    current = home / "current"
    previous = home / current.readlink() if current.is_symlink() else None
    numbers = [int(path.name) for path in home.iterdir() if path.name.isdecimal()]
    place = home / str(max(numbers, default=0) + 1)
    try:
        place.mkdir()
        fill(place)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    move_link(current, Path(place.name))
    for path in home.iterdir():
        if path.is_dir() and not path.is_symlink() and path not in (place, previous):
            shutil.rmtree(path)
    return place


def fill_version(job: Job, place: Path) -> None:
    make_venv(job, place / "venv", RUNTIME_LOCK)
    install_project(job, place / "venv", editable=False)
    copy_assets(place / "assets")


def move_link(link: Path, target: Path) -> None:
    """At no moment is there no link."""
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)


def copy_assets(assets: Path) -> None:
    assets.mkdir()
    for name in (*ASSET_NAMES, *(name for name in OPTIONAL_ASSETS if (ASSETS / name).exists())):
        source = ASSETS / name
        if not source.exists():
            raise StepError(f"{source} is not there", hint="`make setup` builds it")
        # Follows the link; keeps the mode.
        (shutil.copytree if source.is_dir() else shutil.copy)(source, assets / name)


def write_unit(prefix: Path) -> Path:
    unit = UNIT_DIRECTORIES.get(prefix, Path("/etc/systemd/system")) / UNIT
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text((ROOT / "packaging" / UNIT).read_text().replace("@PREFIX@", str(prefix)))
    return unit


def write_completions(prefix: Path) -> list[Path]:
    """Ask the command itself for its completions; one that has none for a shell gets none."""
    written = []
    for shell, place in COMPLETIONS.items():
        told = subprocess.run(
            [prefix / "bin" / "hyper", "completion", shell], capture_output=True, text=True, check=False
        )
        if told.returncode == 0 and told.stdout:
            path = prefix / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(told.stdout)
            written.append(path)
        else:
            print(f"install: no completion for {shell}: the command has none")
    return written


def uninstall(prefix: Path, *, purge: bool) -> None:
    if guests := running_guests():
        sys.exit(
            f"uninstall: {len(guests)} guest(s) of {STATE[0]} still run (process {', '.join(guests)}); "
            "without hyperd nothing would look after them. End them first: hyper rm -f $(hyper ps -aq)"
        )
    if has_systemd() and (prefix / "lib" / "hyper").exists():
        subprocess.run(["systemctl", "disable", "--now", UNIT], check=False, stderr=subprocess.DEVNULL)
    removed = remove_installed(prefix)
    if has_systemd():
        subprocess.run(["systemctl", "daemon-reload"], check=False)
    print(
        f"uninstall: removed {', '.join(map(str, removed))}"
        if removed
        else f"uninstall: nothing below {prefix}"
    )
    if purge:
        for directory in STATE:
            shutil.rmtree(directory, ignore_errors=True)
        print(f"uninstall: removed {' and '.join(map(str, STATE))} with images, volumes and records")
    elif STATE[0].exists():
        print(f"uninstall: {STATE[0]} (images, volumes, records) stays; PURGE=1 removes it")


def remove_installed(prefix: Path) -> list[Path]:
    """Remove exactly what an earlier `install` wrote down."""
    home = prefix / "lib" / "hyper"
    outside = recorded(home)
    for path in outside:
        path.unlink(missing_ok=True)
    existed = home.exists()
    shutil.rmtree(home, ignore_errors=True)
    return [*outside, *([home] if existed else [])]


def recorded(home: Path) -> list[Path]:
    record = home / "installed"
    return [Path(line) for line in record.read_text().splitlines()] if record.exists() else []


def is_answering() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(SOCKET)) == 0


def running_guests() -> list[str]:
    """Process ids of QEMUs that work below our state directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if (
            Path(os.fsdecode(words.split(b"\0")[0])).name.startswith("qemu-system")
            and str(STATE[0]).encode() in words
        ):
            found.append(process.name)
    return found


def has_systemd() -> bool:
    """sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


if __name__ == "__main__":
    main()
