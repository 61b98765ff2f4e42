# SPDX-License-Identifier: Apache-2.0
"""Artifacts that are expensive to build, in `/var/cache/hyper/<kind>/<hash>/` for every checkout on the machine.

The directories can be entered by everybody, because QEMU runs as an unprivileged user and must read kernel and
initramfs. Publishing is atomic: an entry is built beside its place and renamed into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CACHE = Path(os.environ.get("HYPER_CACHE", "/var/cache/hyper"))


def entry(kind: str, key: str) -> Path:
    return CACHE / kind / key


def make_entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The entry's directory; calls `build` with an empty directory to fill if the entry is not there yet."""
    place = entry(kind, key)
    with locked(kind):
        if place.is_dir():
            return place
        fresh = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=place.parent))
        try:
            build(fresh)
            fresh.chmod(0o755)
            fresh.replace(place)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return place


def set_alias(kind: str, alias: str, key: str) -> None:
    """Let an entry be found by a second name, where its key is not known beforehand."""
    fresh = CACHE / kind / f".{alias}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(key)
    fresh.replace(CACHE / kind / alias)


@contextlib.contextmanager
def locked(kind: str) -> Iterator[None]:
    """One builder a kind at a time on this machine: a second checkout waits and then finds the work done."""
    (CACHE / kind).mkdir(parents=True, exist_ok=True)
    for directory in (CACHE, CACHE / kind):
        directory.chmod(0o755)
    with (CACHE / kind / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
