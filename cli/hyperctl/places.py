# SPDX-License-Identifier: Apache-2.0
"""Docker's rules for what `cp` means by a path (docker/cli container/cp.go, moby/go-archive copy.go); no I/O."""

import os
import posixpath
from dataclasses import dataclass

from hyperctl.errors import CONFLICT, NOT_FOUND, CliError

STANDARD = "-"


@dataclass(frozen=True, slots=True)
class Place:
    container: str  # "" = this host
    path: str

    def __str__(self) -> str:
        return f"{self.container}:{self.path}" if self.container else self.path


@dataclass(frozen=True, slots=True)
class Target:
    """What is where something is to be copied to."""

    path: str
    exists: bool
    is_directory: bool


def parse_place(text: str) -> Place:
    """CONTAINER:PATH. `/a:b` and `./a:b` are paths of this host."""
    container, colon, path = text.partition(":")
    if text.startswith("/") or not colon or container.startswith("."):
        return Place("", text)
    return Place(container, path or "/")


def means_directory(path: str) -> bool:
    return path.endswith(("/", "/.")) or path in {".", ".."}


def means_content(path: str) -> bool:
    """`dir/.`: what is in it, not itself."""
    return posixpath.basename(path) == "."


def clean(path: str) -> str:
    """Without `//`, `/.` and a slash at its end; `..` is left to whoever knows the links."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    return ("/" if path.startswith("/") else "") + "/".join(parts) or "."


def split(path: str) -> tuple[str, str]:
    """A path's directory and last part, which is "." for `dir/.` and `/`."""
    cleaned = clean(path)
    if means_content(path) or cleaned in {"/", "."} or cleaned.endswith(".."):
        return cleaned, "."
    return posixpath.dirname(cleaned) or ".", posixpath.basename(cleaned)


def settle(source: str, *, source_is_directory: bool, target: Target) -> tuple[str, str]:
    """The directory to unpack into, and what the top entry is called there ("." = its content goes in).

    Raises CliError where Docker does.
    """
    name = split(source)[1]
    if target.exists and target.is_directory:
        return clean(target.path), name
    if target.exists and source_is_directory:
        raise CliError("cannot copy a directory onto a file", subject=target.path, exit_status=CONFLICT)
    if not target.exists and not source_is_directory and means_directory(target.path):
        raise CliError("no such directory", subject=target.path, exit_status=NOT_FOUND)
    return split(target.path)


def join_link(path: str, link: str) -> str:
    """Where a symbolic link at ``path`` points to."""
    return link if link.startswith("/") else posixpath.join(posixpath.dirname(clean(path)), link)


def to_bytes(path: str) -> bytes:
    return os.fsencode(path)
