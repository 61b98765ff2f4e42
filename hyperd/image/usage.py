# SPDX-License-Identifier: Apache-2.0
"""What the store takes on disk: blocks, as `du` counts them.

    blobs/ layers/ disks/  =  what one image alone has  +  what images share  +  what none has  +  the directories

A digest names a blob, a layer or a disk, or several of these at once; its bytes are those of all of them.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperd.host import files
from hyperd.image import records
from hyperd.image.content import digest_in
from hyperd.image.disks import EMPTY_LAYER
from hyperd.model.image import Digest, ImageId, ImageUsage, StoreUsage

_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Owner:
    image_id: ImageId
    tags: tuple[str, ...]
    digests: frozenset[Digest]


def owners(connection: sqlite3.Connection) -> list[Owner]:
    found = []
    for image_id in records.list_ids(connection):
        image = records.get_image(connection, image_id)
        digests = records.digests_of(connection, image_id) | (set() if image.diff_ids else {EMPTY_LAYER})
        found.append(Owner(image_id, image.tags, frozenset(digests)))
    return found


def measure(above: Path, directories: Mapping[Path, str], owned: Sequence[Owner]) -> StoreUsage:
    """``directories`` with the suffix that names in them have; ``above`` them one that has nothing else.

    Blocks. What comes or goes meanwhile may count or not.
    """
    sizes: Counter[Digest] = Counter()
    total, rest = _blocks(above), 0
    for directory, suffix in directories.items():
        with files.file_errors(directory):
            total += _blocks(directory)
            for name in os.listdir(directory):  # noqa: PTH208  # names are all that is needed, of very many
                size = allocated_bytes(directory / name)
                digest = digest_in(name, suffix)
                total += size
                if digest is None:
                    rest += size  # half-made, or not ours
                else:
                    sizes[digest] += size
    counts = Counter(digest for owner in owned for digest in owner.digests)
    images = tuple(
        ImageUsage(
            owner.image_id,
            owner.tags,
            shared_bytes=sum(sizes[digest] for digest in owner.digests if counts[digest] > 1),
            unique_bytes=sum(sizes[digest] for digest in owner.digests if counts[digest] == 1),
        )
        for owner in owned
    )
    unowned = sum(size for digest, size in sizes.items() if not counts[digest] and digest != EMPTY_LAYER)
    return StoreUsage(images, total, unowned + rest)


def allocated_bytes(path: Path) -> int:
    """Of a file, or of a directory with all that is in it; 0 when it is not there."""
    found = _blocks(path)
    if path.is_dir() and not path.is_symlink():
        for directory, directories, names in os.walk(path):
            found += sum(_blocks(Path(directory) / name) for name in (*directories, *names))
    return found


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
