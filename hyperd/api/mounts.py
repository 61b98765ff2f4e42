# SPDX-License-Identifier: Apache-2.0
"""Mounts of containers, between the wire and the model."""

from hyper.v1 import container_pb2 as wire
from hyperd.errors import InvalidError
from hyperd.model.share import IdRange
from hyperd.model.volume import Mount, MountType

_TYPES = {kind: wire.MountType.Value(f"MOUNT_TYPE_{kind.name}") for kind in MountType}
_KINDS = {number: kind for kind, number in _TYPES.items()}


def decode_mount(message: wire.Mount) -> Mount:
    """Raises InvalidError."""
    kind = _KINDS.get(message.type)
    if kind is None:
        raise InvalidError("has no type", subject=f"mount {message.destination!r}"[:200])
    if message.mode > 0o7777:
        raise InvalidError(f"{message.mode:o} is not a mode", subject=f"mount {message.destination!r}"[:200])
    return Mount(
        kind,
        message.destination,
        message.source,
        message.readonly,
        message.no_copy,
        message.create_source,
        message.size_bytes,
        message.mode,
        dict(message.labels),
        message.driver,
        uids=tuple(_decode_ids(ids) for ids in message.uid_map),
        gids=tuple(_decode_ids(ids) for ids in message.gid_map),
        options=dict(message.options),
    )


def encode_mount(mount: Mount) -> wire.Mount:
    return wire.Mount(
        type=_TYPES[mount.type],
        source=mount.source,
        destination=mount.destination,
        readonly=mount.readonly,
        no_copy=mount.no_copy,
        create_source=mount.create_source,
        size_bytes=mount.size_bytes,
        mode=mount.mode,
        labels=mount.labels,
        driver=mount.driver,
        anonymous=mount.anonymous,
        uid_map=[_encode_ids(ids) for ids in mount.uids],
        gid_map=[_encode_ids(ids) for ids in mount.gids],
        options=mount.options,
    )


def _decode_ids(message: wire.IdRange) -> IdRange:
    return IdRange(message.host, message.guest, message.count)


def _encode_ids(ids: IdRange) -> wire.IdRange:
    return wire.IdRange(host=ids.host, guest=ids.guest, count=ids.count)
