# SPDX-License-Identifier: Apache-2.0
"""Archives of containers in a bare QEMU: while they run, after they have gone, and against hostile ones."""

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hyperd.errors import ExhaustedError, HyperError, InvalidError, NotFoundError, WrongStateError
from hyperd.guest import Guest
from hyperd.model.guest import ChangeKind, GuestMount, PathStat, WriteOptions
from tests.bareguest import BOX, Bench, container, execute, read_until, run

TICKING = "(n=0; while :; do n=$((n+1)); echo $n > /ticks; done) & echo ready; sleep 1000"
MOVES = 'a=$(cat /ticks); while [ "$(cat /ticks)" = "$a" ]; do :; done; echo moved'
BIG_MIB = 30  # more than every buffer on the way
DISK_BYTES = 64 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


@pytest.fixture
async def guest(bench: Bench) -> AsyncIterator[Guest]:
    source = bench.boot()
    dialed = await source.dial()
    await dialed.configure(source.identity())
    yield dialed
    await dialed.close()


async def collect(pieces: AsyncIterator[bytes | PathStat]) -> bytes:
    return b"".join([piece async for piece in pieces if isinstance(piece, bytes)])


def names(content: bytes) -> list[str]:
    return tarfile.open(fileobj=io.BytesIO(content)).getnames()


def archive(*members: tuple[str, bytes | str, bytes]) -> bytes:
    """Of (name, content or target, type)."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content
                tar.addfile(member)
    return target.getvalue()


def a_file(name: str, content: bytes = b"x") -> tuple[str, bytes, bytes]:
    return name, content, tarfile.REGTYPE


async def given(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def write(guest: Guest, path: bytes, *members: tuple[str, bytes | str, bytes]) -> None:
    await guest.write_tree(BOX, WriteOptions(path), given(archive(*members)))


async def test_a_layer_is_the_same_while_it_runs_and_when_only_its_files_are_there(guest):
    change = "echo changed >> /etc/passwd; busybox mkdir -p /a/b; echo new > /a/b/c; busybox rm /bin/yes"
    mounts = (GuestMount("/volume/deep", "tmpfs"),)
    plan = container(f"{change}; {TICKING.replace('/ticks', '/dev/shm/ticks')}", mounts=mounts)
    await run(guest, plan)
    await read_until(guest, "ready")
    running = await collect(guest.read_layer(BOX, freeze=True))
    told = ["a", "a/b", "a/b/c", "bin", "bin/.wh.yes", "etc", "etc/passwd"]
    assert names(running) == told
    changes = [(change.kind, change.path) async for change in guest.list_changes(BOX)]
    assert (ChangeKind.ADDED, b"/a/b/c") in changes
    assert (ChangeKind.DELETED, b"/bin/yes") in changes
    assert len(changes) == len(told)
    await guest.delete_container(BOX)

    await guest.open_root(plan)
    assert await collect(guest.read_layer(BOX, freeze=True)) == running
    assert [(change.kind, change.path) async for change in guest.list_changes(BOX)] == changes
    with pytest.raises(WrongStateError):
        await guest.start_container(BOX)
    await guest.delete_container(BOX)
    with pytest.raises(NotFoundError):
        await collect(guest.read_layer(BOX, freeze=False))


async def test_whoever_hangs_up_in_a_frozen_commit_lets_the_container_go_on(guest):
    await run(guest, container(f"dd if=/dev/zero of=/big bs=1M count={BIG_MIB}; {TICKING}"))
    await read_until(guest, "ready")
    layer = guest.read_layer(BOX, freeze=True)
    assert await anext(layer)
    before = (await guest.stats(BOX)).cpu_usage_ns
    with pytest.raises(WrongStateError, match="stands still"):
        await execute(guest, "true")
    assert (await guest.stats(BOX)).cpu_usage_ns == before
    await layer.aclose()
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(WrongStateError):
                assert await execute(guest, MOVES) == "moved\n"
                break


async def test_a_container_that_is_deleted_ends_its_archives(guest):
    plan = container(f"dd if=/dev/zero of=/big bs=1M count={BIG_MIB}; echo ready; sleep 1000")
    await run(guest, plan)
    await read_until(guest, "ready")
    frozen, root = guest.read_layer(BOX, freeze=True), guest.read_root(BOX)
    assert await anext(frozen)
    assert await anext(root)
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield archive(a_file("note", b"n" * 100_000))[:50_000]
        begun.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(guest.write_tree(BOX, WriteOptions(b"/tmp"), endless()))
    await begun.wait()
    await guest.delete_container(BOX)
    for reader in (frozen, root):
        with pytest.raises(WrongStateError, match="deleted"):
            await collect(reader)
    with pytest.raises(WrongStateError, match="deleted"):
        await writing
    assert await guest.list_containers() == []
    # Its disk is let go of, and there is no half of a file on it.
    await guest.open_root(plan)
    with pytest.raises(NotFoundError):
        await collect(guest.read_tree(BOX, b"/tmp/note"))
    await guest.delete_container(BOX)
    async with asyncio.timeout(60):
        await guest.shutdown(30)


async def test_what_cannot_be_written_is_told_and_leaves_no_half(guest):
    await guest.open_root(container("true"))
    with pytest.raises(ExhaustedError):
        await write(guest, b"/tmp", a_file("first", b"1"), a_file("huge", bytes(DISK_BYTES)))
    assert names(await collect(guest.read_tree(BOX, b"/tmp"))) == ["tmp", "tmp/first"]
    await write(guest, b"/tmp", a_file("second", b"2"))
    await guest.delete_container(BOX)

    await guest.open_root(container("true", readonly_root=True))
    with pytest.raises(WrongStateError, match="read-only"):
        await write(guest, b"/tmp", a_file("third"))
    assert "tmp/second" in names(await collect(guest.read_tree(BOX, b"/tmp")))
    await guest.delete_container(BOX)

    mounts = (GuestMount("/tmp", "tmpfs"),)
    await run(guest, container("echo ready; sleep 1000", readonly_root=True, mounts=mounts))
    await read_until(guest, "ready")
    with pytest.raises(WrongStateError, match="read-only"):
        await write(guest, b"/etc", a_file("third"))
    await write(guest, b"/tmp", a_file("third", b"3"))
    assert await execute(guest, "cat /tmp/third") == "3"


async def test_mounts_are_read_and_written_into_and_never_replaced(guest):
    mounts = (GuestMount("/outer/volume", "tmpfs"),)
    await run(guest, container("echo kept > /outer/volume/kept; echo ready; sleep 1000", mounts=mounts))
    await read_until(guest, "ready")
    for path, name in ((b"/outer", "volume"), (b"/", "outer"), (b"/etc", "hosts"), (b"/", "dev")):
        with pytest.raises(WrongStateError, match="mounted"):
            await write(guest, path, a_file(name))
    kept, hosts = (await execute(guest, "cat /outer/volume/kept; grep -c . /etc/hosts")).split()
    assert kept == "kept"
    assert int(hosts) > 0
    await write(guest, b"/outer/volume", a_file("more", b"more"))
    assert await execute(guest, "cat /outer/volume/kept /outer/volume/more") == "kept\nmore"
    assert "outer/volume/more" in names(await collect(guest.read_tree(BOX, b"/outer")))
    assert names(await collect(guest.read_tree(BOX, b"/dev/shm"))) == ["shm"]

    everything = names(await collect(guest.read_tree(BOX, b"/")))
    assert {"./proc", "./dev", "./outer/volume/kept"} <= set(everything)
    assert not any(name.startswith(("./proc/", "./sys/", "./dev/", "./run/hyper/")) for name in everything)
    root = names(await collect(guest.read_root(BOX)))
    assert {"bin/busybox", "outer/volume"} <= set(root)
    assert "outer/volume/kept" not in root


async def test_hostile_archives_get_nowhere(guest):
    await run(guest, container("echo ready; sleep 1000"))
    await read_until(guest, "ready")
    link = tarfile.SYMTYPE
    for members in (
        [a_file("../escaped")],
        [a_file("a/../../escaped")],
        [("out", "/proc/1/root", link), a_file("out/escaped")],
        [("out", "/proc/self/cwd", link), a_file("out/escaped")],
        [("hard", "../etc/passwd", tarfile.LNKTYPE)],
        [("loop", "loop", link), a_file("loop/escaped")],
    ):
        with pytest.raises(HyperError) as caught:
            await write(guest, b"/tmp", *members)
        assert isinstance(caught.value, InvalidError | WrongStateError | NotFoundError), members
    # A link that goes up and up stays in the container's root.
    await write(guest, b"/tmp", ("up", "../" * 40, link), a_file("up/inside", b"inside"))
    assert await execute(guest, "cat /inside; busybox find / -xdev -name escaped") == "inside"

    good = archive(a_file("f", b"y" * 5000))
    # More than the guest has memory, if it kept them.
    flood = [_extended(b"v" * 900_000)] * 300
    for bad in (
        [good[:700]],
        [b"\0" * 100 + good[100:]],
        [bytes(range(256)) * 40],
        flood,
    ):
        with pytest.raises(InvalidError):
            await guest.write_tree(BOX, WriteOptions(b"/tmp"), given(*bad))
    assert await execute(guest, "[ -e /tmp/f ] || echo none") == "none\n"
    with pytest.raises(NotFoundError):
        await write(guest, b"/absent", a_file("f"))
    with pytest.raises(InvalidError):
        await write(guest, b"/etc/passwd", a_file("f"))
    # A whiteout would be a hole in the image.
    hole = tarfile.TarInfo("hole")
    hole.type = tarfile.CHRTYPE
    with pytest.raises(HyperError):
        await guest.write_tree(BOX, WriteOptions(b"/etc"), given(hole.tobuf() + bytes(1024)))
    assert "root:" in await execute(guest, "cat /etc/passwd")


def _extended(value: bytes) -> bytes:
    """A pax header with an attribute, of an entry that never comes."""
    record = b" SCHILY.xattr.user.x=%b\n" % value
    record = b"%d%b" % (len(record) + 6, record)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    return header.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)


async def test_links_that_change_while_files_are_written_stay_inside(guest):
    """Whatever a directory is meanwhile, what is written is found in the container."""
    flip = (
        "busybox mkdir /tmp/d /tmp/real; echo ready; while :; do busybox mv /tmp/d /tmp/e;"
        "busybox ln -s ../../../../../.. /tmp/d; busybox rm /tmp/d; busybox mv /tmp/e /tmp/d; done"
    )
    plan = container(flip)
    await run(guest, plan)
    await read_until(guest, "ready")
    written = 0
    for number in range(60):
        with contextlib.suppress(InvalidError, NotFoundError, WrongStateError):
            await write(guest, b"/tmp", a_file(f"d/raced{number}"))
            written += 1
    await guest.delete_container(BOX)
    await guest.open_root(plan)
    found = [name for name in names(await collect(guest.read_root(BOX))) if "raced" in name]
    assert len(found) == written > 0


async def test_too_many_archives_at_once_are_refused(guest):
    await run(guest, container(f"dd if=/dev/zero of=/big bs=1M count={BIG_MIB}; echo ready; sleep 1000"))
    await read_until(guest, "ready")
    readers = [guest.read_tree(BOX, b"/big") for _ in range(9)]
    try:
        for reader in readers[1:]:
            assert isinstance(await anext(reader), PathStat)
        with pytest.raises(ExhaustedError):
            await anext(readers[0])
    finally:
        for reader in readers:
            await reader.aclose()
