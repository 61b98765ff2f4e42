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
from hyperd.model.share import IdRange
from hyperd.model.volume import Mount, MountType, VolumeName
from hyperd.sandbox.mount_sources import bind_requests, uses_of

MAX_DEVICES = 16  # volumes and shares: each has a place on the VM's one PCI bus
MAX_ID = 0xFFFF_FFFE  # -1 is nobody's


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
    devices = len(uses_of(mounts)) + len(bind_requests(mounts))
    if devices > MAX_DEVICES:
        raise InvalidError(f"{devices} volumes and directories of the host are more than {MAX_DEVICES}")
    return replace(spec, mounts=mounts, tmpfs=tmpfs), warnings


def anonymous_of(record: ContainerRecord) -> list[VolumeName]:
    return [VolumeName(mount.source) for mount in record.spec.mounts if mount.anonymous]


def require_none(record: ContainerRecord, what: str) -> None:
    """Of what would have to hold or copy them. Raises UnsupportedError."""
    found = record.spec.mounts
    if not found:
        return
    binds = [mount for mount in found if mount.type is MountType.BIND]
    kind = "volumes" if not binds else "directories of the host" if len(binds) == len(found) else "mounts"
    raise UnsupportedError(
        f"has {kind}, and {what} does not hold them",
        subject=f"container {record.name}",
        evidence=", ".join(f"{_short(mount)} at {mount.destination}" for mount in found),
        hint=f"a clone must not share what is written to: use a container without {kind}",
    )


def find_at(record: ContainerRecord, path: bytes) -> tuple[Mount, bytes] | None:
    """In which of its mounts a path lies, the innermost, and the path within; None: in its own file system.

    By the path's words: a link of the guest's that leads into a volume leads to what is beneath it.
    """
    normal = _normal_bytes(path)
    found: tuple[Mount, bytes] | None = None
    for mount in record.spec.mounts:
        destination = mount.destination.encode()
        if _is_in(normal, destination):
            slash = b"/" if path.endswith((b"/", b"/.")) else b""  # it is to be a directory
            inner = normal[len(destination) :] + slash or b"/"
            if found is None or len(destination) > len(found[0].destination.encode()):
                found = mount, inner
    return found


def require_lasting(record: ContainerRecord, path: bytes, found: tuple[Mount, bytes] | None) -> None:
    """Of a container that does not run, with what ``find_at`` found. Raises UnsupportedError: a tmpfs is over it."""
    deepest = found[0].destination if found is not None else ""
    over = [where for where in record.spec.tmpfs if _is_in(_normal_bytes(path), where.encode())]
    if over and len(max(over, key=len)) > len(deepest):
        raise UnsupportedError(
            f"lies in the tmpfs at {max(over, key=len)}, which is there while it runs, and gone with that",
            subject=path.decode(errors="replace")[:200],
            hint=f"`hyper start {record.name}` first",
        )


def _normal_bytes(path: bytes) -> bytes:
    return posixpath.normpath(path).replace(b"//", b"/")


def _is_in(normal: bytes, destination: bytes) -> bool:
    return normal == destination or normal.startswith(destination.rstrip(b"/") + b"/")


def require_disk(record: ContainerRecord, mount: Mount, path: bytes, *, is_disk: bool) -> None:
    """Of a container that does not run. Raises UnsupportedError: there is no disk to look at."""
    if not is_disk:
        raise UnsupportedError(
            f"lies in the {_word(mount)} at {mount.destination}, which is there while it runs",
            subject=path.decode(errors="replace")[:200],
            hint=f"`hyper start {record.name}`, or look at it on the host: {_on_host(mount)}",
        )


def _on_host(mount: Mount) -> str:
    if mount.type is MountType.BIND:
        return mount.source
    return f"`hyper volume inspect -f '{{{{.Mountpoint}}}}' {mount.source}`"


def _short(mount: Mount) -> str:
    return mount.source if mount.type is MountType.BIND else mount.source[:12]


def _word(mount: Mount) -> str:
    return "directory of the host" if mount.type is MountType.BIND else "volume"


def _named(mount: Mount) -> Mount:
    if mount.type is not MountType.VOLUME or mount.source:
        return mount
    return replace(mount, source=secrets.token_hex(32), anonymous=True)


def _require_sound(mount: Mount) -> None:
    if mount.type is MountType.BIND:
        if not mount.source.startswith("/") or "\0" in mount.source:
            raise InvalidError("is not an absolute path", subject=f"bind source {mount.source!r}"[:200])
        if mount.no_copy or mount.size_bytes or mount.mode or mount.labels or mount.driver or mount.options:
            raise InvalidError("a bind has neither size, mode, labels nor driver", subject=mount.destination)
        _require_ids(mount.uids)
        _require_ids(mount.gids)
    elif mount.uids or mount.gids:
        raise InvalidError("only the ids of a bind are mapped", subject=mount.destination)
    if mount.type is MountType.TMPFS and (mount.source or mount.no_copy):
        raise InvalidError("a tmpfs has no source and nothing to copy", subject=mount.destination)
    if mount.type is MountType.VOLUME and mount.mode:
        raise InvalidError("a volume has no mode", subject=mount.destination)


def _require_ids(ranges: Sequence[IdRange]) -> None:
    """Raises InvalidError for what does not fit into 32 bits, or has an id twice on either side."""
    for side in ("host", "guest"):
        end = 0
        for start, count in sorted((getattr(ids, side), ids.count) for ids in ranges):
            if not count or start + count - 1 > MAX_ID:
                raise InvalidError(f"{count} ids from {start} on cannot be mapped", subject="idmap")
            if start < end:
                raise InvalidError(f"{start} is mapped twice", subject="idmap")
            end = start + count


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
