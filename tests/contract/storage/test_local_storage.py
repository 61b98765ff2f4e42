# SPDX-License-Identifier: Apache-2.0
"""One body, two subjects: the fake and real sparse files made by mkfs.ext4."""

import asyncio
import os
import threading

import pytest

from hyperd.errors import ExhaustedError, InvalidError, NotFoundError, UnavailableError
from hyperd.host import process
from hyperd.model.vm import SandboxId
from hyperd.storage import LocalStorage
from tests.fakes.storage import FakeStorage, no_space
from tests.mounts import allocated_bytes, names_in, small_filesystem

BOX, OTHER = SandboxId("a" * 64), SandboxId("b" * 64)


@pytest.fixture(params=["fake", "local"])
def storage(request, tmp_path):
    if request.param == "fake":
        yield FakeStorage()
        return
    local = LocalStorage(tmp_path, size_bytes=1 << 30)
    yield local
    local.close()


@pytest.fixture
def local(tmp_path):
    subject = LocalStorage(tmp_path / "state", size_bytes=10 << 30)
    yield subject
    subject.close()


async def test_a_disk_is_made_once_and_removed_once(storage):
    await storage.prepare()
    disk = await storage.create_writable(BOX)
    assert disk.name == "writable.img"
    assert await storage.create_writable(BOX) == disk
    await storage.create_writable(OTHER)
    assert await storage.list_sandboxes() == {BOX, OTHER}
    await storage.remove(BOX)
    await storage.remove(BOX)
    assert await storage.list_sandboxes() == {OTHER}


async def test_an_adopted_disk_is_found_listed_and_removed_like_one_of_its_own(storage, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"saved")
    with pytest.raises(NotFoundError):
        await storage.writable_path(BOX)
    disk = await storage.adopt_writable(BOX, source)
    assert disk.name == "writable.img"
    assert await storage.writable_path(BOX) == disk
    assert await storage.create_writable(BOX) == disk
    assert await storage.list_sandboxes() == {BOX}
    await storage.remove(BOX)
    with pytest.raises(NotFoundError):
        await storage.writable_path(BOX)


async def test_an_adopted_disk_replaces_what_was_there_and_costs_its_data_alone(local, tmp_path):
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(700 << 20)
        file.write(b"saved")
    before = await local.create_writable(BOX)
    inode = before.stat().st_ino
    half_made = before.with_name(".writable.img.0badc0de.tmp")
    half_made.write_bytes(b"of a killed hyperd")
    disk = await local.adopt_writable(BOX, source)
    assert disk == before
    assert disk.stat().st_ino != inode
    assert (disk.stat().st_size, disk.stat().st_mode & 0o777) == (1 << 30, 0o600)
    assert allocated_bytes(disk) < 1 << 20
    assert names_in(disk.parent) == ["writable.img"]
    with disk.open("rb") as file:
        file.seek(700 << 20)
        assert file.read(6) == b"saved\0"


async def test_a_source_that_is_missing_leaves_the_disk_as_it_was(local, tmp_path):
    with pytest.raises(NotFoundError):
        await local.adopt_writable(OTHER, tmp_path / "none")
    assert await local.list_sandboxes() == set()
    disk = await local.create_writable(BOX)
    inode = disk.stat().st_ino
    with pytest.raises(NotFoundError):
        await local.adopt_writable(BOX, tmp_path / "none")
    assert (disk.stat().st_ino, names_in(disk.parent)) == (inode, ["writable.img"])


async def test_a_cancelled_adoption_replaces_no_disk_behind_its_caller(tmp_path):
    began, go_on = threading.Event(), threading.Event()

    def owner_of(_: SandboxId) -> tuple[int, int]:  # is asked for on the way, in the thread
        began.set()
        assert go_on.wait(10)
        return os.geteuid(), os.getegid()

    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    local = LocalStorage(tmp_path / "state", size_bytes=1 << 30, owner_of=owner_of)
    go_on.set()
    disk = await local.adopt_writable(BOX, old)
    began.clear()
    go_on.clear()
    adopting = asyncio.create_task(local.adopt_writable(BOX, new))
    await asyncio.to_thread(began.wait, 10)
    adopting.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await adopting
    assert go_on.is_set(), "the caller was let go while the thread still had the disk in hand"
    local.close()
    assert (disk.read_bytes(), names_in(disk.parent)) == (b"old", ["writable.img"])


async def test_a_source_too_big_for_the_filesystem_is_refused_with_the_arithmetic(tmp_path):
    (tmp_path / "source").write_bytes(bytes(range(256)) * 4096 * 16)
    async with small_filesystem(tmp_path / "small", size_mib=72) as root:
        local = LocalStorage(root)
        with pytest.raises(ExhaustedError, match=r"16 MiB are needed, 7[12] MiB are free, 64 MiB are kept"):
            await local.adopt_writable(BOX, tmp_path / "source")
        local.close()
        assert names_in(root / "sandboxes") == []


async def test_a_disk_can_be_adopted_from_another_filesystem(tmp_path, local):
    async with small_filesystem(tmp_path / "small", size_mib=8) as root:
        with (root / "source").open("wb") as file:
            file.truncate(1 << 30)
            file.seek(300 << 20)
            file.write(b"saved" * 1000)
        disk = await local.adopt_writable(BOX, root / "source")
    assert disk.stat().st_size == 1 << 30
    assert allocated_bytes(disk) < 1 << 20
    with disk.open("rb") as file:
        file.seek(300 << 20)
        assert file.read(5001) == b"saved" * 1000 + b"\0"


async def test_the_disk_is_an_empty_ext4_that_costs_next_to_nothing(local):
    disk = await local.create_writable(BOX)
    assert disk.stat().st_size == 10 << 30
    assert allocated_bytes(disk) < 512 << 10
    assert disk.stat().st_mode & 0o777 == 0o600
    await process.run_checked(["e2fsck", "-fn", str(disk)], timeout_s=60)


async def test_a_kernel_mounts_it_and_writes_little_of_its_own(local, tmp_path):
    disk = await local.create_writable(BOX)
    (tmp_path / "mnt").mkdir()
    work = 'mount -o loop "$0" "$1" && echo hello > "$1/file" && df --output=size -m "$1" | tail -1 && umount "$1"'
    argv = [
        "unshare",
        "--mount",
        "--propagation=private",
        "sh",
        "-ec",
        work,
        str(disk),
        str(tmp_path / "mnt"),
    ]
    finished = await process.run_checked(argv, timeout_s=30)
    assert int(finished.stdout) > 9_900
    assert allocated_bytes(disk) < 1 << 20
    await process.run_checked(["e2fsck", "-fn", str(disk)], timeout_s=60)


async def test_a_second_daemon_reuses_the_template_and_drops_others(local, tmp_path):
    await local.create_writable(BOX)
    [template] = (tmp_path / "state/templates").iterdir()
    before = template.stat()
    (tmp_path / "state/templates/.ext4-half.img.0.tmp").touch()
    again = LocalStorage(tmp_path / "state", size_bytes=10 << 30)
    await again.prepare()
    again.close()
    assert [template] == list((tmp_path / "state/templates").iterdir())
    assert template.stat().st_ino == before.st_ino


async def test_disks_made_at_once_are_all_whole(local):
    ids = [SandboxId(f"{number:064x}") for number in range(12)]
    async with asyncio.TaskGroup() as tasks:
        for sandbox_id in ids:
            tasks.create_task(local.create_writable(sandbox_id))
    assert await local.list_sandboxes() == set(ids)


async def test_what_other_rooms_keep_beside_the_disk_stays(local):
    disk = await local.create_writable(BOX)
    (disk.parent / "console.log").touch()
    await local.remove(BOX)
    assert names_in(disk.parent) == ["console.log"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 200, ".hidden"])
async def test_an_id_is_never_a_path(local, name):
    with pytest.raises(InvalidError):
        await local.create_writable(SandboxId(name))


async def test_a_full_filesystem_is_said_clearly_and_nothing_stays(tmp_path):
    async with small_filesystem(tmp_path / "small", size_mib=32) as root:
        local = LocalStorage(root)
        with pytest.raises(ExhaustedError, match="no space for a writable disk"):
            await local.create_writable(BOX)
        local.close()
        assert [path for path in root.rglob("*") if path.is_file()] == []
        assert names_in(root / "sandboxes") == []


async def test_without_mkfs_the_error_names_it(local, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnavailableError) as caught:
        await local.prepare()
    assert caught.value.subject == "mkfs.ext4"


async def test_the_fake_fails_when_told():
    storage = FakeStorage()
    storage.fail_next_create = no_space()
    with pytest.raises(ExhaustedError):
        await storage.create_writable(BOX)
    assert await storage.list_sandboxes() == set()


@pytest.mark.parametrize("earlier", [70001, 70003])
async def test_each_disk_belongs_to_its_sandboxs_user_also_after_the_configuration_changed(tmp_path, earlier):
    for uid in (earlier, 70001):
        uids = {BOX: uid, OTHER: 70002}
        local = LocalStorage(tmp_path, size_bytes=64 << 20, owner_of=owner_among(uids))
        try:
            for sandbox_id in (BOX, OTHER):
                status = (await local.create_writable(sandbox_id)).stat()
                assert (status.st_uid, status.st_gid) == (uids[sandbox_id], 70000)
                assert status.st_mode & 0o777 == 0o600
        finally:
            local.close()


async def test_an_adopted_disk_belongs_to_its_sandboxs_user(tmp_path):
    (tmp_path / "source").write_bytes(b"saved")
    local = LocalStorage(tmp_path, size_bytes=64 << 20, owner_of=owner_among({BOX: 70001}))
    status = (await local.adopt_writable(BOX, tmp_path / "source")).stat()
    local.close()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (70001, 70000, 0o600)


async def test_what_is_rolled_back_to_is_on_the_disk_before_the_run_ends(local, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(b"then")
    synced = []
    fsync = os.fsync

    def record(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("hyperd.host.files.os.fsync", record)
    await local.create_writable(BOX)
    staged = await local.stage_writable(BOX, source)
    assert synced[-1] == staged.stat().st_ino
    disk = await local.adopt_staged(BOX)
    assert synced[-1] == disk.parent.stat().st_ino


async def test_a_disk_that_is_lent_is_its_borrowers_until_it_is_asked_for_again(tmp_path):
    local = LocalStorage(tmp_path, size_bytes=64 << 20, owner_of=owner_among({BOX: 70001, OTHER: 70002}))
    try:
        disk = await local.create_writable(BOX)
        assert await local.lend_writable(BOX, OTHER) == disk
        assert (disk.stat().st_uid, disk.stat().st_mode & 0o777) == (70002, 0o600)
        await local.create_writable(BOX)
        assert disk.stat().st_uid == 70001
    finally:
        local.close()


async def test_a_disk_that_is_not_there_is_lent_to_nobody(storage):
    with pytest.raises(NotFoundError):
        await storage.lend_writable(BOX, OTHER)


@pytest.mark.parametrize("made", ["create", "adopt", "stage"])
async def test_what_a_killed_hyperd_had_half_made_is_known_and_goes(local, tmp_path, monkeypatch, made):
    """Whichever file it was at: the copy has a name of its own until it is whole."""
    source = tmp_path / "source"
    source.write_bytes(b"then")
    await local.prepare()
    if made == "stage":
        await local.create_writable(BOX)
    with monkeypatch.context() as killed:
        killed.setattr("pathlib.Path.rename", _die)
        killed.setattr("hyperd.host.files.remove_tree", _die)
        killed.setattr("pathlib.Path.unlink", _die)
        with pytest.raises(KilledError):
            await {
                "create": lambda: local.create_writable(BOX),
                "adopt": lambda: local.adopt_writable(BOX, source),
                "stage": lambda: local.stage_writable(BOX, source),
            }[made]()
    directory = tmp_path / "state/sandboxes" / BOX
    assert len(names_in(directory)) == (2 if made == "stage" else 1)
    assert await local.list_sandboxes() == {BOX}
    await local.discard_all_staged({BOX})
    assert len(names_in(directory)) == (2 if made == "stage" else 1)
    await local.discard_all_staged({OTHER})
    assert names_in(directory) == (["writable.img"] if made == "stage" else [])
    await local.remove(BOX)
    assert names_in(tmp_path / "state/sandboxes") == []


async def test_what_is_staged_goes_unless_somebody_goes_on_with_it(local, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"then")
    for sandbox_id in (BOX, OTHER):
        await local.create_writable(sandbox_id)
        await local.stage_writable(sandbox_id, source)
    await local.discard_all_staged({BOX})
    assert (await local.adopt_staged(BOX)).read_bytes() == b"then"
    with pytest.raises(NotFoundError):
        await local.adopt_staged(OTHER)
    assert await local.list_sandboxes() == {BOX, OTHER}


class KilledError(Exception):
    """Stands for the end of hyperd."""


def _die(*_, **__):
    raise KilledError


def owner_among(uids):
    return lambda sandbox_id: (uids[sandbox_id], 70000)


async def test_what_is_staged_is_the_disk_when_it_is_adopted_and_not_before(local, tmp_path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"then")
    disk = await local.create_writable(BOX)
    before = disk.read_bytes()
    staged = await local.stage_writable(BOX, source)
    assert disk.read_bytes() == before
    with staged.open("r+b") as opened:  # by a VM
        assert await local.adopt_staged(BOX) == disk
        opened.write(b"else")
    assert disk.read_bytes() == b"else"
    with pytest.raises(NotFoundError):
        await local.adopt_staged(BOX)
    staged = await local.stage_writable(BOX, source)
    await local.discard_staged(BOX)
    await local.discard_staged(BOX)
    assert not staged.exists()
    await local.stage_writable(BOX, source)
    await local.remove(BOX)
    assert not disk.parent.exists()
