# SPDX-License-Identifier: Apache-2.0
"""The last that is done for an image that was made here: its files, then its records, in one transaction."""

import sqlite3
from collections.abc import Sequence

from hyperd.host import files
from hyperd.host.workers import Wanted
from hyperd.image import records
from hyperd.image.assemble import Assembled
from hyperd.image.disks import EMPTY_LAYER, EMPTY_TAR
from hyperd.image.layers import LayerFile
from hyperd.image.pull import Parts
from hyperd.image.reference import Named
from hyperd.model.image import Digest, Image


async def record(
    parts: Parts, made: Assembled, layers: Sequence[tuple[LayerFile, Digest]], names: tuple[Named, ...]
) -> Image:
    """``layers`` with their blobs: kept already, no record knows of them. The caller has pinned what is written."""

    def put(_: Wanted) -> None:
        content = parts.content
        with files.file_errors(content.root):
            content.put(made.manifest_digest, made.manifest)
            content.put(Digest(made.image_id), made.config)
            parts.disks.make(made.image_id, made.parsed.diff_ids)

    def save(connection: sqlite3.Connection) -> Image:
        for layer, blob in layers:
            records.save_layer(connection, layer, blob)
        return records.save_image(connection, new)

    if not made.parsed.diff_ids and not parts.layers.has(EMPTY_LAYER):  # its disk is of that one alone
        await parts.workers.call(parts.content.put, EMPTY_LAYER, EMPTY_TAR)
        path = parts.content.path(EMPTY_LAYER)
        layers = [(await parts.layers.convert(EMPTY_LAYER, path, lambda _: None), EMPTY_LAYER)]
    await parts.workers.call_while_wanted(put)
    new = records.NewImage(
        made.image_id,
        made.manifest_digest,
        made.parsed_manifest,
        made.config,
        made.parsed.diff_ids,
        names,
    )
    return await parts.database.transaction(save)
