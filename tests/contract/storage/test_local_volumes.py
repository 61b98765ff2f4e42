# SPDX-License-Identifier: Apache-2.0
"""One body, two subjects: the fake and real sparse files with records in SQLite."""

import pytest

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.volume import SHARED, XFS, VolumeName, VolumeRequest
from tests.contract.storage.volumes import BOX, DB, OTHER, SMALL, THIRD, used


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


async def test_one_that_is_there_is_what_its_container_asked_for_or_refused(volumes, database):
    await volumes.create(VolumeRequest(DB, 32 << 20, labels={"team": "web"}))
    nbd = {"server": "127.0.0.1", "export": "disk"}
    for other in (VolumeRequest(DB, 64 << 20), VolumeRequest(DB, driver="nbd", options=nbd)):
        with pytest.raises(ExistsError):
            await used(volumes, database, BOX, other)
    for driver in ("", "local"):
        with pytest.raises(InvalidError, match="the driver local has no option 'export'"):
            await used(volumes, database, BOX, VolumeRequest(DB, driver=driver, options=nbd))
    assert (await volumes.get(DB)).users == ()
    await used(volumes, database, BOX, VolumeRequest(DB, 32 << 20, driver="local", labels={"team": "db"}))
    await used(volumes, database, OTHER, VolumeRequest(DB))
    assert (await volumes.get(DB)).volume.labels == {"team": "web"}


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


async def test_some_of_its_volumes_are_attached_whoever_has_the_others(volumes, database):
    other = VolumeName("other")
    for box in (BOX, OTHER):
        await used(volumes, database, box, VolumeRequest(DB), VolumeRequest(other))
    await volumes.attach(BOX, only={other})
    assert set(await volumes.attach(OTHER, only={DB})) == {DB}
    assert [user.attached for user in (await volumes.get(DB)).users] == [False, True]
    with pytest.raises(WrongStateError, match="box-b"):
        await volumes.attach(BOX)
    await volumes.detach(OTHER)
    assert set(await volumes.attach(BOX)) == {DB, other}


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


async def test_a_volume_is_lent_to_one_who_is_no_container(volumes, database):
    await volumes.create(VolumeRequest(DB, SMALL))
    lent = await volumes.lend(BOX, "volume-init", DB)
    assert lent.name == DB
    (user,) = (await volumes.get(DB)).users
    assert (user.name, user.readonly, user.attached) == ("volume-init", False, True)
    await used(volumes, database, OTHER, VolumeRequest(DB))
    for call in (volumes.attach(OTHER), volumes.remove(DB)):
        with pytest.raises(WrongStateError, match="is being filled") as refused:
            await call
        assert "volume init" in refused.value.hint
    await volumes.release(OTHER)
    with pytest.raises(WrongStateError, match="is being filled"):
        await volumes.lend(OTHER, "volume-init", DB)
    assert len((await volumes.get(DB)).users) == 1
    await volumes.release(BOX)
    assert (await volumes.get(DB)).users == ()
    with pytest.raises(NotFoundError):
        await volumes.lend(BOX, "volume-init", VolumeName("none"))


async def test_who_has_volumes_attached_is_known_without_any_size(volumes, database):
    await used(volumes, database, BOX, VolumeRequest(DB))
    assert await volumes.attached() == set()
    await volumes.attach(BOX)
    assert await volumes.attached() == {BOX}
