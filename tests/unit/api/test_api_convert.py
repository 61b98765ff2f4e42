# SPDX-License-Identifier: Apache-2.0
"""What lies in the store is shown, whatever it says: an imported manifest comes from anywhere."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperd.api.convert import encode_snapshot
from hyperd.model.snapshot import Manifest, Snapshot, SnapshotId, SnapshotKind
from tests.saved import COMPATIBILITY

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MANIFEST = Manifest(SnapshotId("a" * 64), "kept", SnapshotKind.SANDBOX, NOW, COMPATIBILITY, ())


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        ("0", 0),
        ("412", 412),
        (str(2**32 - 1), 2**32 - 1),
        (str(2**32), 0),
        ("9" * 5000, 0),
        ("-1", 0),
        ("x", 0),
        ("", 0),
        ("\u0663", 0),
        ("1e3", 0),
    ],
)
def test_a_kept_number_never_keeps_a_snapshot_from_being_shown(kept, shown):
    manifest = replace(MANIFEST, source={"pause_ms": kept})
    assert encode_snapshot(Snapshot(manifest, Path("/"), 0, NOW)).pause_ms == shown


def test_a_snapshot_that_says_nothing_of_its_source_is_shown():
    assert encode_snapshot(Snapshot(MANIFEST, Path("/"), 0, NOW)).pause_ms == 0
