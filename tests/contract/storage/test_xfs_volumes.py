# SPDX-License-Identifier: Apache-2.0
"""Volumes with XFS, and hosts that cannot make a file system."""

import subprocess

import pytest

from hyperd.errors import ExistsError, InvalidError, UnavailableError
from hyperd.model.volume import XFS, VolumeName, VolumeRequest
from tests.contract.storage.volumes import DB, SMALL, detached, directories
from tests.mounts import allocated_bytes

NEW = VolumeName("new")
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
