# SPDX-License-Identifier: Apache-2.0
"""The agent's messages about files. All that it says is hostile until decoded here; raises NonsenseError."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from hyper.agent.v1 import agent_pb2 as pb
from hyperd.guest.failures import NonsenseError, printable
from hyperd.model.guest import Change, ChangeKind, ContainerId, PathStat, WriteOptions

MAX_DATA_BYTES = 256 * 1024  # of one message
MAX_PATH_BYTES = 64 * 1024  # one may be longer than PATH_MAX
MAX_CHANGES = 16_000_000
_MAX_NAME_BYTES = 4096
_MAX_MODE = 0o177777
_MAX_SIZE = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_KINDS = {
    pb.CHANGE_KIND_ADDED: ChangeKind.ADDED,
    pb.CHANGE_KIND_MODIFIED: ChangeKind.MODIFIED,
    pb.CHANGE_KIND_DELETED: ChangeKind.DELETED,
}


def encode_write_options(container_id: ContainerId, options: WriteOptions) -> pb.WriteTreeRequest:
    return pb.WriteTreeRequest(
        options=pb.WriteTreeOptions(
            container_id=container_id,
            path=options.path,
            keep_owner=options.keep_owner,
            no_overwrite_dir_non_dir=options.no_overwrite_dir_non_dir,
        )
    )


def encode_data(piece: bytes) -> Iterator[pb.WriteTreeRequest]:
    for at in range(0, len(piece), MAX_DATA_BYTES):
        yield pb.WriteTreeRequest(data=piece[at : at + MAX_DATA_BYTES])


def decode_data(data: bytes) -> bytes:
    """A message without a byte would let a call go on for ever."""
    if not 0 < len(data) <= MAX_DATA_BYTES:
        raise NonsenseError(f"{len(data)} bytes of an archive at once")
    return data


def decode_changes(response: pb.ListChangesResponse, before: int) -> list[Change]:
    """``before``: how many came already."""
    if not response.changes or before + len(response.changes) > MAX_CHANGES:
        raise NonsenseError(f"{len(response.changes)} changes after {before}")
    return [_decode_change(change) for change in response.changes]


def _decode_change(change: pb.Change) -> Change:
    kind = _KINDS.get(change.kind)
    if kind is None:
        raise NonsenseError(f"a change of kind {change.kind}")
    path = change.path
    if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH_BYTES:
        raise NonsenseError(f"a change of {_shown(path)}")
    return Change(kind, path)


def decode_stat(stat: pb.PathStat) -> PathStat:
    name = stat.name
    if name != b"/" and (not name or b"/" in name or b"\0" in name or len(name) > _MAX_NAME_BYTES):
        raise NonsenseError(f"a path named {_shown(name)}")
    if stat.mode > _MAX_MODE or stat.size_bytes > _MAX_SIZE:
        raise NonsenseError(f"mode {stat.mode:o}, {stat.size_bytes} bytes")
    if len(stat.link_target) > _MAX_NAME_BYTES or b"\0" in stat.link_target:
        raise NonsenseError(f"a link to {_shown(stat.link_target)}")
    return PathStat(
        name=name,
        size_bytes=stat.size_bytes,
        mode=stat.mode,
        modified_at=_EPOCH + timedelta(microseconds=stat.modified_unix_ns // 1000),
        link_target=stat.link_target,
    )


def _shown(path: bytes) -> str:
    return repr(printable(path[:100].decode(errors="replace")))
