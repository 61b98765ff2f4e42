# SPDX-License-Identifier: Apache-2.0
"""Directories and files of the host that a guest sees as such."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids from ``host`` on are those from ``guest`` on in the container."""

    host: int
    guest: int
    count: int


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """What is to be shared, as asked for."""

    tag: str  # by which the guest finds it
    source: str  # absolute
    readonly: bool = False
    create_source: bool = False  # a missing one becomes a directory
    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()
    ours: bool = False  # a volume: below hyperd's own directory


@dataclass(frozen=True, slots=True)
class BrokenShare:
    """Whoever served it has ended."""

    tag: str
    evidence: str  # what it complained of


@dataclass(frozen=True, slots=True)
class Share:
    """What is shared, as it was found."""

    request: ShareRequest
    path: Path  # with no link in it
    is_file: bool

    @property
    def entry(self) -> str:
        """Of what the guest mounts: the file's name there; "" when it is a directory itself."""
        return FILE_ENTRY if self.is_file else ""


FILE_ENTRY = "file"
