# SPDX-License-Identifier: Apache-2.0
"""Snapshots on disk: what lies where for whom, what a next hyperd finds, what is noticed when it changes."""

import asyncio
import os
import shutil
import threading

import pytest

from hyperd.errors import HyperError, InvalidError, NotFoundError, RestoreError, UnavailableError
from hyperd.model.snapshot import SnapshotKind
from hyperd.snapshot import LocalSnapshots
from tests.mounts import allocated_bytes, names_in
from tests.saved import COMPATIBILITY, ME, write_sparse

SANDBOX, TEMPLATE, HIBERNATION = SnapshotKind.SANDBOX, SnapshotKind.TEMPLATE, SnapshotKind.HIBERNATION


@pytest.fixture
def make_store(tmp_path):
    """One after the other on the same directory, as hyperds are."""
    made = []

    async def make(**options):
        store = LocalSnapshots(tmp_path / "store", **options)
        made.append(store)
        await store.open()
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
async def store(make_store):
    return await make_store()


async def published(store, kind=SANDBOX, name="", size_bytes=4 << 20):
    draft = await store.begin()
    write_sparse(await draft.create_file("state", owner=ME), 5000, [(0, b"state"), (4990, b"end")])
    ram = await draft.create_file("ram", size_bytes=size_bytes, owner=ME)
    write_sparse(ram, size_bytes, [(70_000, b"memory"), (size_bytes - 3, b"end")])
    return await store.publish(draft, kind, COMPATIBILITY, name=name, source={"image": "alpine"})


@pytest.mark.parametrize("kind", SnapshotKind)
async def test_qemu_reads_what_is_published_and_lists_nothing(make_store, tmp_path, kind):
    store = await make_store(qemu_gid=70_000)
    draft = await store.begin()
    path = await draft.create_file("ram", owner=(70_001, 70_000))
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (70_001, 70_000, 0o600)
    snapshot = await store.publish(draft, kind, COMPATIBILITY)
    assert snapshot.directory == tmp_path / "store" / kind.value / snapshot.manifest.snapshot_id
    status = snapshot.path("ram").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (os.geteuid(), 70_000, 0o440)
    assert snapshot.path("manifest.json").stat().st_mode & 0o777 == 0o600
    for directory in (snapshot.directory, snapshot.directory.parent, tmp_path / "store"):
        assert directory.stat().st_mode & 0o777 == 0o711
    assert names_in(snapshot.directory) == ["manifest.json", "ram"]


async def test_a_copy_costs_its_data_alone(store, tmp_path):
    write_sparse(tmp_path / "disk.img", 1 << 30, [(700 << 20, b"data")])
    draft = await store.begin()
    await draft.add_copy("disk", tmp_path / "disk.img")
    snapshot = await store.publish(draft, SANDBOX, COMPATIBILITY)
    assert snapshot.manifest.files[0].size_bytes == 1 << 30
    assert snapshot.allocated_bytes == allocated_bytes(snapshot.path("disk")) < 1 << 20


async def test_the_next_hyperd_finds_what_was_whole_and_removes_what_was_not(make_store, store, tmp_path):
    kept = await published(store, name="kept")
    template = await published(store, kind=TEMPLATE)
    half_made = await store.begin()
    await half_made.create_file("ram", size_bytes=1 << 20, owner=ME)
    again = await make_store()
    assert [one.manifest for one in again.list(SANDBOX)] == [kept.manifest]
    assert [one.manifest for one in again.list(TEMPLATE)] == [template.manifest]
    assert again.get(SANDBOX, "kept").allocated_bytes == kept.allocated_bytes
    await again.require_intact(again.get(SANDBOX, "kept"))
    assert names_in(tmp_path / "store") == ["hibernation", "sandbox", "template"]
    await store.discard(half_made)


async def test_last_use_outlives_hyperd_and_decides_who_goes(make_store, store):
    first = await published(store, kind=TEMPLATE)
    second = await published(store, kind=TEMPLATE)
    await store.touch(first)
    used = store.get(TEMPLATE, first.manifest.snapshot_id).last_used_at
    assert used > second.last_used_at
    again = await make_store()
    found = again.get(TEMPLATE, first.manifest.snapshot_id)
    assert abs((found.last_used_at - used).total_seconds()) < 1e-3
    await again.require_intact(found)
    assert await again.trim(TEMPLATE, first.allocated_bytes) == 1
    assert [one.manifest.snapshot_id for one in again.list(TEMPLATE)] == [first.manifest.snapshot_id]


def without_manifest(snapshot):
    snapshot.path("manifest.json").unlink()


def torn(snapshot):
    os.truncate(snapshot.path("manifest.json"), 100)


def empty(snapshot):
    os.truncate(snapshot.path("manifest.json"), 0)


def flipped(snapshot):
    path = snapshot.path("manifest.json")
    path.write_bytes(path.read_bytes().replace(b'"vcpus":1', b'"vcpus":3'))


def linked(snapshot):
    path = snapshot.path("manifest.json")
    path.rename(snapshot.path("elsewhere"))
    path.symlink_to("elsewhere")


def a_directory(snapshot):
    without_manifest(snapshot)
    snapshot.path("manifest.json").mkdir()


def a_pipe(snapshot):
    without_manifest(snapshot)
    os.mkfifo(snapshot.path("manifest.json"))


def renamed(snapshot):
    snapshot.directory.rename(snapshot.directory.with_name("0" * 64))


def copied(snapshot):
    shutil.copytree(snapshot.directory, snapshot.directory.with_name("0" * 64))
    shutil.rmtree(snapshot.directory)


def of_another_kind(snapshot):
    snapshot.directory.rename(snapshot.directory.parents[1] / "template" / snapshot.directory.name)


@pytest.mark.parametrize(
    "damage",
    [
        without_manifest,
        torn,
        empty,
        flipped,
        linked,
        a_directory,
        a_pipe,
        renamed,
        copied,
        of_another_kind,
    ],
)
async def test_what_cannot_be_read_is_set_aside_and_the_rest_is_there(make_store, store, tmp_path, damage):
    bad, good = await published(store, name="bad"), await published(store, name="good")
    damage(bad)
    await make_store()
    again = await make_store()
    assert [one.manifest.name for one in again.list(SANDBOX)] == ["good"]
    assert again.list(TEMPLATE) == []
    [aside] = (tmp_path / "store/aside").iterdir()
    assert (aside / "ram").stat().st_size == 4 << 20
    await again.require_intact(again.get(SANDBOX, good.manifest.snapshot_id))
    await published(again, name="bad")


async def test_things_that_are_no_snapshots_are_set_aside(make_store, store, tmp_path):
    (tmp_path / "store/sandbox/notes.txt").write_text("mine")
    (tmp_path / "store/sandbox/link").symlink_to(tmp_path)
    again = await make_store()
    assert again.list(SANDBOX) == []
    assert len(names_in(tmp_path / "store/aside")) == 2
    assert tmp_path.is_dir()


async def test_what_a_newer_hyperd_made_stays_where_it_is(make_store, store):
    snapshot = await published(store)
    snapshot.path("manifest.json").write_bytes(b'{"sha256":"","version":2}\n')
    again = await make_store()
    assert again.list(SANDBOX) == []
    assert snapshot.path("ram").exists()


async def test_a_root_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    store = LocalSnapshots(tmp_path / "file" / "store")
    with pytest.raises(HyperError, match="file"):
        await store.open()
    store.close()


async def test_an_unchanged_snapshot_needs_no_thread(store):
    snapshot = await published(store)
    store.close()  # there are none now
    await store.require_intact(snapshot)


async def test_after_a_restart_it_is_read_once_also_for_many_at_once(make_store, store):
    await published(store, name="one", size_bytes=1 << 30)
    again = await make_store()
    snapshot = again.get(SANDBOX, "one")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(again.require_intact(snapshot))
    again.close()
    await again.require_intact(snapshot)


def missing(path):
    path.unlink()


def shorter(path):
    os.truncate(path, path.stat().st_size - 1)


def longer(path):
    os.truncate(path, path.stat().st_size + 1)


def changed(path):
    with path.open("r+b") as file:
        file.write(b"X")


def changed_with_its_old_time(path):
    status = path.stat()
    changed(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path):
    data = path.read_bytes()
    other = path.with_name("other")
    other.write_bytes(b"X" + data[1:])
    other.rename(path)


def a_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage", [missing, shorter, longer, changed, changed_with_its_old_time, replaced, a_link, a_fifo]
)
@pytest.mark.parametrize("name", ["state", "ram", "manifest.json"])
@pytest.mark.parametrize("when", ["at once", "after a check", "before a restart"])
async def test_every_change_is_refused_and_the_file_is_named(make_store, store, damage, name, when):
    snapshot = await published(store)
    if when == "after a check":
        await store.require_intact(snapshot)
    damage(snapshot.path(name))
    if when == "before a restart" and name != "manifest.json":
        store = await make_store()
        snapshot = store.get(SANDBOX, snapshot.manifest.snapshot_id)
    for _ in range(2):
        with pytest.raises(RestoreError) as caught:
            await store.require_intact(snapshot)
        assert caught.value.subject == str(snapshot.path(name))


async def test_what_only_looks_changed_is_read_again_and_is_intact(store):
    snapshot = await published(store)
    path = snapshot.path("ram")
    path.touch()
    await store.require_intact(snapshot)
    shutil.copy(path, path.with_name("copy"))  # without its holes
    path.with_name("copy").rename(path)
    await store.require_intact(snapshot)


async def test_a_file_that_somebody_slipped_into_a_draft_is_not_published(store):
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    (draft.directory / "other").touch()
    with pytest.raises(UnavailableError, match="changed by somebody"):
        await store.publish(draft, SANDBOX, COMPATIBILITY)
    await store.discard(draft)
    assert not draft.directory.exists()


async def test_a_source_that_is_missing_is_said(store, tmp_path):
    draft = await store.begin()
    with pytest.raises(NotFoundError):
        await draft.add_copy("disk", tmp_path / "none")
    assert names_in(draft.directory) == []


async def test_a_snapshot_that_is_removed_is_still_there_for_who_has_it_open(store):
    snapshot = await published(store)
    with snapshot.path("ram").open("rb") as file:
        await store.remove(snapshot.manifest.snapshot_id)
        assert not snapshot.directory.exists()
        file.seek(70_000)
        assert file.read(6) == b"memory"


async def test_a_caller_that_gives_up_leaves_all_of_it_or_nothing(store, tmp_path):
    """Cancelled at whichever step; discarding afterwards waits for what still runs."""
    for steps in range(12):
        draft = await store.begin()
        path = await draft.create_file("ram", size_bytes=64 << 20, owner=ME)
        write_sparse(path, 64 << 20, [(0, b"x" * (8 << 20))])
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(store.publish(draft, TEMPLATE, COMPATIBILITY))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
        await store.discard(draft)
        for snapshot in store.list(TEMPLATE):
            await store.require_intact(snapshot)
            await store.remove(snapshot.manifest.snapshot_id)
        assert names_in(tmp_path / "store") == ["hibernation", "sandbox", "template"]
        assert names_in(tmp_path / "store/template") == []


async def test_a_copy_waits_for_no_sync_digest_or_removal(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"disk")
    draft = await store.begin()
    began, go_on = threading.Semaphore(0), threading.Event()

    def hang():
        began.release()
        assert go_on.wait(10)

    async with asyncio.TaskGroup() as tasks:
        for workers, count in ((store._workers, 4), (store._hashers, 2)):
            for _ in range(count):
                tasks.create_task(workers.call(hang))
        for _ in range(6):
            assert await asyncio.to_thread(began.acquire, timeout=10)
        try:
            copy = await asyncio.wait_for(draft.add_copy("disk", source), 5)
        finally:
            go_on.set()
    assert copy.read_bytes() == b"disk"


async def test_a_beginning_that_nobody_waits_for_leaves_nothing(store, tmp_path):
    for turn in range(40):
        beginning = asyncio.create_task(store.begin())
        for _ in range(turn % 8):
            await asyncio.sleep(0)
        beginning.cancel()
        outcome = (await asyncio.gather(beginning, return_exceptions=True))[0]
        if not isinstance(outcome, BaseException):
            await store.discard(outcome)
    store.close()
    assert [path.name for path in tmp_path.rglob(".draft-*")] == []


async def test_two_that_want_one_name_at_once_get_one(store):
    drafts = []
    for _ in range(4):
        draft = await store.begin()
        await draft.create_file("state", owner=ME)
        drafts.append(draft)
    outcomes = []

    async def publish(draft):
        try:
            outcomes.append(await store.publish(draft, SANDBOX, COMPATIBILITY, name="one"))
        except HyperError as error:
            outcomes.append(error)
            await store.discard(draft)

    async with asyncio.TaskGroup() as tasks:
        for draft in drafts:
            tasks.create_task(publish(draft))
    assert len(store.list(SANDBOX)) == 1
    assert sum(isinstance(outcome, HyperError) for outcome in outcomes) == 3


async def test_a_source_too_large_for_a_manifest_is_refused_and_the_draft_stays(store):
    draft = await store.begin()
    await draft.create_file("state", owner=ME)
    with pytest.raises(InvalidError, match="larger than"):
        await store.publish(draft, SANDBOX, COMPATIBILITY, source={"x": "x" * (2 << 20)})
    assert names_in(draft.directory) == ["state"]
    await store.publish(draft, SANDBOX, COMPATIBILITY)
