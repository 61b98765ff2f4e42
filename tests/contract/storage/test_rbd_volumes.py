# SPDX-License-Identifier: Apache-2.0
"""Volumes in a real Ceph cluster, with its keys: who has them, who sees them, and what is told."""

import os
import pwd
import signal
import socket
import subprocess
import uuid
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
from hyperd.model.volume import RBD, VolumeName, VolumeRequest
from hyperd.storage import nbd
from hyperd.storage.remote_disks import RbdDisk
from hyperd.storage.remote_rules import parse
from tests.ceph import IMAGE, POOL, ceph_cluster
from tests.contract.storage.doored import BOX, DB, OTHER, OWNERS, opened
from tests.fakes.world import eventually
from tests.iscsi import own_processes

MIB = 64


@pytest.fixture(scope="module")
def ceph(tmp_path_factory):
    with ceph_cluster(tmp_path_factory.mktemp("ceph")) as cluster:
        yield cluster


@pytest.fixture
def image(ceph):
    """Of a name of its own, in the one cluster of all tests."""
    name = f"{IMAGE}-{uuid.uuid4()}"
    ceph.make_image(name, MIB)
    return name


@pytest.fixture
def key_file(ceph, tmp_path):
    path = tmp_path / "key"
    path.write_text(ceph.key + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def request_of(ceph, image, key_file):
    def request(name=DB, **more):
        return VolumeRequest(
            name, driver=RBD, options=ceph.options(key_file) | {"image": image} | _words(more)
        )

    return request


def _words(options):
    return {key.replace("_", "-"): value for key, value in options.items()}


@pytest_asyncio.fixture
async def volumes(tmp_path):
    database = Database(tmp_path / "records.sqlite")
    await database.open()
    subject = opened(database, tmp_path)
    await subject.open()
    yield subject
    await subject.keep_only([], [])
    subject.close()
    await database.close()
    assert own_processes(tmp_path / "run") == []


async def test_an_image_is_formatted_on_request_lent_and_used_as_it_is(
    volumes, ceph, image, request_of, tmp_path
):
    with pytest.raises(InvalidError, match="holds no ext4"):
        await volumes.create(request_of())
    made = await volumes.create(request_of(format="true"))
    assert (made.driver, made.size_bytes, made.export) == (RBD, MIB << 20, None)
    assert made.server == f"rbd://127.0.0.1/{POOL}/{image}"
    ceph.ask("rbd", "export", f"{POOL}/{image}", str(tmp_path / "copy.img"))
    subprocess.run(["e2fsck", "-f", "-n", tmp_path / "copy.img"], check=True, capture_output=True)
    assert own_processes(tmp_path / "run") == [], "nobody is left of its making"
    lent = await volumes.lend(BOX, "volume-init", DB)
    assert (await nbd.describe(lent.export)).size_bytes == MIB << 20
    assert (await volumes.attach(BOX))[DB] == lent, "once more is the same"
    assert len(own_processes(tmp_path / "run")) == 1
    await volumes.release(BOX)
    assert ceph.watchers(image) == 0, "it hung up, and was not only killed: its lock is nobody's"
    assert (await volumes.create(request_of())).size_bytes == MIB << 20
    assert await volumes.remove(DB)


async def test_what_a_vm_flushes_is_in_the_cluster(volumes, ceph, image, request_of, tmp_path):
    await volumes.create(request_of(format="true"))
    lent = await volumes.lend(BOX, "volume-init", DB)
    commands = ("-c", "write -P 7 1M 64k", "-c", "flush")
    subprocess.run(
        ["qemu-io", "-t", "writeback", "-f", "raw", *commands, str(lent.export)],
        check=True,
        capture_output=True,
    )
    (pid,) = own_processes(tmp_path / "run")
    os.kill(pid, signal.SIGKILL)  # what it had in memory alone is gone
    ceph.ask("rbd", "export", f"{POOL}/{image}", str(tmp_path / "copy.img"))
    assert (tmp_path / "copy.img").read_bytes()[1 << 20 : (1 << 20) + (64 << 10)] == b"\7" * (64 << 10)


async def test_a_key_is_with_nobody_but_the_one_who_needs_it(
    volumes, ceph, request_of, key_file, tmp_path, caplog
):
    made = await volumes.create(request_of(format="true"))
    lent = await volumes.lend(BOX, "volume-init", DB)
    (pid,) = own_processes(tmp_path / "run")
    inside = Path(f"/proc/{pid}")
    assert inside.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    status = (inside / "status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert lent.export.socket.stat().st_uid == OWNERS[BOX][0]
    secret = ceph.key.encode()
    assert secret not in (inside / "cmdline").read_bytes() + (inside / "environ").read_bytes()
    files = (path for path in tmp_path.rglob("*") if path.is_file() and path != key_file)
    assert [path.name for path in files if secret in path.read_bytes()] == []
    assert ceph.key not in caplog.text + repr(made) + repr(lent) + str(lent.export)


async def test_a_key_that_is_wrong_or_missing_is_told_and_nothing_stays(
    volumes, ceph, request_of, key_file, tmp_path
):
    wrong = ceph.key[:-10] + ("B" if ceph.key[-10] == "A" else "A") + ceph.key[-9:]
    key_file.write_text(wrong)
    with pytest.raises(UnavailableError, match="the server cannot be used") as raised:
        await volumes.create(request_of(format="true"))
    assert "error connecting: Permission denied" in raised.value.evidence
    assert wrong not in str(raised.value)
    assert "key" in raised.value.hint
    for text in ("", "two\nlines", "a b", "[client.hyper]"):
        key_file.write_text(text)
        with pytest.raises(InvalidError, match="is no key"):
            await volumes.create(request_of(format="true"))
    key_file.unlink()
    with pytest.raises(NotFoundError):
        await volumes.create(request_of(format="true"))
    assert await volumes.list() == []


async def test_a_user_without_a_key_is_not_let_in(volumes, request_of):
    wanted = request_of(format="true")
    del wanted.options["user"], wanted.options["key-file"]
    with pytest.raises(UnavailableError, match="the server cannot be used"):
        await volumes.create(wanted)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ({"pool": "none"}, "error opening pool none: No such file"),
        ({"image": "none"}, "error reading header from none: No such file"),
        ({"user": "nobody"}, "error connecting"),
    ],
)
async def test_what_is_not_there_is_told_as_the_cluster_tells_it(volumes, request_of, missing, told):
    with pytest.raises(UnavailableError, match="the server cannot be used") as raised:
        await volumes.create(request_of(**missing))
    assert told in raised.value.evidence
    assert await volumes.list() == []


async def test_a_monitor_that_is_silent_or_not_there_is_told_in_time(volumes, request_of):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(TimeoutExpiredError):
            await volumes.create(request_of(server=f"127.0.0.1:{port}"))
    with pytest.raises(TimeoutExpiredError):
        await volumes.create(request_of(server=f"127.0.0.1:{port}"))
    assert await volumes.list() == []


async def test_one_monitor_that_is_there_is_enough(volumes, request_of):
    server = "127.0.0.1:1,127.0.0.1"
    assert (await volumes.create(request_of(server=server, format="true"))).size_bytes == MIB << 20


async def test_a_store_that_stands_still_keeps_nobody_for_ever(volumes, ceph, image, request_of, tmp_path):
    await volumes.create(request_of(format="true"))
    await volumes.lend(BOX, "volume-init", DB)
    with ceph.standing_still():
        with pytest.raises(WrongStateError, match="is being filled"):
            await volumes.lend(OTHER, "volume-init", DB)
        await volumes.release(BOX)
        assert own_processes(tmp_path / "run") == []
        with pytest.raises(TimeoutExpiredError):
            await volumes.lend(OTHER, "volume-init", DB)
        await volumes.release(OTHER)
    await eventually(lambda: ceph.watchers(image) == 0)
    assert (await volumes.lend(OTHER, "volume-init", DB)).export is not None


async def test_an_image_is_one_volume_whichever_monitors_name_it(volumes, request_of):
    await volumes.create(request_of(format="true"))
    for server in ("localhost:3300", "10.0.0.1,[::1]", "127.0.0.1:6789"):
        with pytest.raises(ExistsError, match="is volume db already"):
            await volumes.create(request_of(VolumeName("other"), server=server, format="true"))
    with pytest.raises(ExistsError, match="lies elsewhere"):
        await volumes.create(request_of(image="another"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"server": "host", "pool": "p"},
        {"server": "host", "image": "i"},
        {"server": "host", "pool": "p,conf=x", "image": "i"},
        {"server": "host", "pool": "p", "image": "i@snapshot"},
        {"server": "host", "pool": "p", "image": "i", "namespace": "a/b"},
        {"server": "host,", "pool": "p", "image": "i"},
        {"server": "host:0", "pool": "p", "image": "i"},
        {"server": ",".join(["host"] * 16), "pool": "p", "image": "i"},
        {"server": "host", "pool": "p", "image": "i", "user": "bob"},
        {"server": "host", "pool": "p", "image": "i", "key-file": "/k"},
        {"server": "host", "pool": "p", "image": "i", "user": "client.bob", "key-file": "/k"},
        {"server": "host", "pool": "p", "image": "i", "user": "bob", "key-file": "k"},
        {"server": "host", "pool": "p", "image": "i", "user": "bob", "key": "secret"},
        {"server": "host", "pool": "p", "image": "i", "lun": "1"},
    ],
)
def test_what_no_cluster_can_be_asked_for_is_refused(options):
    with pytest.raises(InvalidError):
        parse(RBD, options, "volume db")


def test_monitors_are_named_with_and_without_ports():
    options = {"server": "a,10.0.0.1:6789,[fd00::1],[fd00::2]:3300", "pool": "p", "image": "i"}
    server, is_to_format = parse(RBD, options | {"namespace": "n"}, "volume db")
    assert not is_to_format
    assert isinstance(server.disk, RbdDisk)
    assert server.disk.monitor_addresses == "a,10.0.0.1:6789,[fd00::1],[fd00::2]:3300"
    assert str(server).endswith("/p/n/i")
