# SPDX-License-Identifier: Apache-2.0
"""Snapshots as streams: what goes out comes in, little memory is held, and a hostile stream gets nowhere."""

import asyncio
import contextlib
import io
import os
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.errors import HyperError, InvalidError, NotFoundError, RestoreError
from hyperd.model.snapshot import SnapshotKind
from hyperd.snapshot import LocalSnapshots
from tests.mounts import allocated_bytes, names_in
from tests.saved import COMPATIBILITY, ME, in_pieces, write_sparse

SANDBOX = SnapshotKind.SANDBOX
EMPTY = ["hibernation", "sandbox", "template"]


@contextlib.asynccontextmanager
async def opened(root: Path):
    store = LocalSnapshots(root)
    await store.open()
    try:
        yield store
    finally:
        store.close()


async def published(store, files, name=""):
    draft = await store.begin()
    for file, (size_bytes, pieces) in files.items():
        write_sparse(await draft.create_file(file, size_bytes=size_bytes, owner=ME), size_bytes, pieces)
    return await store.publish(draft, SANDBOX, COMPATIBILITY, name=name, source={"image": "alpine"})


async def exported(store, snapshot) -> bytes:
    return b"".join([chunk async for chunk in store.export(snapshot)])


@pytest.fixture(scope="module")
def stream():
    """Of a small snapshot."""

    async def make(root):
        async with opened(Path(root)) as store:
            files = {
                "state": (700, [(0, b"state" * 100)]),
                "ram": (300_000, [(8192, b"x" * 9000), (131_072, b"y")]),
                "disk": (5000, []),
            }
            return await exported(store, await published(store, files, name="one"))

    with tempfile.TemporaryDirectory() as root:
        return asyncio.run(make(root))


sparse_files = st.integers(0, 400_000).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(
            st.tuples(st.integers(0, max(size - 600, 0)), st.binary(min_size=1, max_size=600)), max_size=5
        ),
    )
)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from(["state", "ram", "disk"]), sparse_files, min_size=1),
    st.integers(300, 3 << 20),
)
def test_sparse_files_of_any_shape_come_in_as_they_went_out(files, piece_bytes):
    async def round_trip(root):
        async with opened(root / "a") as here, opened(root / "b") as there:
            snapshot = await published(here, files)
            data = await exported(here, snapshot)
            arrived = await there.import_(in_pieces(data, piece_bytes))
            assert arrived.manifest == snapshot.manifest
            for name in files:
                assert arrived.path(name).read_bytes() == snapshot.path(name).read_bytes()
                assert arrived.path(name).stat().st_mode & 0o777 == 0o440
            await there.require_intact(arrived)
            assert await exported(there, arrived) == data

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(round_trip(Path(root)))


async def test_a_byte_at_a_time_is_enough(tmp_path, stream):
    async with opened(tmp_path) as store:
        arrived = await store.import_(in_pieces(stream, 1))
        await store.require_intact(arrived)


async def test_holes_do_not_travel_and_little_memory_is_held(tmp_path):
    size = 300 << 20
    async with opened(tmp_path / "a") as here, opened(tmp_path / "b") as there:
        pieces = [(offset << 20, os.urandom(1 << 20)) for offset in range(5, 300, 15)]
        snapshot = await published(here, {"ram": (size, pieces)})
        del pieces
        moved = 0

        async def counted():
            nonlocal moved
            async for chunk in here.export(snapshot):
                assert len(chunk) <= 1 << 20
                moved += len(chunk)
                yield chunk

        tracemalloc.start()
        arrived = await there.import_(counted())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 20 << 20 < moved < 21 << 20
        assert peak < 12 << 20
        assert arrived.manifest == snapshot.manifest
        assert arrived.path("ram").stat().st_size == size
        assert allocated_bytes(arrived.path("ram")) < 21 << 20


async def test_other_tools_list_it(stream):
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        names = tar.getnames()
        member = tar.extractfile("ram/000000020000")
        assert member is not None
        assert member.read(2) == b"y\0"
    assert names == ["manifest.json", "state/000000000000", "ram/000000002000", "ram/000000020000"]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_changed_stream_never_becomes_a_snapshot(stream, data):
    at = data.draw(st.integers(0, len(stream)), "at")
    cut = data.draw(st.one_of(st.integers(0, 3), st.integers(0, len(stream))), "cut")
    put = data.draw(
        st.one_of(
            st.binary(max_size=3),
            st.builds(
                lambda begin, length: stream[begin : begin + length],
                st.integers(0, 9999),
                st.integers(0, 2048),
            ),
        ),
        "put",
    )
    changed = stream[:at] + put + stream[at + cut :]

    async def import_into(root):
        async with opened(root) as store:
            if changed == stream:
                await store.import_(in_pieces(changed, 1 << 20))
                return
            with pytest.raises(InvalidError):
                await store.import_(in_pieces(changed, 1 << 20))
            assert store.list(SANDBOX) == []
            assert names_in(root) == EMPTY
            assert names_in(root / "sandbox") == []

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(import_into(Path(root)))


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type, info.linkname = len(data), 0o440, kind, link
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def members_of(stream: bytes) -> list[bytes]:
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        ends = [info.offset_data + -(-info.size // 512) * 512 for info in tar]
    return [stream[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    "hostile",
    [
        member("../../../etc/passwd", b"x"),
        member("/etc/passwd", b"x"),
        member("ram/../disk/00000", b"x"),
        member("other/000000000000", b"x"),
        member("disk/000000000000", b"", tarfile.SYMTYPE, "/etc/passwd"),
        member("disk/000000000000", b"x", tarfile.CHRTYPE),
        member("disk/000000000001", b"x"),
        member("disk/000000001000", b"x" * 905),
        member("disk/fffffffff000", b"x"),
        member("disk/000000000000", b"x" * 70_000),
        member("ram/000000002000", b"x" * 9000),
        member("state/000000000000", b"x"),
        member("manifest.json", b"{}"),
        member("disk/000000000000", b"not what the manifest says"),
    ],
)
async def test_a_member_that_does_not_belong_is_refused_and_nothing_stays(tmp_path, stream, hostile):
    data = b"".join(members_of(stream)) + hostile + bytes(1024)
    async with opened(tmp_path / "store") as store:
        with pytest.raises(InvalidError):
            await store.import_(in_pieces(data, 4096))
        assert names_in(tmp_path / "store") == EMPTY
        assert names_in(tmp_path / "store/sandbox") == []


async def test_the_order_of_the_members_is_part_of_the_form(tmp_path, stream):
    manifest, *parts = members_of(stream)
    async with opened(tmp_path / "store") as store:
        with pytest.raises(InvalidError):
            await store.import_(in_pieces(b"".join([manifest, *reversed(parts), bytes(1024)]), 4096))
        with pytest.raises(InvalidError):
            await store.import_(in_pieces(b"".join([*parts, manifest, bytes(1024)]), 4096))
        await store.import_(in_pieces(b"".join([manifest, *parts, bytes(1024)]), 4096))


async def test_a_stream_that_fails_or_is_given_up_leaves_nothing(tmp_path, stream):
    async def failing():
        yield stream[:3000]
        raise ConnectionResetError

    async with opened(tmp_path / "store") as store:
        with pytest.raises(ConnectionResetError):
            await store.import_(failing())
        started = asyncio.Event()

        async def stalling():
            yield stream[:3000]
            started.set()
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(store.import_(stalling()))
            await started.wait()
            task.cancel()
        assert names_in(tmp_path / "store") == EMPTY


async def test_a_damaged_snapshot_is_not_exported(tmp_path):
    async with opened(tmp_path) as store:
        snapshot = await published(store, {"ram": (9000, [(0, b"x" * 9000)])})
        with snapshot.path("ram").open("r+b") as file:
            file.write(b"y")
        with pytest.raises(RestoreError):
            await exported(store, snapshot)


async def test_an_export_goes_on_when_the_snapshot_is_removed_meanwhile(tmp_path):
    async with opened(tmp_path / "a") as here, opened(tmp_path / "b") as there:
        snapshot = await published(here, {"ram": (8 << 20, [(0, os.urandom(8 << 20))])})

        async def removed_after_the_first_chunk():
            chunks = here.export(snapshot)
            yield await anext(chunks)
            await here.remove(snapshot.manifest.snapshot_id)
            async for chunk in chunks:
                yield chunk

        arrived = await there.import_(removed_after_the_first_chunk())
        assert arrived.manifest == snapshot.manifest
        with pytest.raises(NotFoundError):
            here.get(SANDBOX, snapshot.manifest.snapshot_id)


async def test_an_export_that_is_given_up_closes_its_files(tmp_path):
    async with opened(tmp_path) as store:
        snapshot = await published(store, {"ram": (8 << 20, [(0, os.urandom(8 << 20))])})
        before = len(names_in(Path("/proc/self/fd")))
        chunks = store.export(snapshot)
        await anext(chunks)
        assert len(names_in(Path("/proc/self/fd"))) > before
        await chunks.aclose()
        assert len(names_in(Path("/proc/self/fd"))) == before


async def test_a_manifest_of_huge_files_costs_nothing(tmp_path):
    async with opened(tmp_path / "a") as here, opened(tmp_path / "b") as there:
        files = {name: (8 << 40, [(7 << 40, b"x")]) for name in ("state", "ram", "disk")}
        snapshot = await published(here, files)
        data = await exported(here, snapshot)
        assert len(data) < 20_000
        arrived = await there.import_(in_pieces(data, 1 << 20))
        assert arrived.allocated_bytes < 1 << 20
        with pytest.raises(HyperError):
            await there.import_(in_pieces(data, 1 << 20))
