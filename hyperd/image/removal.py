# SPDX-License-Identifier: Apache-2.0
"""What `tag` and `rmi` do to the records: Docker's rules for naming, untagging and deleting."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperd.errors import WrongStateError
from hyperd.image import records
from hyperd.image import reference as references
from hyperd.image.records import Item, Kind
from hyperd.image.reference import Named
from hyperd.model.image import Image, ImageId, Removal


@dataclass(frozen=True, slots=True)
class Removed:
    removal: Removal
    deleted: tuple[ImageId, ...]


def remove(
    connection: sqlite3.Connection, text: str, *, force: bool, in_use: Mapping[ImageId, str]
) -> Removed:
    """By name: untag, and delete with the last tag. By id: delete, unless several names would go with it.

    Force on an image in use takes its names and keeps its layers. Raises ImageNotFoundError, InvalidError,
    WrongStateError.
    """
    image_id = records.find_id(connection, text)
    image = records.get_image(connection, image_id)
    named = _name_meant(connection, text, image_id)
    if named is not None:
        untagged = [str(references.canonical(named))]
        remaining = [tag for tag in image.tags if tag not in untagged]
    else:
        if len(image.tags) > 1 and not force:
            raise WrongStateError(
                f"the image has {len(image.tags)} tags",
                subject=text,
                hint="name the tags to remove, or force it",
            )
        untagged, remaining = list(image.tags), []
    if not remaining and image_id in in_use and not force:
        user = in_use[image_id]
        raise WrongStateError(f"{user} uses the image", subject=text, hint="remove that first")
    kept = {references.parse_named(tag).repository for tag in remaining}
    untagged += [
        name for name in image.digests if name not in untagged and name.partition("@")[0] not in kept
    ]
    for name in untagged:
        connection.execute("DELETE FROM image_tag WHERE name = ? AND image_id = ?", (name, image_id))
        connection.execute("DELETE FROM image_digest WHERE name = ? AND image_id = ?", (name, image_id))
    if remaining or image_id in in_use:
        return Removed(Removal(tuple(untagged), ()), ())
    return Removed(Removal(tuple(untagged), delete(connection, image)), (image_id,))


def delete(connection: sqlite3.Connection, image: Image) -> tuple[str, ...]:
    """The image with its names; what only it needed is marked as garbage. Returns its id and such layers' diff_ids."""
    return delete_all(connection, [image])


def delete_all(connection: sqlite3.Connection, images: Sequence[Image]) -> tuple[str, ...]:
    """As ``delete``, in order; what is needed is looked up once. A layer is told with the last that had it."""
    for image in images:
        records.mark_garbage(connection, records.digests_of(connection, image.image_id))
        connection.execute("DELETE FROM image WHERE image_id = ?", (image.image_id,))
    needed = records.referenced_items(connection)
    last = {diff_id: image.image_id for image in images for diff_id in image.diff_ids}
    found: list[str] = []
    for image in images:
        layers = [
            each
            for each in dict.fromkeys(image.diff_ids)
            if last[each] == image.image_id and Item(Kind.LAYER, each) not in needed
        ]
        found += (image.image_id, *reversed(layers))
    return tuple(found)


def tag(connection: sqlite3.Connection, text: str, target: Named) -> str:
    """Raises ImageNotFoundError, InvalidError."""
    records.save_names(connection, records.find_id(connection, text), [target])
    return str(target)


def _name_meant(connection: sqlite3.Connection, text: str, image_id: ImageId) -> Named | None:
    if references.is_full_id(text):
        return None
    if references.id_prefix(text) and not _is_name(connection, text, image_id):
        return None
    return references.parse_named(text)


def _is_name(connection: sqlite3.Connection, text: str, image_id: ImageId) -> bool:
    return records.find_named(connection, references.parse_named(text)) == image_id
