# SPDX-License-Identifier: Apache-2.0
"""Volumes, and what a container mounts."""

import enum
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NewType

from hyperd.model.share import IdRange
from hyperd.model.vm import NbdExport, SandboxId

VolumeName = NewType("VolumeName", str)

LOCAL = "local"
EXT4, XFS = "ext4", "xfs"
SHARED = "virtiofs"  # the file system of a volume that is a directory of the host's, for many to write to
NBD, ISCSI, RBD = "nbd", "iscsi", "rbd"  # a disk that a server on the network has


class MountType(enum.StrEnum):
    VOLUME = "volume"
    BIND = "bind"
    TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True)
class Mount:
    """What is mounted at ``destination``. Of a container that exists every volume has its name."""

    type: MountType
    destination: str  # absolute, normal
    source: str = ""  # volume: its name, "" = a new one; bind: absolute path on the host
    readonly: bool = False
    no_copy: bool = False  # volume: not filled with what the image has there
    create_source: bool = False  # bind: a missing source becomes a directory
    size_bytes: int = 0  # tmpfs; a volume that is made for it: 0 = default
    mode: int = 0  # tmpfs: permission bits, 0 = 1777
    labels: dict[str, str] = field(default_factory=dict)  # of a volume that is made for it
    driver: str = ""
    anonymous: bool = False  # the volume was made for this container and has no name of its user's
    uids: tuple[IdRange, ...] = ()  # bind: ids that are others in the container
    gids: tuple[IdRange, ...] = ()
    options: dict[str, str] = field(default_factory=dict)  # of the driver of a volume that is made for it


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """A volume as asked for; empty means the default."""

    name: VolumeName
    size_bytes: int = 0
    filesystem: str = ""
    driver: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    anonymous: bool = False
    snapshot: str = ""  # name or id of the one that it begins as


@dataclass(frozen=True, slots=True)
class Volume:
    name: VolumeName
    size_bytes: int  # of the disk, as the guest sees it
    filesystem: str
    labels: dict[str, str]
    anonymous: bool
    created_at: datetime
    path: Path  # of its file; of its directory when it is shared
    driver: str = LOCAL
    export: NbdExport | None = None  # instead of what is at ``path``: what its VM connects to
    server: str = ""  # whose disk it is, where it is no file of ours

    @property
    def is_shared(self) -> bool:
        return self.filesystem == SHARED


@dataclass(frozen=True, slots=True)
class VolumeUser:
    """A container that has it, running or not."""

    sandbox_id: SandboxId
    name: str
    readonly: bool
    attached: bool
    lent: bool = False  # it is no container: a VM that fills the volume


@dataclass(frozen=True, slots=True)
class VolumeView:
    """A volume as shown to the outside at one moment."""

    volume: Volume
    allocated_bytes: int
    users: tuple[VolumeUser, ...]


@dataclass(frozen=True, slots=True)
class BrokenVolume:
    """Whoever spoke to its server for a VM has ended."""

    name: VolumeName
    evidence: str  # what it complained of


VolumeSnapshotId = NewType("VolumeSnapshotId", str)  # 64 hexadecimal digits


class Consistency(enum.StrEnum):
    """What a copy of a volume's disk is worth."""

    DETACHED = "detached"  # no VM had it
    FROZEN = "frozen"  # its file system was whole on the disk, and the guest's writers waited
    CRASH = "crash"  # as after a power cut at that moment: the journal is to be played


@dataclass(frozen=True, slots=True)
class VolumeSnapshot:
    snapshot_id: VolumeSnapshotId
    name: str
    volume: VolumeName
    size_bytes: int
    filesystem: str
    consistency: Consistency
    created_at: datetime
    path: Path
    allocated_bytes: int = 0
