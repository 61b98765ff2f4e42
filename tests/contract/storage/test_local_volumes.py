# SPDX-License-Identifier: Apache-2.0
"""One body, two subjects: the fake and real sparse files with records in SQLite."""

import asyncio
import contextlib
import os
import subprocess
import threading
from dataclasses import replace

import pytest
import pytest_asyncio

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.host import files, process
from hyperd.host.database import Database
from hyperd.host.workers import NotWantedError
from hyperd.model.vm import SandboxId
from hyperd.model.volume import SHARED, XFS, Consistency, VolumeName, VolumeRequest
from hyperd.storage import LocalVolumes, acl
from tests.fakes.volumes import FakeVolumes
from tests.mounts import allocated_bytes, dig, small_filesystem

BOX, OTHER, THIRD = (SandboxId(letter * 64) for letter in "abc")
DB, NEW = VolumeName("db"), VolumeName("new")
OWNERS = {BOX: (70001, 70000), OTHER: (70002, 70000), THIRD: (70003, 70000)}
SMALL = 64 << 20


class KilledError(Exception):
    """Stands for the end of hyperd."""


WHILE_EXPORTED = os.O_RDONLY | os.O_CLOEXEC


@pytest_asyncio.fixture
async def database(tmp_path):
    subject = Database(tmp_path / "records.sqlite")
    await subject.open()
    yield subject
    await subject.close()


async def opened(database, root):
    volumes = LocalVolumes(root, database, size_bytes=SMALL, owner_of=OWNERS.__getitem__)
    await volumes.open()
    return volumes


@pytest_asyncio.fixture
async def local(database, tmp_path):
    subject = await opened(database, tmp_path / "volumes")
    yield subject
    subject.close()


@pytest.fixture(params=["fake", "local"])
def volumes(request):
    return FakeVolumes() if request.param == "fake" else request.getfixturevalue("local")


async def used(volumes, database, sandbox_id, *requests, readonly=False):
    """As the fleet does it."""
    uses = {request.name: readonly for request in requests}
    async with volumes.providing(sandbox_id, f"box-{sandbox_id[0]}", requests, uses) as recording:
        await database.transaction(recording, lasting=True)


def directories(root):
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


async def test_a_volume_is_made_once_and_removed_once(volumes):
    made = await volumes.create(VolumeRequest(DB, 32 << 20, labels={"team": "web"}))
    assert (made.size_bytes, made.filesystem, made.labels) == (32 << 20, "ext4", {"team": "web"})
    assert (await volumes.create(VolumeRequest(DB))).path == made.path
    for other in (VolumeRequest(DB, 64 << 20), VolumeRequest(DB, labels={"team": "db"})):
        with pytest.raises(ExistsError):
            await volumes.create(other)
    assert [view.volume.name for view in await volumes.list()] == [DB]
    assert await volumes.remove(DB)
    assert not await volumes.remove(DB)
    with pytest.raises(NotFoundError):
        await volumes.get(DB)


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (VolumeRequest(VolumeName("../x")), InvalidError),
        (VolumeRequest(VolumeName("")), InvalidError),
        (VolumeRequest(DB, 1 << 20), InvalidError),
        (VolumeRequest(DB, 1 << 60), InvalidError),
        (VolumeRequest(DB, filesystem="zfs"), UnsupportedError),
        (VolumeRequest(DB, (300 << 20) - 1, filesystem=XFS), InvalidError),
        (VolumeRequest(DB, 64 << 20, filesystem=SHARED), InvalidError),
        (VolumeRequest(DB, driver="nfs"), UnsupportedError),
        (VolumeRequest(DB, options={"type": "nfs"}), InvalidError),
    ],
)
async def test_what_cannot_be_made_is_refused(volumes, request_, kind):
    with pytest.raises(kind):
        await volumes.create(request_)
    assert await volumes.list() == []


async def test_a_volume_that_a_container_has_stays(volumes, database):
    await used(volumes, database, BOX, VolumeRequest(DB))
    (user,) = (await volumes.get(DB)).users
    assert (user.sandbox_id, user.name, user.readonly, user.attached) == (BOX, "box-a", False, False)
    with pytest.raises(WrongStateError, match="is in use by container box-a"):
        await volumes.remove(DB)
    await volumes.release(BOX)
    await volumes.release(BOX)
    assert await volumes.remove(DB)


async def test_one_writes_or_many_read(volumes, database):
    await used(volumes, database, BOX, VolumeRequest(DB))
    await used(volumes, database, OTHER, VolumeRequest(DB), readonly=True)
    await used(volumes, database, THIRD, VolumeRequest(DB), readonly=True)
    attached = await volumes.attach(BOX)
    assert (await volumes.attach(BOX)) == attached
    assert set(attached) == {DB}
    with pytest.raises(WrongStateError, match="box-a"):
        await volumes.attach(OTHER)
    await volumes.detach(BOX)
    await volumes.detach(BOX)
    await volumes.attach(OTHER)
    await volumes.attach(THIRD)
    with pytest.raises(WrongStateError, match="box-b"):
        await volumes.attach(BOX)
    assert [user.attached for user in (await volumes.get(DB)).users] == [False, True, True]


async def test_a_container_that_is_not_recorded_leaves_nothing(volumes, database):
    await volumes.create(VolumeRequest(DB))
    requests = [VolumeRequest(DB), VolumeRequest(VolumeName("new"))]

    async def fails_late():
        uses = {request.name: False for request in requests}
        async with volumes.providing(BOX, "box", requests, uses) as record:
            await database.transaction(record)
            raise ExhaustedError("no space for the record")

    with pytest.raises(ExhaustedError):
        await fails_late()
    assert [view.volume.name for view in await volumes.list()] == [DB]
    assert (await volumes.get(DB)).users == ()


async def test_a_volume_removed_meanwhile_is_missed_when_it_is_recorded(volumes, database):
    await volumes.create(VolumeRequest(DB))

    async def loses_it():
        async with volumes.providing(BOX, "box", [], {DB: False}) as record:
            await volumes.remove(DB)
            await database.transaction(record)

    with pytest.raises(NotFoundError):
        await loses_it()


async def test_what_a_killed_hyperd_left_goes(volumes, database):
    await used(volumes, database, BOX, VolumeRequest(DB), readonly=True)
    await used(volumes, database, OTHER, VolumeRequest(DB), readonly=True)
    await used(volumes, database, THIRD, VolumeRequest(DB), readonly=True)
    for sandbox_id in (BOX, OTHER, THIRD):
        await volumes.attach(sandbox_id)
    await volumes.keep_only({BOX, OTHER}, {BOX})
    users = (await volumes.get(DB)).users
    assert [(user.sandbox_id, user.attached) for user in users] == [(BOX, True), (OTHER, False)]


async def test_one_that_has_its_name_and_no_record_yet_goes_with_the_next_start(local, database, tmp_path):
    """A kill between the two, of which the file system keeps one and the database nothing."""
    await local.create(VolumeRequest(DB))
    kept = directories(tmp_path / "volumes")
    killed: list[str] = []

    def record_and_die(connection):
        recording(connection)
        killed.extend(directories(tmp_path / "volumes"))
        raise KilledError

    async with contextlib.AsyncExitStack() as stack:
        recording = await stack.enter_async_context(
            local.providing(BOX, "box", [VolumeRequest(NEW, 32 << 20)], {NEW: False})
        )
        with pytest.raises(KilledError):
            await database.transaction(record_and_die, lasting=True)
        stack.pop_all()  # whoever would undo it is dead
    assert len(killed) == 2
    assert directories(tmp_path / "volumes") == killed
    after = await opened(database, tmp_path / "volumes")
    assert directories(tmp_path / "volumes") == kept
    after.close()


async def test_one_that_was_recorded_and_not_said_so_yet_stays(local, database, tmp_path):
    made = await local.create(VolumeRequest(DB))
    assert [path.name for path in made.path.parent.iterdir()] == ["disk.img"]
    (made.path.parent / "unrecorded").touch()
    after = await opened(database, tmp_path / "volumes")
    assert [path.name for path in made.path.parent.iterdir()] == ["disk.img"]
    after.close()


LARGE = 320 << 20


async def test_an_xfs_is_as_large_as_it_must_be_at_least_and_its_copies_have_one(volumes):
    with pytest.raises(InvalidError, match="not between 300 MiB") as raised:
        await volumes.create(VolumeRequest(DB, SMALL, filesystem=XFS))
    assert "ext4" in raised.value.hint
    made = await volumes.create(VolumeRequest(DB, LARGE, filesystem=XFS))
    assert (made.filesystem, made.size_bytes) == (XFS, LARGE)
    assert (await volumes.create(VolumeRequest(DB))).filesystem == XFS
    with pytest.raises(ExistsError):
        await volumes.create(VolumeRequest(DB, filesystem="ext4"))
    taken = await volumes.snapshots.take(made, "first", detached)
    assert taken.filesystem == XFS
    with pytest.raises(InvalidError, match="holds xfs, not ext4"):
        await volumes.create(VolumeRequest(NEW, filesystem="ext4", snapshot="first"))
    assert (await volumes.create(VolumeRequest(NEW, snapshot="first"))).filesystem == XFS
    async with volumes.snapshots.stream(made, detached) as stream:
        data = [piece async for piece in stream]

    async def again():
        for piece in data:
            yield piece

    assert (await volumes.import_(VolumeName("back"), {}, again())).filesystem == XFS


async def test_an_xfs_has_an_empty_data_directory_and_takes_little_room(local):
    made = await local.create(VolumeRequest(DB, 10 << 30, filesystem=XFS))
    subprocess.run(["xfs_repair", "-n", made.path], check=True, capture_output=True)
    shown = subprocess.run(
        ["xfs_db", "-r", "-c", "path /data", "-c", "p core.mode core.uid core.nlinkv2", made.path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert [line.split(" = ")[1] for line in shown.splitlines()] == ["040755", "0", "2"]
    assert allocated_bytes(made.path) < 4 << 20, "its log is a hole"
    assert made.path.stat().st_size == 10 << 30


@pytest.mark.parametrize(("filesystem", "package"), [("ext4", "e2fsprogs"), (XFS, "xfsprogs")])
async def test_a_host_that_cannot_make_a_file_system_is_told_what_to_install(
    local, tmp_path, monkeypatch, filesystem, package
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=rf"there is no mkfs\.{filesystem} on the host") as raised:
        await local.create(VolumeRequest(DB, LARGE, filesystem=filesystem))
    assert package in raised.value.hint
    assert await local.list() == []
    assert directories(tmp_path / "volumes") == []


async def test_one_that_is_shared_has_many_who_write(volumes, database):
    made = await volumes.create(VolumeRequest(DB, filesystem=SHARED))
    assert (made.filesystem, made.size_bytes, made.is_shared) == (SHARED, 0, True)
    assert (await volumes.create(VolumeRequest(DB))).path == made.path
    with pytest.raises(ExistsError):
        await volumes.create(VolumeRequest(DB, filesystem="ext4"))
    for sandbox_id in (BOX, OTHER):
        await used(volumes, database, sandbox_id, VolumeRequest(DB))
        assert (await volumes.attach(sandbox_id))[DB].path == made.path
    assert [user.attached for user in (await volumes.get(DB)).users] == [True, True]
    with pytest.raises(WrongStateError):
        await volumes.remove(DB)
    with pytest.raises(InvalidError):
        await volumes.grow(DB, SMALL)
    for sandbox_id in (BOX, OTHER):
        await volumes.release(sandbox_id)
    assert await volumes.remove(DB)


async def test_a_shared_one_is_an_empty_directory_that_root_alone_passes_to(local):
    made = await local.create(VolumeRequest(DB, filesystem=SHARED))
    assert (made.path.name, list(made.path.iterdir())) == ("data", [])
    assert (made.path.stat().st_mode & 0o7777, made.path.parent.stat().st_mode & 0o7777) == (0o755, 0o700)
    (made.path / "below").mkdir()
    (made.path / "below/file").write_bytes(bytes(1 << 20))
    (made.path / "out").symlink_to("/")
    assert (1 << 20) <= (await local.get(DB)).allocated_bytes < (2 << 20)
    assert await local.remove(DB)
    assert not made.path.parent.exists()


async def test_a_volume_grows_and_never_becomes_smaller(volumes):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    grown = await volumes.grow(DB, 2 * SMALL + 5)
    assert (grown.size_bytes, grown.path) == (2 * SMALL, made.path)
    assert (await volumes.grow(DB, 2 * SMALL)).size_bytes == 2 * SMALL
    for size_bytes in (SMALL, 1 << 20, 1 << 60):
        with pytest.raises(InvalidError):
            await volumes.grow(DB, size_bytes)
    assert (await volumes.get(DB)).volume.size_bytes == 2 * SMALL
    with pytest.raises(NotFoundError):
        await volumes.grow(VolumeName("none"), SMALL)


async def detached():
    return Consistency.DETACHED


async def test_a_snapshot_from_its_making_to_its_end(volumes):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    first = await volumes.snapshots.take(made, "first", detached)
    second = await volumes.snapshots.take(made, "", detached)
    assert [item.snapshot_id for item in await volumes.snapshots.list()] == [
        second.snapshot_id,
        first.snapshot_id,
    ]
    assert (first.volume, first.size_bytes, first.filesystem) == (DB, SMALL, "ext4")
    assert await volumes.snapshots.get(first.snapshot_id[:20]) == await volumes.snapshots.get("first")
    with pytest.raises(ExistsError):
        await volumes.snapshots.take(made, "first", detached)
    with pytest.raises(InvalidError):
        await volumes.snapshots.take(made, "../x", detached)
    assert await volumes.remove(DB)
    again = await volumes.create(VolumeRequest(DB, 2 * SMALL, snapshot="first"))
    assert again.size_bytes == 2 * SMALL
    with pytest.raises(ExistsError):
        await volumes.create(VolumeRequest(DB, snapshot="first"))
    with pytest.raises(InvalidError):
        await volumes.create(VolumeRequest(VolumeName("less"), SMALL // 2, snapshot="first"))
    with pytest.raises(NotFoundError):
        await volumes.create(VolumeRequest(VolumeName("none"), snapshot="none"))
    assert await volumes.snapshots.remove("first") == first.snapshot_id
    for reference in ("first", "", "0" * 12):
        with pytest.raises(NotFoundError):
            await volumes.snapshots.remove(reference)


async def test_a_copy_that_turns_out_to_be_worth_nothing_does_not_stay(volumes):
    made = await volumes.create(VolumeRequest(DB, SMALL))

    async def worthless():
        raise WrongStateError("went on meanwhile")

    with pytest.raises(WrongStateError):
        await volumes.snapshots.take(made, "first", worthless)
    assert await volumes.snapshots.list() == []
    await volumes.snapshots.require_free("first")


async def test_a_volume_goes_out_in_a_stream_and_comes_in_again(volumes):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    async with volumes.snapshots.stream(made, detached) as stream:
        data = [piece async for piece in stream]
    assert await volumes.snapshots.list() == []

    async def again(pieces):
        for piece in pieces:
            yield piece

    with pytest.raises(ExistsError):
        await volumes.import_(DB, {}, again(data))
    other = VolumeName("other")
    back = await volumes.import_(other, {"team": "web"}, again(data))
    assert (back.size_bytes, back.filesystem, back.labels) == (SMALL, "ext4", {"team": "web"})
    for wrong in ([], [b"nonsense" * 1000]):
        with pytest.raises(InvalidError):
            await volumes.import_(VolumeName("wrong"), {}, again(wrong))
    assert [view.volume.name for view in await volumes.list()] == [DB, other]


async def test_a_volume_is_lent_to_one_who_is_no_container(volumes, database):
    await volumes.create(VolumeRequest(DB, SMALL))
    lent = await volumes.lend(BOX, "volume-init", DB)
    assert lent.name == DB
    (user,) = (await volumes.get(DB)).users
    assert (user.name, user.readonly, user.attached) == ("volume-init", False, True)
    with pytest.raises(WrongStateError, match="volume-init"):
        await volumes.lend(OTHER, "volume-init", DB)
    assert len((await volumes.get(DB)).users) == 1
    await volumes.release(BOX)
    assert (await volumes.get(DB)).users == ()
    with pytest.raises(NotFoundError):
        await volumes.lend(BOX, "volume-init", VolumeName("none"))


async def test_an_export_is_the_same_disk_and_leaves_nothing(local, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    async with local.snapshots.stream(made, detached) as stream:
        assert directories(tmp_path / "volumes" / ".snapshots") == []  # nor would a kill leave anything now
        pieces = [piece async for piece in stream]
    back = await local.import_(VolumeName("back"), {}, _each(pieces))
    assert back.path.read_bytes() == made.path.read_bytes()
    assert allocated_bytes(back.path) < 3 << 20
    async with local.snapshots.stream(made, detached) as stream:
        await anext(stream)  # whoever hangs up in the middle
    for cut in (pieces[:-1], [*pieces, b"x"]):
        with pytest.raises(InvalidError):
            await local.import_(VolumeName("cut"), {}, _each(cut))
    assert len(directories(tmp_path / "volumes")) == 2


async def _each(pieces):
    for piece in pieces:
        yield piece


async def test_a_snapshot_is_the_same_bytes_and_sparse(local, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    taken = await local.snapshots.take(made, "first", detached)
    assert taken.path.read_bytes() == made.path.read_bytes()
    assert taken.allocated_bytes < 3 << 20
    assert taken.path.stat().st_mode & 0o777 == 0o600
    copy = await local.create(VolumeRequest(VolumeName("copy"), 2 * SMALL, snapshot="first"))
    assert copy.path.stat().st_size == 2 * SMALL
    assert copy.path.read_bytes()[:SMALL] == made.path.read_bytes()
    await local.snapshots.remove("first")
    assert directories(tmp_path / "volumes" / ".snapshots") == []


async def test_of_a_snapshot_that_was_cut_short_nothing_stays(local, database, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    kept = await local.snapshots.take(made, "first", detached)
    root = tmp_path / "volumes" / ".snapshots"
    for name in ("0" * 64 + ".new", "0" * 64 + ".gone"):
        (root / name).mkdir()
        (root / name / "disk.img").write_bytes(b"data")
    entered = asyncio.Event()

    async def hangs():
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(local.snapshots.take(made, "second", hangs))
    await entered.wait()
    assert len(directories(root)) == 4
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (await opened(database, tmp_path / "volumes")).close()
    assert directories(root) == [kept.snapshot_id]


async def test_who_wants_a_volume_that_is_being_copied_waits(local, database, monkeypatch):
    await used(local, database, BOX, VolumeRequest(DB))
    async with local.copying(DB) as view:
        assert not view.users[0].attached
        attaching = asyncio.create_task(local.attach(BOX))
        removing = asyncio.create_task(local.remove(DB))
        done, _ = await asyncio.wait((attaching, removing), timeout=0.2)
        assert not done
        assert not (await local.get(DB)).users[0].attached
    assert set(await attaching) == {DB}
    with pytest.raises(WrongStateError):
        await removing
    await local.detach(BOX)
    monkeypatch.setattr("hyperd.storage.volumes.COPY_PATIENCE_S", 0.05)
    async with local.copying(DB):
        with pytest.raises(WrongStateError, match="is being copied"):
            await local.attach(BOX)


async def test_patience_with_a_copy_ends_whatever_else_is_copied(local, database, monkeypatch):
    await used(local, database, BOX, VolumeRequest(DB))
    await local.create(VolumeRequest(VolumeName("other")))
    monkeypatch.setattr("hyperd.storage.volumes.COPY_PATIENCE_S", 0.5)

    async def copy_others():
        while True:
            async with local.copying(VolumeName("other")):
                pass
            await asyncio.to_thread(lambda: None)

    copying = asyncio.create_task(copy_others())
    async with asyncio.timeout(10), local.copying(DB):
        with pytest.raises(WrongStateError, match="is being copied"):
            await local.attach(BOX)
    copying.cancel()


async def test_what_grows_is_not_being_copied(local):
    await local.create(VolumeRequest(DB, SMALL))
    async with local.copying(DB) as view:
        growing = asyncio.create_task(local.grow(DB, 2 * SMALL))
        done, _ = await asyncio.wait((growing,), timeout=0.2)
        assert not done
        assert view.volume.path.stat().st_size == SMALL
    assert (await growing).size_bytes == 2 * SMALL


async def test_what_was_killed_while_it_grew_is_copied_and_exported_whole(local):
    """The file is as large as it was to be, and its record is not."""
    made = await local.create(VolumeRequest(DB, SMALL))
    os.truncate(made.path, 2 * SMALL)
    with made.path.open("r+b") as file:
        file.seek(2 * SMALL - 8192)
        file.write(b"the last")
    expected = made.path.read_bytes()
    taken = await local.snapshots.take(made, "first", detached)
    assert (taken.size_bytes, taken.path.read_bytes() == expected) == (2 * SMALL, True)
    async with local.snapshots.stream(made, detached) as stream:
        back = await local.import_(VolumeName("back"), {}, stream)
    assert (back.size_bytes, back.path.read_bytes() == expected) == (2 * SMALL, True)


async def test_a_copy_that_nobody_wants_any_more_has_ended_when_its_caller_is_told(local, monkeypatch):
    made = await local.create(VolumeRequest(DB))
    begun, copied = threading.Event(), list[str]()

    def copying(source, target, *, wanted, **_):
        begun.set()
        while not copied:
            try:
                wanted.require()
            except NotWantedError:
                copied.append("not wanted")
                raise

    monkeypatch.setattr(files, "copy_sparse", copying)
    task = asyncio.create_task(local.snapshots.take(made, "first", detached))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert copied == ["not wanted"]


async def test_an_export_that_is_cancelled_while_it_opens_its_copy_keeps_nothing_open(local, monkeypatch):
    made = await local.create(VolumeRequest(DB))
    opened, loop = os.open, asyncio.get_running_loop()
    descriptors = []

    def opening(path, *args, **fields):
        found = opened(path, *args, **fields)
        if str(path).endswith(".new/disk.img") and "snapshots" in str(path) and args == (WHILE_EXPORTED,):
            descriptors.append(found)
            asyncio.run_coroutine_threadsafe(cancel(), loop).result(10)
        return found

    async def cancel():
        task.cancel()

    async def export():
        async with local.snapshots.stream(made, detached):
            pass

    monkeypatch.setattr("hyperd.storage.volume_snapshots.os.open", opening)
    task = asyncio.create_task(export())
    with pytest.raises(asyncio.CancelledError):
        await task
    (descriptor,) = descriptors
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_where_blocks_cannot_be_shared_a_copy_of_one_moment_is_refused(local, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    async with small_filesystem(tmp_path / "small", size_mib=64) as directory:
        source = directory / "disk.img"
        source.write_bytes(b"data")
        with pytest.raises(UnsupportedError, match="cannot share blocks"):
            await local.snapshots.take(replace(made, path=source), "first", detached, only_shared=True)
    assert await local.snapshots.list() == []


async def test_the_file_is_sparse_sound_and_holds_the_directory_alone(local):
    volume = await local.create(VolumeRequest(DB))
    assert volume.path.stat().st_size == SMALL
    assert volume.path.stat().st_mode & 0o777 == 0o600
    assert allocated_bytes(volume.path) < 3 << 20
    subprocess.run(["e2fsck", "-f", "-n", volume.path], check=True, capture_output=True)
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /", volume.path], check=True, capture_output=True
    ).stdout
    assert b"/040755/0/0/data//" in listing


async def test_it_belongs_to_the_qemu_that_writes_or_to_those_that_read(local, database):
    await used(local, database, BOX, VolumeRequest(DB))
    await used(local, database, OTHER, VolumeRequest(DB), readonly=True)
    await used(local, database, THIRD, VolumeRequest(DB), readonly=True)
    path = (await local.attach(BOX))[DB].path
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (70001, 0o600)
    await local.detach(BOX)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (os.geteuid(), 0o600)
    await local.attach(OTHER)
    await local.attach(THIRD)
    assert os.getxattr(path, "system.posix_acl_access") == acl.render([70002, 70003])
    assert path.stat().st_uid == os.geteuid()
    await local.detach(OTHER)
    assert os.getxattr(path, "system.posix_acl_access") == acl.render([70003])
    await local.detach(THIRD)
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_reader_reads_and_nobody_else_does(local, database):
    await used(local, database, OTHER, VolumeRequest(DB), readonly=True)
    path = (await local.attach(OTHER))[DB].path
    root = path.parent.parent
    while root != root.parent:  # pytest's directories are root's alone
        root.chmod(root.stat().st_mode | 0o011)
        root = root.parent

    def may(uid, flags):
        return (
            subprocess.run(
                [
                    "setpriv",
                    f"--reuid={uid}",
                    "--regid=70000",
                    "--clear-groups",
                    "sh",
                    "-c",
                    f": {flags} {path}",
                ],
                check=False,
                capture_output=True,
            ).returncode
            == 0
        )

    assert may(70002, "<")
    assert not may(70002, ">>")
    assert not may(70001, "<")


async def test_what_is_half_made_or_half_removed_goes_at_the_start_and_no_other(local, database, tmp_path):
    await local.create(VolumeRequest(DB))
    root = tmp_path / "volumes"
    (kept,) = directories(root)
    unknown = "0" * 32
    for name in (unknown, f"{unknown}.new", f"{unknown}.gone", "somebody-elses"):
        (root / name).mkdir()
        (root / name / "disk.img").write_bytes(b"data")
    again = await opened(database, root)
    again.close()
    assert directories(root) == sorted([kept, unknown, "somebody-elses"])
    assert (await local.get(DB)).volume.path.is_file()


async def test_whatever_a_guest_made_in_a_shared_volume_it_is_listed_and_removed(local):
    made = await local.create(VolumeRequest(DB, filesystem=SHARED))
    dig(made.path / "deep", 2500)
    assert [view.volume.name for view in await local.list()] == [DB]
    assert (await local.get(DB)).volume.name == DB
    assert await local.remove(DB)
    assert not made.path.parent.exists()


async def test_what_cannot_be_swept_away_keeps_nobody_from_starting(local, database, tmp_path, monkeypatch):
    root = tmp_path / "volumes"
    (root / f"{'f' * 32}.gone").mkdir()
    removing = files.remove_tree

    def failing(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(files, "remove_tree", failing)
    (await opened(database, root)).close()
    monkeypatch.setattr(files, "remove_tree", removing)
    (await opened(database, root)).close()
    assert directories(root) == []


async def test_who_has_volumes_attached_is_known_without_any_size(volumes, database):
    await used(volumes, database, BOX, VolumeRequest(DB))
    assert await volumes.attached() == set()
    await volumes.attach(BOX)
    assert await volumes.attached() == {BOX}


async def test_records_that_are_lost_cost_no_volume(local, tmp_path):
    path = (await local.create(VolumeRequest(DB))).path
    fresh = Database(tmp_path / "fresh.sqlite")
    await fresh.open()
    (await opened(fresh, tmp_path / "volumes")).close()
    await fresh.close()
    assert path.is_file()


async def test_it_has_its_name_when_it_is_whole_and_none_any_more_when_it_goes(local, monkeypatch, tmp_path):
    seen = []
    run, remove_tree = process.run, files.remove_tree

    async def running(argv, **fields):
        seen.append(directories(tmp_path / "volumes"))
        return await run(argv, **fields)

    def removing(path):
        seen.append(directories(tmp_path / "volumes"))
        remove_tree(path)

    monkeypatch.setattr("hyperd.storage.formatting.process.run", running)
    volume_id = (await local.create(VolumeRequest(DB))).path.parent.name
    monkeypatch.setattr("hyperd.storage.volume_files.files.remove_tree", removing)
    await local.remove(DB)
    assert seen[:2] == [[f"{volume_id}.new"], [f"{volume_id}.gone"]]
    assert directories(tmp_path / "volumes") == []


async def test_a_format_that_fails_leaves_nothing(local, monkeypatch, tmp_path):
    async def failing(argv, **_):
        return process.Finished(tuple(argv), 1, b"", b"mke2fs: bad luck")

    monkeypatch.setattr("hyperd.storage.formatting.process.run", failing)
    with pytest.raises(UnavailableError, match="cannot be formatted"):
        await local.create(VolumeRequest(DB))
    assert directories(tmp_path / "volumes") == []
    assert await local.list() == []


async def test_a_caller_who_goes_leaves_nothing(local, monkeypatch, tmp_path):
    entered = asyncio.Event()

    async def hanging(*_, **__):
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("hyperd.storage.formatting.process.run", hanging)
    task = asyncio.create_task(local.create(VolumeRequest(DB)))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert directories(tmp_path / "volumes") == []


async def test_two_who_make_the_same_volume_have_the_same(local, database, tmp_path):
    await asyncio.gather(*(used(local, database, box, VolumeRequest(DB)) for box in (BOX, OTHER)))
    assert len((await local.get(DB)).users) == 2
    assert len(directories(tmp_path / "volumes")) == 1


async def test_without_space_nothing_is_made(database, tmp_path):
    async with small_filesystem(tmp_path / "small", size_mib=32) as directory:
        volumes = await opened(database, directory / "volumes")
        with pytest.raises(ExhaustedError, match="no space for a volume"):
            await volumes.create(VolumeRequest(DB))
        assert directories(directory / "volumes") == []
        volumes.close()
