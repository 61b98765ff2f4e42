# SPDX-License-Identifier: Apache-2.0
"""Volumes on a real iSCSI server, with and without a password: who has it, who sees it, and what is told."""

import asyncio
import os
import pwd
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import pytest_asyncio

from hyperd.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.host.database import Database
from hyperd.model.volume import ISCSI, BrokenVolume, VolumeName, VolumeRequest
from hyperd.storage import nbd
from tests.contract.storage.doored import BOX, DB, OTHER, OWNERS, opened
from tests.fakes.world import eventually
from tests.iscsi import iscsi_server, options_of, own_processes

SIZE = 64 << 20
PASSWORD = "not-to-be-seen-1"


@pytest_asyncio.fixture
async def database(tmp_path):
    subject = Database(tmp_path / "records.sqlite")
    await subject.open()
    yield subject
    await subject.close()


@pytest_asyncio.fixture
async def volumes(database, tmp_path):
    subject = opened(database, tmp_path)
    await subject.open()
    yield subject
    await subject.keep_only([], [])
    subject.close()
    assert own_processes(tmp_path / "run") == []


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "served.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def server(disk):
    with iscsi_server(disk) as served:
        yield served


@pytest.fixture
def guarded(disk):
    with iscsi_server(disk, "bob", PASSWORD) as served:
        yield served


@pytest.fixture
def password(tmp_path):
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    path.chmod(0o600)
    return path


def request(served, name=DB, **more):
    return VolumeRequest(name, driver=ISCSI, options=options_of(served) | more)


async def test_a_unit_is_formatted_on_request_lent_and_used_as_it_is(volumes, server, disk, tmp_path):
    with pytest.raises(InvalidError, match="holds no ext4"):
        await volumes.create(request(server))
    made = await volumes.create(request(server, format="true"))
    assert (made.driver, made.size_bytes, made.export) == (ISCSI, SIZE, None)
    assert made.server == f"iscsi://127.0.0.1:{server.port}/iqn.2026-01.local.test:disk/1"
    subprocess.run(["e2fsck", "-f", "-n", disk], check=True, capture_output=True)
    assert own_processes(tmp_path / "run") == [], "nobody is left of its making"
    lent = await volumes.lend(BOX, "volume-init", DB)
    assert lent.export is not None
    assert (await nbd.describe(lent.export)).size_bytes == SIZE
    assert (await volumes.attach(BOX))[DB] == lent, "once more is the same"
    (pid,) = own_processes(tmp_path / "run")
    await volumes.release(BOX)
    assert not Path(f"/proc/{pid}").exists()
    await eventually(lambda: server.connections() == 0)
    assert (await volumes.create(request(server))).size_bytes == SIZE
    assert await volumes.remove(DB)


async def test_what_a_vm_flushes_is_at_the_server(volumes, server, disk):
    await volumes.create(request(server, format="true"))
    lent = await volumes.lend(BOX, "volume-init", DB)
    commands = ("-c", "write -P 7 1M 64k", "-c", "flush")
    subprocess.run(
        ["qemu-io", "-t", "writeback", "-f", "raw", *commands, str(lent.export)],
        check=True,
        capture_output=True,
    )
    assert disk.read_bytes()[1 << 20 : (1 << 20) + (64 << 10)] == b"\7" * (64 << 10)


async def test_a_password_is_with_nobody_but_the_one_who_needs_it(
    volumes, guarded, password, tmp_path, caplog
):
    wanted = request(guarded, user="bob", format="true")
    wanted.options["password-file"] = str(password)
    made = await volumes.create(wanted)
    lent = await volumes.lend(BOX, "volume-init", DB)
    (pid,) = own_processes(tmp_path / "run")
    inside = Path(f"/proc/{pid}")
    assert inside.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    status = (inside / "status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert lent.export.socket.stat().st_uid == OWNERS[BOX][0]
    secret = PASSWORD.encode()
    assert secret not in (inside / "cmdline").read_bytes() + (inside / "environ").read_bytes()
    files = (path for path in tmp_path.rglob("*") if path.is_file() and path not in (password,))
    assert [path.name for path in files if secret in path.read_bytes()] == []
    assert PASSWORD not in caplog.text + repr(made) + repr(lent) + str(lent.export)


async def test_a_password_that_is_wrong_or_missing_is_told_and_nothing_stays(
    volumes, guarded, password, tmp_path
):
    password.write_text("wrong-wrong-wrong")
    wanted = request(guarded, user="bob", format="true")
    wanted.options["password-file"] = str(password)
    for tried in (request(guarded, format="true"), wanted):
        with pytest.raises(UnavailableError, match="the server cannot be used") as raised:
            await volumes.create(tried)
        assert "Authentication failure" in raised.value.evidence
        assert PASSWORD not in str(raised.value)
    wanted.options["password-file"] = str(tmp_path / "none")
    with pytest.raises(NotFoundError):
        await volumes.create(wanted)
    password.write_text("two\nlines")
    wanted.options["password-file"] = str(password)
    with pytest.raises(InvalidError, match="is no password"):
        await volumes.create(wanted)
    password.unlink()
    os.mkfifo(password)
    async with asyncio.timeout(10):
        with pytest.raises(InvalidError, match="not a regular file"):
            await volumes.create(wanted)
    assert await volumes.list() == []


async def test_what_is_not_there_is_told_as_the_server_tells_it(volumes, server):
    with pytest.raises(UnavailableError) as raised:
        await volumes.create(request(server, target="iqn.2026-01.local.test:none"))
    assert "Target not found" in raised.value.evidence
    with pytest.raises(UnavailableError) as raised:
        await volumes.create(request(server, lun="9"))
    assert "LOGICAL_UNIT_NOT_SUPPORTED" in raised.value.evidence


async def test_a_server_that_is_silent_is_told_in_time(volumes, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        wanted = request(server, server=f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(TimeoutExpiredError):
            await volumes.create(wanted)


async def test_a_unit_is_one_volume_and_is_written_to_by_one(volumes, server):
    await volumes.create(request(server, format="true"))
    with pytest.raises(ExistsError, match="is volume db already"):
        await volumes.create(request(server, VolumeName("other"), server=f"localhost:{server.port}"))
    await volumes.lend(BOX, "volume-init", DB)
    with pytest.raises(WrongStateError, match="is being filled"):
        await volumes.lend(OTHER, "volume-init", DB)
    await volumes.release(BOX)
    await volumes.lend(OTHER, "volume-init", DB)


async def test_another_hyperd_finds_and_ends_it_with_its_vm(volumes, server, database, tmp_path):
    await volumes.create(request(server, format="true"))
    await volumes.lend(BOX, "volume-init", DB)
    (pid,) = own_processes(tmp_path / "run")
    later = opened(database, tmp_path)
    await later.open()
    await later.keep_only([BOX], [BOX])
    assert own_processes(tmp_path / "run") == [pid]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert (await later.wait_broken(BOX)).name == DB, "also who was killed while no hyperd looked"
    await later.keep_only([], [])
    assert own_processes(tmp_path / "run") == []
    later.close()


async def test_one_that_was_killed_is_told_and_made_anew_at_the_next_start(volumes, server, tmp_path):
    await volumes.create(request(server, format="true"))
    await volumes.lend(BOX, "volume-init", DB)
    (pid,) = own_processes(tmp_path / "run")
    breaking = asyncio.create_task(volumes.wait_broken(BOX))
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await breaking == BrokenVolume(DB, "")
    await volumes.release(BOX)
    assert (await volumes.lend(BOX, "volume-init", DB)).export is not None
    assert own_processes(tmp_path / "run") not in ([], [pid])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"server": "host"},
        {"server": "host", "target": "a,b"},
        {"server": "host", "target": "iqn.x", "lun": "-1"},
        {"server": "host", "target": "iqn.x", "lun": "99999"},
        {"server": "host", "target": "iqn.x", "user": "bob"},
        {"server": "host", "target": "iqn.x", "user": "b,ob", "password-file": "/p"},
        {"server": "host", "target": "iqn.x", "user": "bob", "password-file": "p"},
        {"server": "host", "target": "iqn.x", "password": "secret"},
        {"server": "host", "target": "iqn.x", "export": "disk"},
    ],
)
async def test_what_no_server_can_be_asked_for_is_refused(volumes, options):
    with pytest.raises(InvalidError):
        await volumes.create(VolumeRequest(DB, driver=ISCSI, options=options))
    assert await volumes.list() == []
