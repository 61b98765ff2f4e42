# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a file of a snapshot, it is not restored from."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.errors import RestoreError
from hyperd.model.snapshot import SnapshotKind
from hyperd.snapshot import LocalSnapshots
from tests.saved import COMPATIBILITY, ME, write_sparse

SIZES = {"state": 3000, "ram": 200_000, "disk": 70_000}


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_random_change_of_any_file_is_noticed(data):
    name = data.draw(st.sampled_from([*SIZES, "manifest.json"]), "file")
    checked, restarted = data.draw(st.booleans(), "checked"), data.draw(st.booleans(), "restarted")

    async def check(root):
        store = LocalSnapshots(root)
        await store.open()
        draft = await store.begin()
        for file, size in SIZES.items():
            path = await draft.create_file(file, owner=ME)
            write_sparse(path, size, [(size // 2, b"data"), (size - 1, b"\0")])
        snapshot = await store.publish(draft, SnapshotKind.SANDBOX, COMPATIBILITY)
        if checked:
            await store.require_intact(snapshot)
        before = snapshot.path(name).read_bytes()
        after = changed(data, before)
        if data.draw(st.booleans(), "replaced"):
            snapshot.path(name).unlink()
            snapshot.path(name).write_bytes(after)
        else:
            with snapshot.path(name).open("r+b") as opened:
                opened.write(after)
            os.truncate(snapshot.path(name), len(after))
        if restarted:
            store.close()
            store = LocalSnapshots(root)
            await store.open()
        if restarted and name == "manifest.json" and after != before:
            assert store.list(SnapshotKind.SANDBOX) == []
        elif after != before:
            with pytest.raises(RestoreError, match=name):
                await store.require_intact(snapshot)
        else:
            await store.require_intact(snapshot)
        store.close()

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(check(Path(root)))


def changed(data, before: bytes) -> bytes:
    at = data.draw(st.integers(0, len(before) - 1), "at")
    match data.draw(st.sampled_from(["flip", "truncate", "extend", "move"]), "how"):
        case "flip":
            return before[:at] + bytes([before[at] ^ data.draw(st.integers(0, 255), "by")]) + before[at + 1 :]
        case "truncate":
            return before[:at]
        case "extend":
            more: bytes = data.draw(st.binary(max_size=100), "more")
            return before + more
        case _:
            return before[at:] + before[:at]
