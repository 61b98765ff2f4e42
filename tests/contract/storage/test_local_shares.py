# SPDX-License-Identifier: Apache-2.0
"""One body, two subjects: the fake, and a real virtiofsd for each share; then what only the real one can be asked."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
import pytest_asyncio

from hyperd.config import StorageConfig
from hyperd.errors import HyperError, InvalidError, UnavailableError
from hyperd.host.complaints import KEPT_BYTES, Complaints
from hyperd.host.held import HeldProcess
from hyperd.model.share import ShareRequest
from hyperd.model.vm import SandboxId
from hyperd.storage import LocalShares, Places
from tests.fakes.shares import FakeShares
from tests.fakes.world import eventually
from tests.mounts import small_filesystem

BOX, OTHER = SandboxId("a" * 64), SandboxId("b" * 64)
PATIENCE_S = 20.0


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source/below").mkdir(parents=True)
    (tmp_path / "source/file").write_text("content")
    (tmp_path / "source/other").write_text("secret")
    return tmp_path / "source"


def opened(tmp_path, program=None):
    program = program or StorageConfig().virtiofsd
    return LocalShares(tmp_path / "run", program, Places([], [tmp_path / "state"]))


@pytest_asyncio.fixture
async def local(tmp_path):
    subject = opened(tmp_path)
    yield subject
    await subject.keep_only([])
    subject.close()
    assert processes(tmp_path) == {}


@pytest.fixture(params=["fake", "local"])
def shares(request):
    return FakeShares() if request.param == "fake" else request.getfixturevalue("local")


def processes(tmp_path):
    """Of whatever serves something below: pid -> parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and f"{tmp_path}/run".encode() in (entry / "cmdline").read_bytes():
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


async def serving(tmp_path, count):
    """Once each serves in its own namespaces: the pids of those that do, which are the children."""
    inner: list[int] = []

    def ready():
        known = processes(tmp_path)
        inner[:] = [pid for pid, parent in known.items() if parent in known]
        return len(inner) == count and all(in_enclosure(pid) for pid in inner)

    await eventually(ready, PATIENCE_S)
    return inner


def in_enclosure(pid):
    """It has come to where it stays: one mount, and no way to another (seccomp is the last thing that it does)."""
    with contextlib.suppress(OSError):
        return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
    return False


async def found(shares, *requests):
    return await shares.find(requests)


async def test_what_is_served_is_ended_once_and_for_all(shares, source):
    request = ShareRequest("bind0", str(source))
    ports = await shares.serve(BOX, await found(shares, request))
    assert [port.tag for port in ports] == ["bind0"]
    await shares.require_served(BOX)
    await shares.end(BOX)
    await shares.end(BOX)
    await shares.require_served(BOX)  # nothing is to be served


async def test_what_a_killed_hyperd_left_of_others_ends(shares, source):
    for sandbox_id in (BOX, OTHER):
        await shares.serve(sandbox_id, await found(shares, ShareRequest("bind0", str(source))))
    await shares.keep_only([OTHER])
    await shares.require_served(OTHER)
    await shares.end(OTHER)


async def test_what_is_not_there_is_made_or_refused(shares, source):
    gone = source / "gone"
    if isinstance(shares, FakeShares):
        shares.missing.add(str(gone))
    with pytest.raises(InvalidError, match="bind source path does not exist"):
        await shares.require_possible([ShareRequest("bind0", str(gone))])
    await shares.require_possible([ShareRequest("bind0", str(gone), create_source=True)])
    (share,) = await found(shares, ShareRequest("bind0", str(gone), create_source=True))
    assert not share.is_file


async def test_whoever_serves_finds_the_share_and_nothing_else_and_may_do_little(local, source, tmp_path):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    (pid,) = await serving(tmp_path, 1)
    root = Path(f"/proc/{pid}/root")
    assert sorted(path.name for path in root.iterdir()) == ["below", "file", "other"]
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    assert [line.split()[4] for line in mounts] == ["/"]
    assert {"nosuid", "nodev", "rw"} <= set(mounts[0].split()[5].split(","))
    status = Path(f"/proc/{pid}/status")
    # chown, dac_override, fowner, fsetid, setgid, setuid, setfcap: neither mknod nor anything over the system.
    await eventually(lambda: "CapPrm:\t00000000800000db" in status.read_text(), PATIENCE_S)
    assert "CapBnd:\t0000000000000000" in status.read_text()
    assert "NoNewPrivs:\t1" in status.read_text()
    for kind in ("mnt", "net", "pid"):
        ours, theirs = (Path(f"/proc/{who}/ns/{kind}").readlink() for who in ("self", pid))
        assert ours != theirs


async def test_read_only_is_so_on_the_host_whatever_virtiofsd_does(local, source, tmp_path):
    async with small_filesystem(source / "below", size_mib=1):
        await local.serve(BOX, await found(local, ShareRequest("bind0", str(source), readonly=True)))
        (pid,) = await serving(tmp_path, 1)
        for place in ("", "below/"):  # what is mounted below it, too
            with pytest.raises(OSError, match="Read-only file system"):
                Path(f"/proc/{pid}/root/{place}new").write_text("x")
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert len(mounts) == 2
        await local.end(BOX)
    assert sorted(path.name for path in source.iterdir()) == ["below", "file", "other"]


async def test_of_a_file_that_file_alone_is_there(local, source, tmp_path):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source / "file"))))
    (pid,) = await serving(tmp_path, 1)
    root = Path(f"/proc/{pid}/root")
    assert [path.name for path in root.iterdir()] == ["file"]
    assert (root / "file").read_text() == "content"
    (root / "file").write_text("changed")
    assert (source / "file").read_text() == "changed"
    with pytest.raises(OSError, match="Read-only file system"):
        (root / "new").write_text("x")


async def test_a_link_that_was_put_there_after_the_look_leads_nowhere(local, source, tmp_path):
    shares = await found(local, ShareRequest("bind0", str(source / "below")))
    (source / "below").rmdir()
    (source / "below").symlink_to(tmp_path)
    await local.serve(BOX, shares)
    broken = await asyncio.wait_for(local.wait_broken(BOX), PATIENCE_S)
    assert broken.tag == "bind0"
    assert "Too many levels of symbolic links" in broken.evidence
    with pytest.raises(UnavailableError, match="cannot be served") as caught:
        await local.require_served(BOX)
    assert str(source / "below") in caught.value.evidence


async def test_a_directory_that_became_a_file_is_not_served(local, source):
    shares = await found(local, ShareRequest("bind0", str(source / "below")))
    (source / "below").rmdir()
    (source / "below").write_text("x")
    await local.serve(BOX, shares)
    broken = await asyncio.wait_for(local.wait_broken(BOX), PATIENCE_S)
    assert "is no directory by now" in broken.evidence


@pytest.mark.parametrize("victim", ["outer", "inner"])
async def test_one_that_is_killed_is_noticed_and_leaves_no_half(local, source, tmp_path, victim):
    shares = await found(local, *(ShareRequest(f"bind{number}", str(source)) for number in range(2)))
    await local.serve(BOX, shares)
    inner = await serving(tmp_path, 2)
    watching = asyncio.ensure_future(local.wait_broken(BOX))
    pid = min(inner)
    os.kill(processes(tmp_path)[pid] if victim == "outer" else pid, signal.SIGKILL)
    broken = await asyncio.wait_for(watching, PATIENCE_S)
    assert broken.tag in {"bind0", "bind1"}
    await eventually(lambda: len(processes(tmp_path)) == 2, PATIENCE_S)


async def test_it_ends_with_the_qemu_that_it_serves(local, source, tmp_path):
    (port,) = await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    await serving(tmp_path, 1)
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(str(port.socket))
    broken = await asyncio.wait_for(local.wait_broken(BOX), PATIENCE_S)
    assert broken.tag == "bind0"
    await eventually(lambda: processes(tmp_path) == {}, PATIENCE_S)


async def test_another_hyperd_finds_watches_and_ends_it(local, source, tmp_path):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    await serving(tmp_path, 1)
    next_one = opened(tmp_path)
    await next_one.keep_only([BOX])
    await next_one.require_served(BOX)
    watching = asyncio.ensure_future(next_one.wait_broken(BOX))
    await next_one.end(BOX)
    await asyncio.wait_for(watching, PATIENCE_S)
    assert not (tmp_path / "run" / BOX[:12]).exists()
    next_one.close()
    await eventually(lambda: processes(tmp_path) == {}, PATIENCE_S)


async def test_whoever_serves_cannot_name_another_to_be_killed_in_its_stead(local, source, tmp_path):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    (pid,) = await serving(tmp_path, 1)
    lock = (tmp_path / "run" / BOX[:12] / "bind0.lock").resolve()
    flags = [
        int((Path(f"/proc/{pid}/fdinfo") / fd.name).read_text().split("flags:\t")[1].split()[0], 8)
        for fd in Path(f"/proc/{pid}/fd").iterdir()
        if str(fd.readlink()) == str(lock)
    ]
    assert [flag & os.O_ACCMODE for flag in flags] == [os.O_RDONLY]


def said_by(pid):
    """The file that its complaints go to, through a descriptor of its own."""
    return Path(f"/proc/{pid}/fd/2").open("r+b", buffering=0)


async def test_what_it_complains_of_takes_so_much_room_and_no_more(local, source, tmp_path):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    (pid,) = await serving(tmp_path, 1)
    with said_by(pid) as said:
        said.seek(KEPT_BYTES)
        with pytest.raises(PermissionError):
            said.write(b"x")
        assert os.fstat(said.fileno()).st_size == KEPT_BYTES
    names = sorted(path.name for path in (tmp_path / "run" / BOX[:12]).iterdir())
    assert names == ["bind0.lock", "bind0.place", "bind0.sock"], "nothing of it is on a disk"
    await local.tidy()


async def test_what_it_complained_of_is_known_to_a_hyperd_that_came_later(local, source, tmp_path):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    (pid,) = await serving(tmp_path, 1)
    later = opened(tmp_path)
    watching = asyncio.ensure_future(later.wait_broken(BOX))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(watching), 0.2)
    # As its own write would: with the position that all who have it share.
    borrowed = HeldProcess.of(pid)
    assert borrowed is not None
    said = Complaints(borrowed.borrow(2))
    os.write(said.fd, b"out of patience\n")
    said.close()
    borrowed.kill()
    borrowed.close()
    broken = await asyncio.wait_for(watching, PATIENCE_S)
    assert broken.tag == "bind0"
    assert broken.evidence.startswith("out of patience")
    await later.end(BOX)
    later.close()


async def test_two_that_end_it_at_once_and_one_that_watches_agree(local, source, tmp_path):
    shares = await found(local, *(ShareRequest(f"bind{number}", str(source)) for number in range(2)))
    await local.serve(BOX, shares)
    await serving(tmp_path, 2)
    watching = asyncio.ensure_future(local.wait_broken(BOX))
    ending = await asyncio.gather(*(local.end(BOX) for _ in range(3)), return_exceptions=True)
    assert ending == [None, None, None]
    assert (await asyncio.wait_for(watching, PATIENCE_S)).tag in {"bind0", "bind1"}
    assert processes(tmp_path) == {}


async def test_the_end_of_a_sandbox_without_shares_costs_no_work(local, source, tmp_path):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    await local.end(BOX)
    local.close()  # nobody is there to work
    await local.end(BOX)
    await local.end(OTHER)


async def test_what_cannot_be_watched_is_one_error_that_says_so(local, source, tmp_path, monkeypatch):
    await local.serve(BOX, await found(local, ShareRequest("bind0", str(source))))
    (pid,) = await serving(tmp_path, 1)
    lock = tmp_path / "run" / BOX[:12] / "bind0.lock"
    pid_there = lock.read_text()
    lock.write_text("0")
    monkeypatch.setattr("hyperd.storage.serving.END_TIMEOUT_S", 0.05)
    later = opened(tmp_path)
    with pytest.raises(UnavailableError, match="is locked by nobody"):
        await later.wait_broken(BOX)
    lock.write_text(pid_there)
    later.close()
    assert in_enclosure(pid)


async def test_a_start_that_fails_at_the_second_share_leaves_nothing_of_the_first(local, source, tmp_path):
    shares = await found(local, *(ShareRequest(f"bind{number}", str(source)) for number in range(2)))
    blocked = tmp_path / "run" / BOX[:12] / "bind1.place"
    original = local.end

    async def end_and_block(sandbox_id):
        await original(sandbox_id)
        if not blocked.parent.exists():
            blocked.parent.mkdir(parents=True)
            blocked.write_text("in the way")
            local.end = original

    local.end = end_and_block
    with pytest.raises(HyperError, match=r"bind1\.place"):
        await local.serve(BOX, shares)
    assert not blocked.parent.exists()
    await eventually(lambda: processes(tmp_path) == {}, PATIENCE_S)


async def test_without_virtiofsd_it_says_what_to_do(source, tmp_path):
    subject = opened(tmp_path, program=tmp_path / "none")
    with pytest.raises(UnavailableError, match="is not there") as caught:
        await subject.require_possible([ShareRequest("bind0", str(source))])
    assert "make setup" in caught.value.hint
    subject.close()
