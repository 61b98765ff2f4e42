# SPDX-License-Identifier: Apache-2.0
"""Which images there are, what they are called, and what they are made of.

Functions for ``Database.transaction``; the config blob is kept beside its image so that a start reads no file.
"""

import sqlite3
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto
from typing import NamedTuple

from hyperd.errors import ImageNotFoundError, InvalidError
from hyperd.image import admitted
from hyperd.image import reference as references
from hyperd.image.config import parse_config
from hyperd.image.content import IndexEntry
from hyperd.image.layers import LayerFile
from hyperd.image.manifest import Manifest
from hyperd.image.reference import Named
from hyperd.model.image import Admission, Digest, Image, ImageId

ROOM = "image"
MIGRATIONS = (
    """CREATE TABLE image (
        image_id TEXT PRIMARY KEY, manifest_digest TEXT NOT NULL, manifest_type TEXT NOT NULL,
        config BLOB NOT NULL, pulled_at TEXT NOT NULL) STRICT""",
    """CREATE TABLE image_layer (
        image_id TEXT NOT NULL REFERENCES image ON DELETE CASCADE, position INTEGER NOT NULL,
        diff_id TEXT NOT NULL, blob_digest TEXT NOT NULL, PRIMARY KEY (image_id, position)) STRICT""",
    """CREATE TABLE image_layer_file (
        diff_id TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL) STRICT""",
    """CREATE TABLE image_tag (
        name TEXT PRIMARY KEY, repository TEXT NOT NULL,
        image_id TEXT NOT NULL REFERENCES image ON DELETE CASCADE) STRICT""",
    """CREATE TABLE image_digest (
        name TEXT PRIMARY KEY, repository TEXT NOT NULL,
        image_id TEXT NOT NULL REFERENCES image ON DELETE CASCADE) STRICT""",
    "CREATE INDEX image_tag_image ON image_tag (image_id)",
    "CREATE INDEX image_digest_image ON image_digest (image_id)",
    # What a removal has left to be deleted, until it is: whatever is called so, where no image needs it.
    "CREATE TABLE image_garbage (digest TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
    """CREATE TABLE image_admission (
        image_id TEXT NOT NULL REFERENCES image ON DELETE CASCADE, reference TEXT NOT NULL,
        manifest_digest TEXT NOT NULL, scope TEXT NOT NULL, requirements TEXT NOT NULL, admitted_at TEXT NOT NULL,
        PRIMARY KEY (image_id, reference)) STRICT""",
    """CREATE TABLE image_use (
        image_id TEXT PRIMARY KEY REFERENCES image ON DELETE CASCADE, used_at REAL NOT NULL) STRICT""",
    # What blobs were seen to unpack to.
    "CREATE TABLE image_blob (blob_digest TEXT PRIMARY KEY, diff_id TEXT NOT NULL) STRICT, WITHOUT ROWID",
)


class Kind(Enum):
    BLOB = auto()
    LAYER = auto()
    DISK = auto()


class Item(NamedTuple):
    """One thing on disk. An uncompressed layer's blob is called like the layer, an image's config like its disk."""

    kind: Kind
    digest: Digest


@dataclass(frozen=True, slots=True)
class NewImage:
    """A pulled image, all of whose files are in their places."""

    image_id: ImageId
    manifest_digest: Digest
    manifest: Manifest
    config: bytes
    diff_ids: tuple[Digest, ...]
    names: tuple[Named, ...]  # with a tag or a digest each
    admission: Admission | None = None


@dataclass(frozen=True, slots=True)
class Garbage:
    doomed: frozenset[Item]
    put_off: frozenset[Digest]  # pinned


def save_layer(connection: sqlite3.Connection, layer: LayerFile, blob: Digest) -> None:
    """``blob`` was seen to unpack to it."""
    connection.execute(
        "INSERT OR REPLACE INTO image_layer_file VALUES (?, ?, ?)",
        (layer.diff_id, layer.size_bytes, layer.stored_bytes),
    )
    connection.execute("INSERT OR REPLACE INTO image_blob VALUES (?, ?)", (blob, layer.diff_id))


def is_blob_of(connection: sqlite3.Connection, blob: Digest, diff_id: Digest) -> bool:
    """Whether the blob was seen to unpack to the layer."""
    row = connection.execute("SELECT diff_id FROM image_blob WHERE blob_digest = ?", (blob,)).fetchone()
    return row is not None and row["diff_id"] == diff_id


def find_layer(connection: sqlite3.Connection, diff_id: Digest) -> LayerFile | None:
    row = connection.execute("SELECT * FROM image_layer_file WHERE diff_id = ?", (diff_id,)).fetchone()
    return None if row is None else LayerFile(Digest(row["diff_id"]), row["size_bytes"], row["stored_bytes"])


def save_image(connection: sqlite3.Connection, new: NewImage) -> Image:
    """The same image again, perhaps with other blobs (another compression): the later manifest counts."""
    before = items_of(connection, new.image_id)
    now = datetime.now(UTC).isoformat()
    connection.execute(
        "INSERT INTO image VALUES (?, ?, ?, ?, ?) ON CONFLICT (image_id) DO UPDATE SET"
        " manifest_digest = excluded.manifest_digest, manifest_type = excluded.manifest_type",
        (new.image_id, new.manifest_digest, new.manifest.media_type, new.config, now),
    )
    connection.execute("DELETE FROM image_layer WHERE image_id = ?", (new.image_id,))
    connection.executemany(
        "INSERT INTO image_layer VALUES (?, ?, ?, ?)",
        [
            (new.image_id, position, diff_id, layer.digest)
            for position, (diff_id, layer) in enumerate(zip(new.diff_ids, new.manifest.layers, strict=True))
        ],
    )
    mark_garbage(connection, {item.digest for item in before - items_of(connection, new.image_id)})
    save_names(connection, new.image_id, new.names)
    if new.admission is not None:
        admitted.save(connection, new.image_id, new.admission)
    return get_image(connection, new.image_id)


def save_names(connection: sqlite3.Connection, image_id: ImageId, names: Iterable[Named]) -> None:
    """A tag moves; the image that it named stays, without it."""
    for name in names:
        table = "image_digest" if name.digest else "image_tag"
        connection.execute(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",  # noqa: S608  # one of two literals
            (str(references.canonical(name)), name.repository, image_id),
        )


def get_image(connection: sqlite3.Connection, image_id: ImageId) -> Image:
    row = connection.execute("SELECT * FROM image WHERE image_id = ?", (image_id,)).fetchone()
    if row is None:
        raise ImageNotFoundError("no such image", subject=image_id)
    parsed = parse_config(row["config"], image_id)
    layers = connection.execute(
        "SELECT size_bytes, stored_bytes FROM image_layer JOIN image_layer_file USING (diff_id)"
        " WHERE image_id = ? ORDER BY position",
        (image_id,),
    ).fetchall()
    return Image(
        image_id=image_id,
        tags=_names(connection, "image_tag", image_id),
        digests=_names(connection, "image_digest", image_id),
        manifest_digest=Digest(row["manifest_digest"]),
        diff_ids=parsed.diff_ids,
        platform=parsed.platform,
        config=parsed.config,
        created_at=parsed.created_at,
        size_bytes=sum(layer["size_bytes"] for layer in layers),
        stored_bytes=sum(layer["stored_bytes"] for layer in layers),
        author=parsed.author,
        history=parsed.history,
        layer_bytes=tuple(layer["size_bytes"] for layer in layers),
        admissions=admitted.of_image(connection, image_id),
    )


def find_id(connection: sqlite3.Connection, text: str) -> ImageId:
    """As Docker: a full id, else a name, else the beginning of an id.

    Raises ImageNotFoundError, InvalidError (malformed, ambiguous).
    """
    prefix = references.id_prefix(text)
    named = None
    if not references.is_full_id(text):
        try:
            named = references.parse_named(text)
        except InvalidError:
            if not prefix:
                raise
    if named is not None:
        image_id = find_named(connection, named)
        if image_id is not None:
            return image_id
    if prefix:
        rows = connection.execute(
            "SELECT image_id FROM image WHERE image_id GLOB ? LIMIT 2", (f"sha256:{prefix}*",)
        ).fetchall()
        if len(rows) > 1:
            raise InvalidError(
                "more than one image has an id that begins so", subject=text, hint="give more digits"
            )
        if rows:
            return ImageId(rows[0]["image_id"])
    raise ImageNotFoundError("no such image", subject=text[:300], hint="`hyper pull` fetches it")


def find_named(connection: sqlite3.Connection, named: Named) -> ImageId | None:
    table = "image_digest" if named.digest else "image_tag"
    row = connection.execute(
        f"SELECT image_id FROM {table} WHERE name = ?",  # noqa: S608  # one of two literals
        (str(references.canonical(named)),),
    ).fetchone()
    if row is None and named.digest:
        row = connection.execute(
            "SELECT image_id FROM image JOIN image_digest USING (image_id)"
            " WHERE manifest_digest = ? AND repository = ? LIMIT 1",
            (named.digest, named.repository),
        ).fetchone()
    return None if row is None else ImageId(row["image_id"])


def tags_in(connection: sqlite3.Connection, repository: Named) -> list[tuple[str, ImageId]]:
    rows = connection.execute(
        "SELECT name, image_id FROM image_tag WHERE repository = ? ORDER BY name", (repository.repository,)
    )
    return [(row["name"], ImageId(row["image_id"])) for row in rows]


def save_pushed(connection: sqlite3.Connection, image: Image, named: Named) -> None:
    """What the registry serves under the name is known now; nothing when the image was removed meanwhile."""
    if connection.execute("SELECT 1 FROM image WHERE image_id = ?", (image.image_id,)).fetchone():
        save_names(connection, image.image_id, [replace(named, tag="", digest=image.manifest_digest)])


def find_manifest(connection: sqlite3.Connection, digest: Digest) -> ImageId | None:
    row = connection.execute("SELECT image_id FROM image WHERE manifest_digest = ?", (digest,)).fetchone()
    return None if row is None else ImageId(row["image_id"])


def list_ids(connection: sqlite3.Connection) -> list[ImageId]:
    return [ImageId(row["image_id"]) for row in connection.execute("SELECT image_id FROM image")]


def index_entries(connection: sqlite3.Connection) -> list[IndexEntry]:
    rows = connection.execute(
        "SELECT manifest_digest, manifest_type, coalesce(name, '') AS name FROM image"
        " LEFT JOIN image_tag USING (image_id) ORDER BY name, image_id"
    )
    return [IndexEntry(Digest(row["manifest_digest"]), row["manifest_type"], row["name"]) for row in rows]


def items_of(connection: sqlite3.Connection, image_id: ImageId) -> set[Item]:
    """All that the image keeps on disk."""
    return _items(connection, "WHERE image_id = ?", (image_id,))


def digests_of(connection: sqlite3.Connection, image_id: ImageId) -> set[Digest]:
    """What all of that is called."""
    return {item.digest for item in items_of(connection, image_id)}


def blobs_of(connection: sqlite3.Connection, image_id: ImageId) -> set[Digest]:
    """Manifest, config and compressed layers."""
    return {item.digest for item in items_of(connection, image_id) if item.kind is Kind.BLOB}


def referenced_items(connection: sqlite3.Connection) -> set[Item]:
    return _items(connection, "", ())


def mark_garbage(connection: sqlite3.Connection, digests: Iterable[Digest]) -> None:
    """In the transaction that takes the last reference away, so that a kill after it leaves nothing behind for good."""
    connection.executemany("INSERT OR IGNORE INTO image_garbage VALUES (?)", [(each,) for each in digests])


def take_garbage(
    connection: sqlite3.Connection, candidates: Iterable[Item], pinned: AbstractSet[Digest]
) -> Garbage:
    """Of what is marked and of the candidates: what goes now. It is marked until ``forget_garbage``.

    Marks of what images need again are taken away, as far as they need it.
    """
    referenced = referenced_items(connection)
    mark_garbage(connection, {item.digest for item in set(candidates) - referenced} - pinned)
    marked = {Digest(row[0]) for row in connection.execute("SELECT digest FROM image_garbage")}
    unneeded = {Item(kind, digest) for digest in marked - pinned for kind in Kind} - referenced
    return Garbage(frozenset(unneeded), frozenset(marked & pinned))


def forget_garbage(connection: sqlite3.Connection, items: Iterable[Item]) -> None:
    """They are deleted."""
    gone = list(items)
    layers = [(item.digest,) for item in gone if item.kind is Kind.LAYER]
    blobs = [(item.digest,) for item in gone if item.kind is Kind.BLOB]
    connection.executemany("DELETE FROM image_layer_file WHERE diff_id = ?", layers)
    connection.executemany("DELETE FROM image_blob WHERE blob_digest = ?", blobs)
    connection.executemany("DELETE FROM image_garbage WHERE digest = ?", {(item.digest,) for item in gone})


def _items(connection: sqlite3.Connection, where: str, values: tuple[str, ...]) -> set[Item]:
    columns = (
        (Kind.BLOB, "image", "image_id"),
        (Kind.DISK, "image", "image_id"),
        (Kind.BLOB, "image", "manifest_digest"),
        (Kind.LAYER, "image_layer", "diff_id"),
        (Kind.BLOB, "image_layer", "blob_digest"),
    )
    return {
        Item(kind, Digest(row[0]))
        for kind, table, column in columns
        for row in connection.execute(f"SELECT {column} FROM {table} {where}", values)  # noqa: S608  # literals
    }


def _names(connection: sqlite3.Connection, table: str, image_id: ImageId) -> tuple[str, ...]:
    rows = connection.execute(
        f"SELECT name FROM {table} WHERE image_id = ? ORDER BY name",  # noqa: S608  # one of two literals
        (image_id,),
    )
    return tuple(row["name"] for row in rows)
