# SPDX-License-Identifier: Apache-2.0
"""Saved virtual machines: templates, snapshots of sandboxes, hibernated sandboxes."""

import enum
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NewType

SnapshotId = NewType("SnapshotId", str)  # 64 hexadecimal digits


class SnapshotKind(enum.StrEnum):
    TEMPLATE = "template"  # booted, nothing in it; RAM as a file that clones map
    SANDBOX = "sandbox"  # of a running sandbox: memory and disk
    HIBERNATION = "hibernation"  # a sandbox's own, until it wakes


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What must be equal where a saved VM is restored. Every field is compared, and named when it differs."""

    qemu_version: str
    machine: str
    cpu_model: str
    accelerator: str
    kernel_sha256: str
    initramfs_sha256: str  # the agent's
    cmdline: str
    vcpus: int
    memory_mib: int
    layout: str  # the devices, in order: "disk:image,disk:writable,nic" and what else changes them
    format: int = 1  # of the files and of this manifest


@dataclass(frozen=True, slots=True)
class SavedFile:
    """One file of a snapshot. The digest is ``hyperd.snapshot.digest``'s: a hole and zeros are the same to it."""

    name: str  # "state", "ram", "disk"
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    snapshot_id: SnapshotId
    name: str  # unique among its kind; "" for none
    kind: SnapshotKind
    created_at: datetime
    compatibility: Compatibility
    files: tuple[SavedFile, ...]
    source: dict[str, str] = field(default_factory=dict)  # the service's own, opaque to the store


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole snapshot on this host."""

    manifest: Manifest
    directory: Path
    allocated_bytes: int
    last_used_at: datetime

    def path(self, name: str) -> Path:
        return self.directory / name
