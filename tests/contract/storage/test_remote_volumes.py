# SPDX-License-Identifier: Apache-2.0
"""Volumes that a server has: a disk of our own that loses power, and qemu-nbd, both on loopback."""

import asyncio
import contextlib
import os
import socket
import subprocess
from dataclasses import replace

import pytest
import pytest_asyncio

from hyperd.errors import (
    DeniedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.host.database import Database
from hyperd.model.vm import NbdExport, SandboxId
from hyperd.model.volume import NBD, XFS, VolumeName, VolumeRequest
from hyperd.storage import LocalVolumes, nbd
from hyperd.storage import volume_records as records
from tests.contract.storage.volumes import used
from tests.harness import wait_until
from tests.losing import losing_disk

BOX = SandboxId("a" * 64)
DB = VolumeName("db")
SIZE = 64 << 20


@pytest_asyncio.fixture
async def volumes(tmp_path):
    database = Database(tmp_path / "records.sqlite")
    await database.open()
    subject = LocalVolumes(tmp_path / "volumes", database, owner_of=lambda _: (70001, 70000))
    await subject.open()
    yield subject
    subject.close()
    await database.close()


@pytest.fixture
def disk(tmp_path):
    with losing_disk(tmp_path / "served.img", SIZE) as served:
        yield served


def request(port, name=DB, **options):
    wanted = {"server": f"127.0.0.1:{port}", "export": "disk"} | options
    return VolumeRequest(name, driver=NBD, options=wanted)


@contextlib.contextmanager
def qemu_nbd(path, *flags, at=0):
    """A real server, until the block ends."""
    with socket.create_server(("127.0.0.1", at)) as free:
        port = free.getsockname()[1]
    argv = ["qemu-nbd", "-f", "raw", "-x", "disk", "-b", "127.0.0.1", "-p", str(port), "-t", *flags, path]
    with subprocess.Popen(argv) as server:

        def answers():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_until(answers, "qemu-nbd answers")
            yield port
        finally:
            server.kill()


def require_ext4(path):
    subprocess.run(["e2fsck", "-f", "-n", path], check=True, capture_output=True)


async def test_a_servers_disk_is_formatted_on_request_and_used_as_it_is(volumes, disk, tmp_path):
    made = await volumes.create(request(disk.port, format="true"))
    assert (made.driver, made.size_bytes) == (NBD, SIZE)
    assert made.server == f"nbd://127.0.0.1:{disk.port}/disk"
    assert disk.pending_pages == 0  # all of it is on the server's disk, and not with its memory alone
    require_ext4(disk.path)
    assert [path.name for path in (tmp_path / "volumes").iterdir() if path.name[0] != "."] == []
    before = disk.path.read_bytes()
    assert await volumes.create(request(disk.port, format="true")) == made
    assert disk.path.read_bytes() == before
    (view,) = await volumes.list()
    assert (view.volume, view.allocated_bytes) == (made, 0)
    lent = await volumes.lend(BOX, "volume-init", DB)
    assert lent.export == NbdExport("127.0.0.1", disk.port, "disk")
    await volumes.release(BOX)
    with pytest.raises(UnsupportedError, match="as large as its server says"):
        await volumes.grow(DB, 2 * SIZE)
    with pytest.raises(ExistsError, match="lies elsewhere"):
        await volumes.create(VolumeRequest(DB))
    assert await volumes.remove(DB)
    assert disk.path.read_bytes() == before  # what the server has is the server's


async def test_a_blank_export_is_refused_before_a_guest_meets_it(volumes, disk):
    with pytest.raises(InvalidError, match="holds no ext4") as raised:
        await volumes.create(request(disk.port))
    assert "format=true" in raised.value.hint
    assert await volumes.list() == []
    await volumes.create(request(disk.port, format="true"))
    assert await volumes.remove(DB)
    assert (await volumes.create(request(disk.port))).size_bytes == SIZE, "it is formatted now"


async def test_a_servers_disk_holds_an_xfs_where_that_is_asked_for(volumes, tmp_path):
    with losing_disk(tmp_path / "large.img", 320 << 20) as large:
        wanted = replace(request(large.port, format="true"), filesystem=XFS)
        assert (await volumes.create(wanted)).filesystem == XFS
        subprocess.run(["xfs_repair", "-n", large.path], check=True, capture_output=True)
        assert await volumes.remove(DB)
        with pytest.raises(InvalidError, match="holds no ext4") as raised:
            await volumes.create(request(large.port))
        assert "--fs" in raised.value.hint
        assert (await volumes.create(replace(request(large.port), filesystem=XFS))).filesystem == XFS


async def test_a_servers_disk_that_is_too_small_for_an_xfs_is_not_formatted(volumes, disk):
    before = disk.path.read_bytes()
    with pytest.raises(InvalidError, match="not between 300 MiB"):
        await volumes.create(replace(request(disk.port, format="true"), filesystem=XFS))
    assert disk.path.read_bytes() == before


async def test_a_servers_disk_is_one_volume_and_is_formatted_by_one(volumes, disk):
    wanted = request(disk.port, format="true")
    results = await asyncio.gather(volumes.create(wanted), volumes.create(wanted), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Volume", "WrongStateError"]
    before = disk.path.read_bytes()
    for options in ({}, {"format": "true"}):
        with pytest.raises(ExistsError, match="is volume db already"):
            await volumes.create(request(disk.port, VolumeName("other"), **options))
    assert disk.path.read_bytes() == before


async def test_a_server_is_the_same_however_it_is_spelled(volumes, disk):
    wanted = request(disk.port, format="true")
    made = await volumes.create(wanted)
    for host in ("localhost", "LOCALHOST.", "[::1]", "[::FFFF:7f00:1]", "[0:0:0:0:0:0:0:1]", "0.0.0.0"):
        spelled = {"server": f"{host}:{disk.port}"}
        with pytest.raises(ExistsError, match="is volume db already"):
            await volumes.create(request(disk.port, VolumeName("other"), **spelled))
        assert await volumes.create(request(disk.port, **spelled)) == made
    for other in ({"server": f"127.0.0.2:{disk.port + 1}"}, {"server": "[::2]"}, {"export": "other"}):
        with pytest.raises(ExistsError, match="lies elsewhere"):
            await volumes.create(request(disk.port, **other))


async def test_two_names_that_an_older_hyperd_gave_a_disk_are_not_written_to_by_two(
    volumes, disk, monkeypatch
):
    await volumes.create(request(disk.port, format="true"))
    with monkeypatch.context() as older:
        older.setattr(records, "require_nobodys", lambda *_: None)
        await volumes.create(request(disk.port, VolumeName("other")))
    await volumes.lend(BOX, "volume-init", DB)
    with pytest.raises(WrongStateError, match="is being filled"):
        await volumes.lend(SandboxId("b" * 64), "volume-init", VolumeName("other"))


async def test_what_is_to_be_written_to_is_on_a_server_that_lets_one_write_and_flushes(volumes, monkeypatch):
    export = nbd.Export(SIZE, readonly=False, flushes=True)

    async def describe(*_):
        return export

    async def read_start(*_):
        return bytes(1024 + 0x38) + b"\x53\xef" + bytes(nbd.START_BYTES)

    monkeypatch.setattr(nbd, "describe", describe)
    monkeypatch.setattr(nbd, "read_start", read_start)
    await volumes.create(request(10809))
    export = replace(export, flushes=False)
    with pytest.raises(UnsupportedError, match="does not flush"):
        await volumes.lend(BOX, "volume-init", DB)
    export = replace(export, flushes=True, readonly=True)
    with pytest.raises(DeniedError, match="lets nobody write"):
        await volumes.lend(BOX, "volume-init", DB)
    assert (await volumes.get(DB)).users == ()


async def test_a_real_server_is_understood(volumes, tmp_path):
    path = tmp_path / "served.img"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(SIZE + 512)
    with qemu_nbd(path) as port:
        made = await volumes.create(request(port, format="true"))
        assert made.size_bytes == SIZE
        with pytest.raises(NotFoundError, match="no such export"):
            await volumes.create(
                VolumeRequest(VolumeName("other"), driver=NBD, options=request(port, export="x").options)
            )
        assert await volumes.remove(DB)
        assert await volumes.create(request(port)) is not None, "as it is"
    require_ext4(path)
    with qemu_nbd(path, "--read-only") as port:
        assert (await nbd.describe(NbdExport("127.0.0.1", port, "disk"))).readonly
        with pytest.raises(DeniedError, match="lets nobody write"):
            await volumes.create(request(port, VolumeName("other")))


async def test_a_server_that_is_not_there_or_does_not_answer_is_told_in_time(volumes, disk, monkeypatch):
    await volumes.create(request(disk.port, format="true"))
    disk.close()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await volumes.lend(BOX, "volume-init", DB)
    assert (await volumes.get(DB)).users == ()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(TimeoutExpiredError, match="did not answer"),
    ):
        await nbd.describe(NbdExport("127.0.0.1", silent.getsockname()[1], "disk"), deadline_s=0.2)


async def test_a_disk_is_as_large_as_its_server_says_by_now_and_never_smaller(volumes, tmp_path):
    path = tmp_path / "served.img"
    path.touch()
    os.truncate(path, SIZE)
    with qemu_nbd(path) as port:
        await volumes.create(request(port, format="true"))
    wanted = request(port)
    for size, told in ((2 * SIZE, 2 * SIZE), (SIZE, None)):
        os.truncate(path, size)
        with qemu_nbd(path, at=port):
            if told is None:
                with pytest.raises(WrongStateError, match="has become smaller"):
                    await volumes.lend(BOX, "volume-init", DB)
            else:
                assert (await volumes.lend(BOX, "volume-init", DB)).size_bytes == told
            await volumes.release(BOX)
            assert (await volumes.create(wanted)).size_bytes == 2 * SIZE


async def test_a_container_may_ask_for_a_servers_disk_that_is_no_volume_yet(volumes, disk, tmp_path):
    database = volumes._database
    await used(volumes, database, BOX, request(disk.port, format="true"))
    assert (await volumes.get(DB)).volume.driver == NBD
    other = SandboxId("b" * 64)
    await used(volumes, database, other, VolumeRequest(DB, driver=NBD))
    with pytest.raises(ExistsError, match="lies elsewhere"):
        await used(volumes, database, SandboxId("c" * 64), request(disk.port, export="another"))


async def test_a_server_that_takes_a_file_system_too_slowly_is_told(volumes, disk, monkeypatch):
    monkeypatch.setattr("hyperd.storage.remote.SEND_TIMEOUT_S", 0)
    monkeypatch.setattr("hyperd.storage.remote.SLOWEST_BYTES_PER_S", SIZE * 1000)
    with pytest.raises(TimeoutExpiredError, match="overwritten in part") as raised:
        await volumes.create(request(disk.port, format="true"))
    assert f"127.0.0.1:{disk.port}" in str(raised.value)
    assert await volumes.list() == []


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2p1 and so on\r\n",
        b"NBDMAGICIHAVEOPT\0\0",
        b"NBDMAGICIHAVEOPT\0\3" + b"\0" * 20,
        b"NBDMAGICIHAVEOPT\0\3" + bytes.fromhex("0003e889045565a9 00000006 00000003 ffffffff"),
        b"NBDMAGICIHAVEOPT\0\3" + bytes.fromhex("0003e889045565a9 00000006 00000001 00000000") * 20,
        b"NBDMAGIC",
    ],
)
async def test_a_server_that_talks_nonsense_is_refused(answer):
    async def talk(_, writer):
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((UnavailableError, UnsupportedError)):
            await nbd.describe(NbdExport("127.0.0.1", port, "disk"), deadline_s=2)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"options": {}}, InvalidError),
        ({"options": {"server": "host:99999"}}, InvalidError),
        ({"options": {"server": "host name"}}, InvalidError),
        ({"options": {"server": "host", "export": "a b"}}, InvalidError),
        ({"options": {"server": "host", "format": "yes"}}, InvalidError),
        ({"options": {"server": "host", "password": "x"}}, InvalidError),
        ({"options": {"server": "host"}, "size_bytes": SIZE}, InvalidError),
        ({"options": {"server": "host"}, "snapshot": "s"}, UnsupportedError),
        ({"options": {"server": "host"}, "filesystem": "zfs"}, UnsupportedError),
    ],
)
async def test_what_no_server_can_be_asked_for_is_refused(volumes, fields, kind):
    with pytest.raises(kind):
        await volumes.create(VolumeRequest(DB, driver=NBD, **fields))
    assert await volumes.list() == []


async def test_a_disk_that_loses_power_has_what_was_flushed_and_nothing_else(disk):
    """The server that other tests believe in."""
    url = f"nbd://127.0.0.1:{disk.port}/disk"
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", "-c", "flush", url],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    writer = subprocess.Popen(
        ["qemu-io", "-t", "writeback", "-f", "raw", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with writer:
        assert writer.stdin is not None
        writer.stdin.write("write -P 2 64k 64k\n")
        writer.stdin.flush()
        wait_until(lambda: disk.pending_pages == 16, "it was written")
        disk.lose_power()
        writer.kill()
    assert disk.lost_pages == 16
    assert disk.path.read_bytes()[: 128 << 10] == b"\1" * (64 << 10) + bytes(64 << 10)
