# SPDX-License-Identifier: Apache-2.0
"""What a VM must have for the mounts of its container: disks, shares, and how the guest finds them. Pure."""

from collections.abc import Collection, Mapping, Sequence

from hyperd.errors import HyperError, UnavailableError
from hyperd.model.container import ContainerRecord
from hyperd.model.guest import GuestMount
from hyperd.model.share import BrokenShare, Share, ShareRequest
from hyperd.model.vm import Disk, DiskFormat
from hyperd.model.volume import EXT4, BrokenVolume, Mount, MountType, Volume, VolumeName, VolumeRequest
from hyperd.storage.base import DATA_DIRECTORY


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
                options=mount.options,
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
            serials[name],
            volumes[name].path,
            DiskFormat.RAW,
            readonly=readonly,
            export=volumes[name].export,
            filesystem=volumes[name].filesystem,
        )
        for name, readonly in uses.items()
        if not volumes[name].is_shared
    )


def bind_requests(mounts: Sequence[Mount]) -> tuple[ShareRequest, ...]:
    """Each is served by a virtiofsd of its own. Its tag is the same for the same container, always."""
    binds = [mount for mount in mounts if mount.type is MountType.BIND]
    return tuple(
        ShareRequest(
            f"bind{number}", mount.source, mount.readonly, mount.create_source, mount.uids, mount.gids
        )
        for number, mount in enumerate(binds)
    )


def share_requests(record: ContainerRecord, volumes: dict[VolumeName, Volume]) -> tuple[ShareRequest, ...]:
    """Its binds, and those of its volumes that are directories of the host's."""
    serials, uses = serials_of(record.spec.mounts), uses_of(record.spec.mounts)
    return (
        *bind_requests(record.spec.mounts),
        *(
            ShareRequest(serials[name], str(volumes[name].path), readonly=readonly, ours=True)
            for name, readonly in uses.items()
            if volumes[name].is_shared
        ),
    )


def guest_mounts(
    mounts: Sequence[Mount],
    shares: Collection[Share] = (),
    disks: Collection[Disk] = (),
    *,
    emulated: bool = False,
) -> tuple[GuestMount, ...]:
    """``shares`` and ``disks``: what the VM has of them."""
    shared, tags = {share.request.tag: share for share in shares}, tags_of(mounts)
    filesystems = {disk.serial: disk.filesystem for disk in disks}
    return tuple(
        _guest_mount(
            mount,
            tags[mount.destination],
            shared,
            filesystems.get(tags[mount.destination]) or EXT4,
            emulated=emulated,
        )
        for mount in mounts
    )


def tags_of(mounts: Sequence[Mount]) -> dict[str, str]:
    """Destination -> by which the guest finds what is there."""
    serials = serials_of(mounts)
    binds = [mount for mount in mounts if mount.type is MountType.BIND]
    tags = {
        mount.destination: request.tag for mount, request in zip(binds, bind_requests(mounts), strict=True)
    }
    volumes = (mount for mount in mounts if mount.type is MountType.VOLUME)
    return tags | {mount.destination: serials[VolumeName(mount.source)] for mount in volumes}


def _guest_mount(
    mount: Mount, tag: str, shared: Mapping[str, Share], filesystem: str, *, emulated: bool
) -> GuestMount:
    options: tuple[str, ...] = ("ro",) if mount.readonly else ()
    if (share := shared.get(tag)) is not None:
        # virtiofsd writes into the guest's memory behind QEMU's back. An emulator that has translated the code that was
        # there goes on with that: a program would crash at random. So none is run from there.
        options += ("noexec",) if emulated else ()
        return GuestMount(mount.destination, "virtiofs", tag, options, subdirectory=share.entry)
    return GuestMount(
        mount.destination,
        f"block:{filesystem}",
        tag,
        options,
        subdirectory=DATA_DIRECTORY,
        copy_image=not (mount.no_copy or mount.readonly),
    )


EMULATED_NOTE = "no program is run from a share under emulation"


def broken_share_error(record: ContainerRecord, broken: Sequence[BrokenShare]) -> HyperError:
    lost = {share.tag for share in broken}
    destinations = [where for where, tag in tags_of(record.spec.mounts).items() if tag in lost]
    told = "\n".join(share.evidence for share in broken if share.evidence)
    return UnavailableError(
        f"what is shared at {', '.join(destinations)} is not served any more: what uses it hangs",
        subject=f"container {record.name}",
        evidence=told or "its virtiofsd was killed",
        hint=_again_hint(record),
    )


def broken_volume_error(record: ContainerRecord, broken: BrokenVolume) -> HyperError:
    destinations = [mount.destination for mount in record.spec.mounts if mount.source == broken.name]
    return UnavailableError(
        f"nobody speaks to the server of volume {broken.name} any more: {', '.join(destinations)} has I/O errors",
        subject=f"container {record.name}",
        evidence=broken.evidence or "its qemu-nbd was killed",
        hint=_again_hint(record),
    )


def _again_hint(record: ContainerRecord) -> str:
    return f"`hyper stop {record.name}`, then `hyper start {record.name}`"
