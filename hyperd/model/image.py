# SPDX-License-Identifier: Apache-2.0
"""OCI images as the store knows them."""

import enum
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NewType

ImageId = NewType("ImageId", str)  # sha256:... of the config blob
Digest = NewType("Digest", str)  # algorithm:hex


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of an OCI image config that a runtime acts on (image-spec config.md)."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck_json: str = ""  # as it is in the config; hyper does not run it


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    created_at: datetime | None
    created_by: str
    comment: str
    empty_layer: bool


@dataclass(frozen=True, slots=True)
class Requirement:
    """Of a signature policy (containers-policy.json(5))."""

    kind: str  # insecureAcceptAnything, signedBy, sigstoreSigned
    keys: tuple[str, ...] = ()  # FILE sha256:HEX
    identity: str = ""  # how the signed name was compared; "" = by the kind's default


@dataclass(frozen=True, slots=True)
class Admission:
    """Under which part of the host's signature policy an image came here, all of whose requirements it met."""

    reference: str  # as it was asked for
    manifest_digest: Digest  # that was held against it
    scope: str  # the policy's key that decided: docker:HOST/NAME, default
    requirements: tuple[Requirement, ...]
    admitted_at: datetime


@dataclass(frozen=True, slots=True)
class Image:
    image_id: ImageId
    tags: tuple[str, ...]  # full names: docker.io/library/alpine:latest
    digests: tuple[str, ...]  # name@sha256:...
    manifest_digest: Digest
    diff_ids: tuple[Digest, ...]  # lowest first
    platform: Platform
    config: ImageConfig
    created_at: datetime | None
    size_bytes: int  # of the uncompressed layers
    stored_bytes: int  # of their EROFS files
    author: str = ""
    history: tuple[HistoryEntry, ...] = ()
    layer_bytes: tuple[int, ...] = ()  # of each layer uncompressed, lowest first
    admissions: tuple[Admission, ...] = ()  # none of an image that was made here


@dataclass(frozen=True, slots=True)
class RootDisk:
    """All layers of an image as one read-only disk: partition 1..layers, lowest first."""

    path: Path  # VMDK descriptor
    layers: int


class LayerPhase(enum.StrEnum):
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    CONVERTING = "converting"
    DONE = "done"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class LayerProgress:
    digest: Digest  # of the compressed blob
    phase: LayerPhase
    done_bytes: int = 0
    total_bytes: int = 0  # 0: unknown


@dataclass(frozen=True, slots=True)
class PullNotice:
    text: str


@dataclass(frozen=True, slots=True)
class Removal:
    untagged: tuple[str, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """A caller's, for the registry of one reference."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)  # instead of both


class PushPhase(enum.StrEnum):
    WAITING = "waiting"
    UPLOADING = "uploading"
    DONE = "done"
    EXISTS = "exists"
    MOUNTED = "mounted"  # from another repository of that registry


@dataclass(frozen=True, slots=True)
class PushProgress:
    digest: Digest
    phase: PushPhase
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PushedTag:
    reference: str
    manifest_digest: Digest
    manifest_bytes: int


@dataclass(frozen=True, slots=True)
class LoadedImage:
    image: Image
    tags: tuple[str, ...]  # those that the archive gave it


@dataclass(frozen=True, slots=True)
class NewImage:
    """What a commit or an import gives an image beside its layer."""

    reference: str = ""  # "" = no tag
    author: str = ""
    message: str = ""
    changes: tuple[str, ...] = ()  # Dockerfile instructions: CMD ["sh"]
    created_by: str = ""  # for the history
    platform: Platform | None = None  # of an import; None = the host's
    # A container's in the place of the base's: all but ports, volumes, health check. ``changes`` come after.
    overrides: ImageConfig | None = None


@dataclass(frozen=True, slots=True)
class FoundImage:
    """By a search in a registry."""

    name: str
    description: str = ""
    stars: int = 0
    is_official: bool = False
    is_automated: bool = False


@dataclass(frozen=True, slots=True)
class Pruning:
    untagged: tuple[str, ...]
    deleted: tuple[str, ...]
    reclaimed_bytes: int


@dataclass(frozen=True, slots=True)
class RawManifest:
    content: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """Bytes are allocated blocks."""

    image_id: ImageId
    tags: tuple[str, ...]
    shared_bytes: int  # with other images
    unique_bytes: int


@dataclass(frozen=True, slots=True)
class BudgetUsage:
    high_bytes: int = 0  # there is no budget
    low_bytes: int = 0
    removed: int = 0  # images, since the daemon started
    removed_bytes: int = 0


NO_BUDGET = BudgetUsage()


@dataclass(frozen=True, slots=True)
class StoreUsage:
    images: tuple[ImageUsage, ...]
    layers_bytes: int  # blobs, EROFS files, disks: each once
    unowned_bytes: int  # left by broken pulls, to be continued
    budget: BudgetUsage = NO_BUDGET
