# SPDX-License-Identifier: Apache-2.0
"""Records of what let images in. Functions for ``Database.transaction``; the tables are made in ``records``."""

import json
import sqlite3
from datetime import datetime

from hyperd.model.image import Admission, Digest, ImageId, Requirement


def save(connection: sqlite3.Connection, image_id: ImageId, admission: Admission) -> None:
    """The last of each reference counts."""
    requirements = [[each.kind, list(each.keys), each.identity] for each in admission.requirements]
    connection.execute(
        "INSERT OR REPLACE INTO image_admission VALUES (?, ?, ?, ?, ?, ?)",
        (
            image_id,
            admission.reference,
            admission.manifest_digest,
            admission.scope,
            json.dumps(requirements),
            admission.admitted_at.isoformat(),
        ),
    )


def of_image(connection: sqlite3.Connection, image_id: ImageId) -> tuple[Admission, ...]:
    rows = connection.execute(
        "SELECT * FROM image_admission WHERE image_id = ? ORDER BY reference", (image_id,)
    )
    return tuple(
        Admission(
            row["reference"],
            Digest(row["manifest_digest"]),
            row["scope"],
            tuple(
                Requirement(kind, tuple(keys), identity)
                for kind, keys, identity in json.loads(row["requirements"])
            ),
            datetime.fromisoformat(row["admitted_at"]),
        )
        for row in rows
    )
