# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what a snapshot is made of, in one canonical form that carries its own digest.

Only exactly what ``encode`` writes is read: a field more or less, another type, order or spacing, a flipped bit are all
unreadable. Pure.
"""

import dataclasses
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, TypeVar

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.snapshot import Compatibility, Manifest, SavedFile, SnapshotId, SnapshotKind

VERSION = 1
MAX_BYTES = 1 << 20
MAX_FILES = 16
MAX_FILE_BYTES = 16 << 40  # as ext4
MANIFEST_NAME = "manifest.json"
T = TypeVar("T", Compatibility, SavedFile)

_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_FILE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def require_name(name: str) -> None:
    """As Docker names things; "" is none. Never what could be taken for a full id. Raises InvalidError."""
    if name and (not _NAME.fullmatch(name) or is_id(name)):
        raise InvalidError(
            "is not a snapshot's name",
            subject=repr(name[:140]),
            hint="letters, digits, _ . and -, not first, at most 128; not a full id",
        )


def require_file_name(name: str) -> None:
    if not _FILE_NAME.fullmatch(name):
        raise InvalidError("is not a name for a file of a snapshot", subject=repr(name[:140]))


def encode(manifest: Manifest) -> bytes:
    """Raises InvalidError when it is too large, or breaks a rule that ``decode`` holds it to."""
    body = {
        "version": VERSION,
        "snapshot_id": manifest.snapshot_id,
        "name": manifest.name,
        "kind": manifest.kind.value,
        "created_at": manifest.created_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "compatibility": dataclasses.asdict(manifest.compatibility),
        "files": [dataclasses.asdict(file) for file in manifest.files],
        "source": dict(manifest.source),
    }
    _decode_body(body)
    data = _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})
    if len(data) > MAX_BYTES:
        raise InvalidError(f"the manifest is larger than {MAX_BYTES} bytes", subject=manifest.snapshot_id)
    return data


def decode(data: bytes) -> Manifest:
    """Raises InvalidError with the reason; UnsupportedError when a newer hyperd wrote it."""
    try:
        tree = json.loads(data[: MAX_BYTES + 1])
    except (ValueError, RecursionError) as error:
        raise InvalidError("the manifest is not JSON", evidence=str(error)[:300]) from error
    body = _object(tree, "the manifest")
    version = body.get("version")
    if type(version) is int and version > VERSION:
        raise UnsupportedError(f"the manifest is of version {version}, this hyperd reads {VERSION}")
    stated = body.pop("sha256", None)
    manifest = _decode_body(body)
    if stated != hashlib.sha256(_canonical(body)).hexdigest():
        raise InvalidError("the manifest is damaged: its digest differs")
    if encode(manifest) != data:
        raise InvalidError("the manifest is not in its canonical form")
    return manifest


def _decode_body(body: dict[str, Any]) -> Manifest:
    taken = dict(body)
    if _take(taken, "version", int) != VERSION:
        raise InvalidError("the manifest is of no known version")
    snapshot_id, name = _take(taken, "snapshot_id", str), _take(taken, "name", str)
    if not is_id(snapshot_id):
        raise InvalidError("the manifest has no valid id")
    require_name(name)
    try:
        kind = SnapshotKind(_take(taken, "kind", str))
        created_at = datetime.fromisoformat(_take(taken, "created_at", str))
    except ValueError as error:
        raise InvalidError("the manifest has an unknown kind or time", evidence=str(error)[:300]) from error
    if created_at.tzinfo is not UTC:
        raise InvalidError("the manifest's time is not in UTC")
    compatibility = _record(Compatibility, _take(taken, "compatibility", dict))
    listed = _take(taken, "files", list)
    if not 1 <= len(listed) <= MAX_FILES:
        raise InvalidError(f"a snapshot has 1 to {MAX_FILES} files")
    saved = tuple(_record(SavedFile, entry) for entry in listed)
    source = _take(taken, "source", dict)
    if taken:
        raise InvalidError(f"the manifest has an unknown field {sorted(taken)[0][:100]!r}")
    for file in saved:
        _check_file(file)
    if len({file.name for file in saved}) != len(saved):
        raise InvalidError("the manifest names a file twice")
    for value in source.values():
        _text(value, "source")
    return Manifest(SnapshotId(snapshot_id), name, kind, created_at, compatibility, saved, source)


def _check_file(file: SavedFile) -> None:
    require_file_name(file.name)
    if not 0 <= file.size_bytes <= MAX_FILE_BYTES or not _ID.fullmatch(file.sha256):
        raise InvalidError("the manifest has an impossible size or digest", subject=file.name)


def _record(record: type[T], tree: object) -> T:
    taken = dict(_object(tree, record.__name__))
    values = {field.name: _take(taken, field.name, field.type) for field in dataclasses.fields(record)}
    if taken:
        raise InvalidError(f"the manifest has an unknown field {sorted(taken)[0][:100]!r}")
    return record(**values)


def _take(tree: dict[str, Any], key: str, kind: Any) -> Any:
    if key not in tree:
        raise InvalidError(f"the manifest lacks {key!r}")
    value = tree.pop(key)
    if type(value) is not kind:  # exactly: a bool is no int here
        raise InvalidError(f"the manifest's {key!r} is of the wrong type")
    if kind is str:
        _text(value, key)
    return value


def _text(value: object, key: str) -> None:
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidError(f"the manifest's {key!r} holds what is not text")


def _object(tree: object, what: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise InvalidError(f"{what} is not an object")
    for key in tree:
        _text(key, "key")
    return tree


def _canonical(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
