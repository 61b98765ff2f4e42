# SPDX-License-Identifier: Apache-2.0
"""What a snapshot's manifest says of the sandbox that it is of: all that clones are made from. Pure.

A manifest may come from another host (import): it is read as strictly as a record.
"""

import json
import re
from dataclasses import dataclass

from hyperd.errors import HyperError, RestoreError
from hyperd.model.container import ContainerRecord, ContainerSpec, Sizing
from hyperd.model.guest import ContainerId
from hyperd.model.image import ImageId
from hyperd.model.snapshot import Manifest, Snapshot, SnapshotId
from hyperd.model.vm import SandboxId
from hyperd.sandbox import identity, specification
from hyperd.sandbox.records import dumps, loads

DISK = "disk"  # the name of the writable disk's copy
_ID = re.compile(r"[0-9a-f]{64}")
_DIGITS = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class Source:
    sandbox_id: SandboxId
    name: str
    spec: ContainerSpec
    image_id: ImageId
    command: tuple[str, ...]
    sizing: Sizing
    container_id: ContainerId  # in the guest
    output_offset: int = 0  # up to here the source's log had the first process's output
    execs: int = 0  # further processes in it
    pause_ms: int = 0  # from its freezing to its thaw
    stopped_ms: int = 0  # of these the VM's CPUs stood still
    passing: bool = False  # of a fork: it goes when the clones are there

    def render(self) -> dict[str, str]:
        return {
            "container_id": self.sandbox_id,
            "name": self.name,
            "spec": dumps(self.spec),
            "image": self.spec.image,
            "image_id": self.image_id,
            "command": json.dumps(self.command),
            "vcpus": str(self.sizing.vcpus),
            "memory_mib": str(self.sizing.memory_mib),
            "guest_container_id": self.container_id,
            "output_offset": str(self.output_offset),
            "execs": str(self.execs),
            "network": "no" if self.spec.network == "none" else "yes",
            "pause_ms": str(self.pause_ms),
            "stopped_ms": str(self.stopped_ms),
            "passing": "yes" if self.passing else "no",
        }


def source_of(record: ContainerRecord) -> Source:
    return Source(
        sandbox_id=record.sandbox_id,
        name=record.name,
        spec=record.spec,
        image_id=record.image_id,
        command=record.command,
        sizing=record.sizing,
        container_id=identity.container_id_of(record),
    )


def parse_source(manifest: Manifest) -> Source:
    """Raises RestoreError for what no sandbox can be made from."""
    given = manifest.source
    try:
        source = Source(
            sandbox_id=SandboxId(given["container_id"]),
            name=given["name"],
            spec=loads(ContainerSpec, given["spec"]),
            image_id=ImageId(given["image_id"]),
            command=tuple(str(word) for word in json.loads(given["command"])),
            sizing=Sizing(_number(given["vcpus"]), _number(given["memory_mib"])),
            container_id=ContainerId(given["guest_container_id"]),
            output_offset=_number(given["output_offset"], 1 << 63),
            execs=_number(given["execs"]),
            pause_ms=_number(given["pause_ms"]),
            stopped_ms=_number(given["stopped_ms"]),
            passing={"yes": True, "no": False}[given["passing"]],
        )
        specification.require_valid(source.spec)
    except (KeyError, ValueError, TypeError, AttributeError, HyperError) as error:
        raise _not_restorable(manifest.snapshot_id, repr(error)) from error
    for text in (source.sandbox_id, source.container_id):
        if not _ID.fullmatch(text):
            raise _not_restorable(manifest.snapshot_id, f"{text[:80]!r} is not an id")
    saved = manifest.compatibility
    if (source.sizing.vcpus, source.sizing.memory_mib) != (saved.vcpus, saved.memory_mib):
        raise _not_restorable(manifest.snapshot_id, "it is of another size than it says")
    return source


def title_of(snapshot: Snapshot) -> str:
    """For people."""
    return f"snapshot {snapshot.manifest.name or snapshot.manifest.snapshot_id[:12]}"


def _number(text: str, limit: int = 1 << 32) -> int:
    """In decimal digits and nothing else, and below ``limit``: by default what a message of the API has room for."""
    if not _DIGITS.fullmatch(text) or int(text) >= limit:
        raise ValueError(f"{text[:80]!r} is not a number below {limit}")
    return int(text)


def _not_restorable(snapshot_id: SnapshotId, evidence: str) -> RestoreError:
    return RestoreError(
        "does not say what it is of", subject=f"snapshot {snapshot_id[:12]}", evidence=evidence
    )
