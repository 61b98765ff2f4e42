# SPDX-License-Identifier: Apache-2.0
"""What a container mounts: as asked for, from its image, from other containers. Pure.

What was asked for wins over what comes from others, and that over the image's own volumes (moby daemon/volumes.go).
"""

import posixpath
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.container import ContainerRecord, ContainerSpec
from hyperd.model.guest import GuestMount
from hyperd.model.vm import Disk, DiskFormat
from hyperd.model.volume import Mount, MountType, Volume, VolumeName, VolumeRequest
from hyperd.storage.base import DATA_DIRECTORY

MAX_VOLUMES = 16  # each is a disk on the VM's one PCI bus


@dataclass(frozen=True, slots=True)
class Sharing:
    """Another container's mounts, of --volumes-from."""

    mounts: tuple[Mount, ...]
    readonly: bool | None  # None: as that container has them


def parse_volumes_from(text: str) -> tuple[str, bool | None]:
    """CONTAINER[:ro|:rw]. Raises InvalidError."""
    reference, colon, mode = text.partition(":")
    if not reference or (colon and mode not in ("ro", "rw")):
        raise InvalidError("is not CONTAINER[:ro|:rw]", subject=f"--volumes-from {text!r}"[:200])
    return reference, None if not colon else mode == "ro"


def resolve(
    spec: ContainerSpec, image_volumes: Sequence[str], shared: Sequence[Sharing]
) -> tuple[ContainerSpec, list[str]]:
    """The spec with all that it mounts, every volume named; and warnings. Raises InvalidError, UnsupportedError."""
    tmpfs = {_normal(destination): options for destination, options in spec.tmpfs.items()}
    taken = set(tmpfs)
    chosen: dict[str, Mount] = {}
    for mount in spec.mounts:
        asked = replace(mount, destination=_require_destination(mount.destination))
        if asked.destination in taken:
            raise InvalidError("is mounted twice", subject=asked.destination)
        taken.add(asked.destination)
        _require_sound(asked)
        if asked.type is MountType.TMPFS:
            tmpfs[asked.destination] = _tmpfs_options(asked)
        else:
            chosen[asked.destination] = asked
    for sharing in shared:
        for mount in sharing.mounts:
            if mount.destination not in taken:
                readonly = mount.readonly if sharing.readonly is None else sharing.readonly
                chosen[mount.destination] = replace(mount, readonly=readonly)
    warnings = []
    for text in image_volumes:
        destination = posixpath.normpath(f"/{text}").replace("//", "/")
        if destination == "/" or "\0" in destination:
            warnings.append(f"the image's volume {text!r} cannot be mounted and is left out")
        elif destination not in taken and destination not in chosen:
            chosen[destination] = Mount(MountType.VOLUME, destination)
    mounts = tuple(_named(mount) for mount in chosen.values())
    if len(uses_of(mounts)) > MAX_VOLUMES:
        raise InvalidError(f"{len(uses_of(mounts))} volumes are more than {MAX_VOLUMES}")
    return replace(spec, mounts=mounts, tmpfs=tmpfs), warnings


def requests_of(mounts: Sequence[Mount]) -> list[VolumeRequest]:
    """What to make of them where there is no volume of that name yet."""
    requests: dict[str, VolumeRequest] = {}
    for mount in mounts:
        if mount.type is MountType.VOLUME and mount.source not in requests:
            requests[mount.source] = VolumeRequest(
                VolumeName(mount.source),
                mount.size_bytes,
                driver=mount.driver,
                labels=mount.labels,
                anonymous=mount.anonymous,
            )
    return list(requests.values())


def uses_of(mounts: Sequence[Mount]) -> dict[VolumeName, bool]:
    """Volume -> whether it is only read, in the order of their disks."""
    uses: dict[VolumeName, bool] = {}
    for mount in mounts:
        if mount.type is MountType.VOLUME:
            name = VolumeName(mount.source)
            uses[name] = uses.get(name, True) and mount.readonly
    return uses


def serials_of(mounts: Sequence[Mount]) -> dict[VolumeName, str]:
    """The same for the same container, always."""
    return {name: f"volume{number}" for number, name in enumerate(uses_of(mounts))}


def disks_of(record: ContainerRecord, volumes: dict[VolumeName, Volume]) -> tuple[Disk, ...]:
    serials, uses = serials_of(record.spec.mounts), uses_of(record.spec.mounts)
    return tuple(
        Disk(
            serials[name], volumes[name].path, DiskFormat.RAW, readonly=readonly, export=volumes[name].export
        )
        for name, readonly in uses.items()
    )


def guest_mounts(mounts: Sequence[Mount]) -> tuple[GuestMount, ...]:
    serials = serials_of(mounts)
    return tuple(
        GuestMount(
            mount.destination,
            "block:ext4",
            source=serials[VolumeName(mount.source)],
            options=("ro",) if mount.readonly else (),
            subdirectory=DATA_DIRECTORY,
            copy_image=not (mount.no_copy or mount.readonly),
        )
        for mount in mounts
        if mount.type is MountType.VOLUME
    )


def anonymous_of(record: ContainerRecord) -> list[VolumeName]:
    return [VolumeName(mount.source) for mount in record.spec.mounts if mount.anonymous]


def require_none(record: ContainerRecord, what: str) -> None:
    """Of what would have to hold or copy them. Raises UnsupportedError."""
    names = [mount.source for mount in record.spec.mounts]
    if names:
        raise UnsupportedError(
            f"has volumes, and {what} does not hold them",
            subject=f"container {record.name}",
            evidence=", ".join(f"{mount.source[:12]} at {mount.destination}" for mount in record.spec.mounts),
            hint="a clone must not share a volume that is written to: use a container without volumes",
        )


def require_outside(record: ContainerRecord, path: bytes) -> None:
    """What reads and writes a container's own files does not see its volumes: it would meet what lies beneath.

    By the path's words: a link of the guest's that leads into a volume leads to what is beneath it. Raises
    UnsupportedError.
    """
    normal = posixpath.normpath(path).replace(b"//", b"/")
    for mount in record.spec.mounts:
        destination = mount.destination.encode()
        if normal == destination or normal.startswith(destination + b"/"):
            raise UnsupportedError(
                f"lies in the volume at {mount.destination}",
                subject=path.decode(errors="replace")[:200],
                hint=f"`hyper exec -i {record.name} tar ...` while it runs, in either direction",
            )


def _named(mount: Mount) -> Mount:
    if mount.type is not MountType.VOLUME or mount.source:
        return mount
    return replace(mount, source=secrets.token_hex(32), anonymous=True)


def _require_sound(mount: Mount) -> None:
    if mount.type is MountType.BIND:
        raise UnsupportedError(
            "directories of the host cannot be mounted yet",
            subject=mount.source,
            hint="use a volume, and fill it by `hyper exec -i NAME tar x`; `hyper cp` for files that need none",
        )
    if mount.type is MountType.TMPFS and (mount.source or mount.no_copy):
        raise InvalidError("a tmpfs has no source and nothing to copy", subject=mount.destination)
    if mount.type is MountType.VOLUME and mount.mode:
        raise InvalidError("a volume has no mode", subject=mount.destination)


def _require_destination(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise InvalidError("is not an absolute path", subject=f"mount destination {text!r}"[:200])
    if ".." in text.split("/"):
        raise InvalidError("has `..` in it", subject=f"mount destination {text!r}"[:200])
    destination = _normal(text)
    if destination == "/":
        raise InvalidError("is the container's root", subject=f"mount destination {text!r}"[:200])
    if destination == "/dev" or destination.split("/")[1] in {"proc", "sys"}:
        raise InvalidError("is the kernel's", subject=f"mount destination {text!r}"[:200])
    return destination


def _normal(path: str) -> str:
    return posixpath.normpath(path).replace("//", "/")


def _tmpfs_options(mount: Mount) -> str:
    options = ["ro"] if mount.readonly else []
    options += [f"size={mount.size_bytes}"] if mount.size_bytes else []
    options += [f"mode={mount.mode:o}"] if mount.mode else []
    return ",".join(options)
