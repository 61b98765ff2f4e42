# SPDX-License-Identifier: Apache-2.0
"""A file system that is full: said with the arithmetic, nothing half-made, what was there goes on. Needs root."""

import os

import pytest

from hyperd.errors import ExhaustedError
from hyperd.model.snapshot import SnapshotKind
from hyperd.snapshot import LocalSnapshots
from tests.mounts import names_in, small_filesystem
from tests.saved import COMPATIBILITY, ME, write_sparse

SANDBOX = SnapshotKind.SANDBOX
EMPTY = ["hibernation", "sandbox", "template"]
SIZE_MIB = 16


@pytest.fixture(params=[0, 4 << 20], ids=["no reserve", "4 MiB reserve"])
async def store(request, tmp_path):
    async with small_filesystem(tmp_path / "small", size_mib=SIZE_MIB) as root:
        store = LocalSnapshots(root / "store", reserve_bytes=request.param)
        await store.open()
        yield store
        store.close()


def root_of(store):
    return store._root


async def filled(store, name, mib):
    draft = await store.begin()
    path = await draft.create_file(name, owner=ME)
    write_sparse(path, mib << 20, [(0, os.urandom(mib << 20))])
    return draft


def fill(ballast):
    """To the last page."""
    with ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


async def test_what_will_not_fit_is_refused_with_the_arithmetic(store):
    with pytest.raises(
        ExhaustedError, match=r"20 MiB are needed, 1[56] MiB are free, [04] MiB are kept"
    ) as caught:
        await store.begin(need_bytes=20 << 20)
    assert caught.value.subject == str(root_of(store))
    assert names_in(root_of(store)) == EMPTY


async def test_a_copy_that_does_not_fit_leaves_the_draft_to_be_discarded(store, tmp_path):
    write_sparse(tmp_path / "disk", 1 << 30, [(0, os.urandom(20 << 20))])
    whole = await store.publish(await filled(store, "ram", 4), SANDBOX, COMPATIBILITY)
    draft = await filled(store, "state", 1)
    with pytest.raises(ExhaustedError, match="20 MiB are needed"):
        await draft.add_copy("disk", tmp_path / "disk")
    assert names_in(draft.directory) == ["state"]
    await store.discard(draft)
    await store.require_intact(whole)
    assert names_in(root_of(store)) == EMPTY


async def test_no_space_for_the_manifest_leaves_no_half_snapshot(store):
    draft = await filled(store, "ram", 2)
    ballast = root_of(store).parent / "ballast"
    with pytest.raises(OSError, match="No space"):
        fill(ballast)
    with pytest.raises(ExhaustedError, match="no space"):
        await store.publish(draft, SANDBOX, COMPATIBILITY, name="one")
    assert store.list(SANDBOX) == []
    assert names_in(root_of(store) / "sandbox") == []
    with pytest.raises(ExhaustedError):
        await store.begin(need_bytes=1)
    ballast.unlink()
    snapshot = await store.publish(draft, SANDBOX, COMPATIBILITY, name="one")
    await store.require_intact(snapshot)


async def test_an_import_that_does_not_fit_leaves_nothing(store, tmp_path):
    other = LocalSnapshots(tmp_path / "other")
    await other.open()
    snapshot = await other.publish(await filled(other, "ram", 20), SANDBOX, COMPATIBILITY)
    with pytest.raises(ExhaustedError, match="no space"):
        await store.import_(other.export(snapshot))
    assert names_in(root_of(store)) == EMPTY
    assert names_in(root_of(store) / "sandbox") == []
    small = await other.publish(await filled(other, "ram", 8), SANDBOX, COMPATIBILITY)
    arrived = await store.import_(other.export(small))
    await store.require_intact(arrived)
    other.close()


async def test_a_snapshot_leaves_also_when_there_is_no_space(store):
    snapshot = await store.publish(await filled(store, "ram", 4), SANDBOX, COMPATIBILITY)
    ballast = root_of(store).parent / "ballast"
    with pytest.raises(OSError, match="No space"):
        fill(ballast)
    await store.touch(snapshot)
    await store.require_intact(snapshot)
    await store.remove(snapshot.manifest.snapshot_id)
    assert names_in(root_of(store)) == EMPTY
