# SPDX-License-Identifier: Apache-2.0
"""One body, two subjects: the fake and directories on a file system."""

import dataclasses

import pytest

from hyperd.errors import (
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    RestoreError,
    WrongStateError,
)
from hyperd.model.snapshot import SnapshotId, SnapshotKind
from hyperd.snapshot import LocalSnapshots, SnapshotStore
from tests.fakes.snapshot import FakeSnapshots, damaged, no_space
from tests.saved import COMPATIBILITY, ME

TEMPLATE, SANDBOX, HIBERNATION = SnapshotKind.TEMPLATE, SnapshotKind.SANDBOX, SnapshotKind.HIBERNATION


@pytest.fixture(params=["fake", "local"])
def make_store(request, tmp_path):
    """Stores of one kind, each empty."""
    made: list[FakeSnapshots | LocalSnapshots] = []

    def make() -> SnapshotStore:
        store = (
            FakeSnapshots() if request.param == "fake" else LocalSnapshots(tmp_path / f"store-{len(made)}")
        )
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
async def store(make_store):
    store = make_store()
    await store.open()
    return store


async def published(store, kind=SANDBOX, name="", compatibility=COMPATIBILITY):
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    return await store.publish(draft, kind, compatibility, name=name, source={"container": "c1"})


async def test_a_snapshot_is_there_whole_after_publish_and_not_before(store):
    draft = await store.begin(need_bytes=4096)
    assert (await draft.create_file("state", owner=ME)).name == "state"
    await draft.create_file("ram", size_bytes=1 << 20, owner=ME)
    assert store.list(SANDBOX) == []
    snapshot = await store.publish(draft, SANDBOX, COMPATIBILITY, name="first", source={"image": "alpine"})
    assert store.list(SANDBOX) == [snapshot]
    assert store.list(TEMPLATE) == []
    manifest = snapshot.manifest
    assert (manifest.snapshot_id, manifest.name, manifest.kind) == (draft.snapshot_id, "first", SANDBOX)
    assert [(file.name, file.size_bytes) for file in manifest.files] == [("state", 0), ("ram", 1 << 20)]
    assert (manifest.compatibility, manifest.source) == (COMPATIBILITY, {"image": "alpine"})
    assert snapshot.path("ram") == snapshot.directory / "ram"
    await store.require_intact(snapshot)


async def test_a_copy_is_a_file_of_the_snapshot(store, tmp_path):
    (tmp_path / "disk.img").write_bytes(b"data")
    draft = await store.begin()
    assert (await draft.add_copy("disk", tmp_path / "disk.img")).name == "disk"
    snapshot = await store.publish(draft, SANDBOX, COMPATIBILITY)
    assert [file.name for file in snapshot.manifest.files] == ["disk"]


@pytest.mark.parametrize("kind", SnapshotKind)
async def test_one_that_need_not_last_is_as_whole(store, kind):
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    snapshot = await store.publish(draft, kind, COMPATIBILITY, lasting=False)
    assert store.list(kind) == [snapshot]
    await store.require_intact(snapshot)


async def test_it_is_found_by_id_name_and_the_beginning_of_its_id(store):
    one, two = await published(store, name="one"), await published(store, name="two")
    snapshot_id = one.manifest.snapshot_id
    assert store.get(SANDBOX, "one") == store.get(SANDBOX, snapshot_id) == one
    assert store.get(SANDBOX, snapshot_id[:32]) == one
    assert store.list(SANDBOX) == [two, one]
    for reference in ("", "none", snapshot_id + "0"):
        with pytest.raises(NotFoundError):
            store.get(SANDBOX, reference)
    with pytest.raises(NotFoundError):
        store.get(TEMPLATE, "one")


async def test_a_beginning_that_several_ids_share_is_refused_and_a_name_wins_over_it(store):
    begun: dict[str, str] = {}
    while True:
        snapshot_id = (await published(store)).manifest.snapshot_id
        if snapshot_id[0] in begun:
            break
        begun[snapshot_id[0]] = snapshot_id
    with pytest.raises(InvalidError, match="more than one snapshot"):
        store.get(SANDBOX, snapshot_id[0])
    named = await published(store, name=snapshot_id[0])
    assert store.get(SANDBOX, snapshot_id[0]) == named


async def test_a_name_is_unique_among_its_kind_and_the_draft_stays_with_the_caller(store):
    taken = await published(store, name="one")
    await published(store, kind=TEMPLATE, name="one")
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    with pytest.raises(ExistsError, match=taken.manifest.snapshot_id[:12]):
        await store.publish(draft, SANDBOX, COMPATIBILITY, name="one")
    assert store.list(SANDBOX) == [taken]
    await store.publish(draft, SANDBOX, COMPATIBILITY, name="two")


@pytest.mark.parametrize("name", ["-x", "a b", "a/b", "..", "x" * 129, "a" * 64, "ü"])
async def test_names_are_as_dockers_and_never_look_like_an_id(store, name):
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    with pytest.raises(InvalidError):
        await store.publish(draft, SANDBOX, COMPATIBILITY, name=name)
    await store.discard(draft)


@pytest.mark.parametrize("name", ["", "..", "a/b", "manifest.json", "RAM", "x" * 40])
async def test_a_files_name_is_never_a_path(store, name, tmp_path):
    draft = await store.begin()
    with pytest.raises(InvalidError):
        await draft.create_file(name, owner=ME)
    with pytest.raises(InvalidError):
        await draft.add_copy(name, tmp_path)
    await store.discard(draft)


async def test_a_file_is_made_once(store, tmp_path):
    (tmp_path / "source").touch()
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    with pytest.raises(ExistsError):
        await draft.create_file("state", owner=ME)
    with pytest.raises(ExistsError):
        await draft.add_copy("state", tmp_path / "source")
    await store.discard(draft)


async def test_a_snapshot_without_files_is_refused(store):
    draft = await store.begin()
    with pytest.raises(InvalidError):
        await store.publish(draft, SANDBOX, COMPATIBILITY)
    await store.discard(draft)


async def test_discarding_is_idempotent_and_leaves_what_was_published_alone(store):
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    await store.discard(draft)
    await store.discard(draft)
    with pytest.raises(WrongStateError):
        await store.publish(draft, SANDBOX, COMPATIBILITY)
    with pytest.raises(WrongStateError):
        await draft.create_file("ram", owner=ME)
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    snapshot = await store.publish(draft, SANDBOX, COMPATIBILITY)
    await store.discard(draft)
    with pytest.raises(WrongStateError):
        await store.publish(draft, SANDBOX, COMPATIBILITY)
    assert store.list(SANDBOX) == [snapshot]
    await store.require_intact(snapshot)


async def test_removing_is_idempotent_and_what_is_gone_is_not_intact(store):
    one, two = await published(store, name="one"), await published(store)
    await store.remove(one.manifest.snapshot_id)
    await store.remove(one.manifest.snapshot_id)
    await store.remove(SnapshotId("0" * 64))
    assert store.list(SANDBOX) == [two]
    with pytest.raises(RestoreError):
        await store.require_intact(one)
    await store.touch(one)
    assert (await published(store, name="one")).manifest.name == "one"


async def test_the_newest_compatible_is_found(store):
    other = dataclasses.replace(COMPATIBILITY, memory_mib=512)
    assert store.find_compatible(TEMPLATE, COMPATIBILITY) is None
    await published(store, kind=TEMPLATE)
    newest = await published(store, kind=TEMPLATE)
    different = await published(store, kind=TEMPLATE, compatibility=other)
    await published(store, kind=SANDBOX)
    assert store.find_compatible(TEMPLATE, COMPATIBILITY) == newest
    assert store.find_compatible(TEMPLATE, other) == different


async def test_trimming_takes_the_least_recently_used_of_one_kind(store, tmp_path):
    (tmp_path / "data").write_bytes(b"x" * 4096)

    async def one(kind):
        draft = await store.begin()
        await draft.add_copy("ram", tmp_path / "data")
        return (await store.publish(draft, kind, COMPATIBILITY)).manifest.snapshot_id

    first, second, third, fourth = [await one(TEMPLATE) for _ in range(4)]
    other = await one(SANDBOX)
    await store.touch(store.get(TEMPLATE, first))
    size = store.get(TEMPLATE, first).allocated_bytes
    assert size > 0
    assert await store.trim(TEMPLATE, 4 * size) == 0
    assert await store.trim(TEMPLATE, 3 * size, keep=frozenset({second})) == 1
    assert {one.manifest.snapshot_id for one in store.list(TEMPLATE)} == {first, second, fourth}
    assert await store.trim(TEMPLATE, 0, keep=frozenset({second})) == 2
    assert [one.manifest.snapshot_id for one in store.list(TEMPLATE)] == [second]
    assert [one.manifest.snapshot_id for one in store.list(SANDBOX)] == [other]
    assert third not in {one.manifest.snapshot_id for one in store.list(TEMPLATE)}


async def test_what_was_exported_is_imported_under_its_own_id(make_store, store):
    snapshot = await published(store, name="one")
    other = make_store()
    await other.open()
    arrived = await other.import_(store.export(snapshot))
    assert arrived.manifest == snapshot.manifest
    assert other.list(SANDBOX) == [arrived]
    await other.require_intact(arrived)


async def test_an_import_may_be_given_another_name_but_never_a_taken_name_or_id(make_store, store):
    snapshot = await published(store, name="one")
    with pytest.raises(ExistsError):
        await store.import_(store.export(snapshot), name="two")
    other = make_store()
    await other.open()
    await published(other, name="one")
    with pytest.raises(ExistsError):
        await other.import_(store.export(snapshot))
    with pytest.raises(InvalidError):
        await other.import_(store.export(snapshot), name="a b")
    arrived = await other.import_(store.export(snapshot), name="two")
    assert arrived.manifest == dataclasses.replace(snapshot.manifest, name="two")


@pytest.mark.parametrize("kind", [TEMPLATE, HIBERNATION])
async def test_only_snapshots_of_sandboxes_travel(store, kind):
    snapshot = await published(store, kind=kind)
    with pytest.raises(InvalidError, match="only snapshots of sandboxes"):
        async for _ in store.export(snapshot):
            pass


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 1024, b"\0" * 10240, b"{}" * 600])
async def test_what_is_no_snapshot_is_refused(store, data):
    async def stream():
        yield data

    with pytest.raises(InvalidError):
        await store.import_(stream())
    assert store.list(SANDBOX) == []


async def test_the_fake_fails_when_told(tmp_path):
    store = FakeSnapshots()
    store.fail_next_begin = no_space()
    with pytest.raises(HyperError, match="no space"):
        await store.begin()
    draft = await store.begin()
    store.fail_next_copy = no_space()
    with pytest.raises(HyperError, match="no space"):
        await draft.add_copy("disk", tmp_path)
    await draft.create_file("state", owner=ME)
    store.fail_next_publish = no_space()
    with pytest.raises(HyperError, match="no space"):
        await store.publish(draft, SANDBOX, COMPATIBILITY)
    assert set(store.drafts) == {draft.snapshot_id}
    snapshot = await store.publish(draft, SANDBOX, COMPATIBILITY)
    assert store.drafts == {}
    store.damaged.add(snapshot.manifest.snapshot_id)
    with pytest.raises(RestoreError, match=str(damaged(snapshot))):
        await store.require_intact(snapshot)
    store.fail_next_remove = no_space()
    with pytest.raises(HyperError, match="no space"):
        await store.remove(snapshot.manifest.snapshot_id)
    store.free_bytes = 10
    with pytest.raises(HyperError, match="no space"):
        await store.begin(need_bytes=11)


async def test_what_its_service_refuses_is_not_imported(make_store, store) -> None:
    snapshot = await published(store, name="one")
    other = make_store()
    await other.open()

    def refuse(manifest) -> None:
        raise InvalidError("not this one", subject=manifest.snapshot_id)

    with pytest.raises(InvalidError, match="not this one"):
        await other.import_(store.export(snapshot), require=refuse)
    assert other.list(SANDBOX) == []
