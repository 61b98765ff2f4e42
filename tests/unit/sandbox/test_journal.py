# SPDX-License-Identifier: Apache-2.0
"""Output on disk: whatever is killed when, what is read is a prefix of what was written, and whole frames."""

import asyncio
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.errors import ExhaustedError, UnavailableError
from hyperd.model.guest import OutputChunk, Stream
from hyperd.sandbox import Cursor, Journal
from tests.fakes.world import eventually

parts = st.lists(st.tuples(st.sampled_from(Stream), st.binary(min_size=1, max_size=300)), max_size=20)
BIG = 1 << 24


def open_journal(directory: Path, *, fresh: bool = False, max_bytes: int = BIG) -> Journal:
    journal = Journal(directory, max_bytes=max_bytes)
    journal.open(journal.examine(), fresh=fresh)
    return journal


def fill(journal: Journal, written: list[tuple[Stream, bytes]]) -> None:
    offset = journal.end_offset
    for stream, data in written:
        journal.append(OutputChunk(offset, stream, data))
        offset += len(data)


async def entries(journal: Journal, cursor: Cursor | None = None) -> list[tuple[Stream, bytes]]:
    return [(entry.stream, entry.data) async for entry in journal.read(cursor)]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def clean(place: Path) -> Path:
    shutil.rmtree(place / "log", ignore_errors=True)
    return place / "log"


@given(first=parts, second=parts)
@settings(deadline=None, max_examples=40)
def test_two_runs_are_read_as_they_were_written(
    place: Path, first: list[tuple[Stream, bytes]], second: list[tuple[Stream, bytes]]
) -> None:
    directory = clean(place)
    for written in (first, second):
        journal = open_journal(directory, fresh=True)
        assert journal.end_offset == 0
        fill(journal, written)
        assert journal.end_offset == sum(len(data) for _, data in written)
        journal.close()
    assert asyncio.run(entries(Journal(directory, max_bytes=BIG))) == first + second


@given(written=parts, data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_crash_at_any_byte_costs_at_most_the_last_frame(
    place: Path, written: list[tuple[Stream, bytes]], data: st.DataObject
) -> None:
    directory = clean(place)
    journal = open_journal(directory, fresh=True)
    fill(journal, written)
    journal.close()
    (file,) = directory.iterdir()
    size = data.draw(st.integers(0, file.stat().st_size))
    with file.open("r+b") as opened:
        opened.truncate(size)
    again = open_journal(directory)
    kept = asyncio.run(entries(again))
    assert kept == written[: len(kept)]
    assert again.end_offset == sum(len(data) for _, data in kept)
    fill(again, written[len(kept) :])  # the agent sends it again from there
    again.close()
    assert asyncio.run(entries(again)) == written


async def test_what_comes_twice_is_kept_once_and_overlaps_are_cut(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True)
    journal.append(OutputChunk(0, Stream.STDOUT, b"abc"))
    journal.append(OutputChunk(0, Stream.STDOUT, b"abc"))
    journal.append(OutputChunk(1, Stream.STDOUT, b"bcde"))
    assert b"".join(data for _, data in await entries(journal)) == b"abcde"
    journal.close()
    journal.append(OutputChunk(5, Stream.STDOUT, b"too late"))
    assert journal.end_offset == 5


async def test_a_full_log_forgets_its_oldest_half(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True, max_bytes=2 << 20)
    block = b"x" * 65536
    for number in range(100):
        journal.append(OutputChunk(number * 65536, Stream.STDOUT, block))
    assert bytes_in(tmp_path) <= (2 << 20) + 65536
    kept = [entry async for entry in journal.read()]
    assert kept[-1].end_offset == journal.end_offset == 100 * 65536
    journal.close()
    assert open_and_close(tmp_path) == 100 * 65536


def bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def append_rubbish(directory: Path) -> None:
    with next(directory.iterdir()).open("ab") as file:
        file.write(b"\xff" * 100)


def open_and_close(directory: Path) -> int:
    journal = open_journal(directory)
    journal.close()
    return journal.end_offset


async def test_killed_between_rotating_and_writing_it_knows_its_offset(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True)
    fill(journal, [(Stream.STDOUT, b"hello")])
    journal._rotate()
    journal.close()
    assert open_and_close(tmp_path) == 5


async def test_who_follows_gets_what_comes_and_ends_with_the_run(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True, max_bytes=2 << 20)
    got = [b"", b""]

    async def follow(reader: int) -> None:
        async for entry in journal.read(follow=True):
            got[reader] += entry.data

    written = b""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        followers = [tasks.create_task(follow(reader)) for reader in range(2)]
        for number in range(40):
            journal.append(OutputChunk(number * 65536, Stream.STDOUT, bytes([number]) * 65536))
            written += bytes([number]) * 65536
            await eventually(lambda: [len(read) for read in got] == [journal.end_offset] * 2)
        journal.close()
    assert all(follower.done() for follower in followers)
    assert got == [written, written]


async def test_a_reader_behind_the_rotation_goes_on_with_what_is_left(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True, max_bytes=2 << 20)
    reader = aiter(journal.read())
    journal.append(OutputChunk(0, Stream.STDOUT, b"a" * 1000))
    first = await anext(reader)
    for number in range(64):
        journal.append(OutputChunk(1000 + number * 65536, Stream.STDOUT, b"b" * 65536))
    rest = [entry async for entry in reader]
    assert first.data == b"a" * 1000
    assert rest[-1].end_offset == journal.end_offset
    journal.close()


async def test_a_cursor_goes_on_where_it_was(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True)
    cursor = Cursor()
    fill(journal, [(Stream.STDOUT, b"one")])
    assert await entries(journal, cursor) == [(Stream.STDOUT, b"one")]
    fill(journal, [(Stream.STDERR, b"two")])
    assert await entries(journal, cursor) == [(Stream.STDERR, b"two")]
    journal.close()


async def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert await entries(Journal(tmp_path / "none", max_bytes=BIG)) == []


async def test_a_full_disk_is_said_and_leaves_whole_frames(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True)
    fill(journal, [(Stream.STDOUT, b"fits")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = bytes_in(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(ExhaustedError, match="cannot be written"):
            fill(journal, [(Stream.STDOUT, b"does not fit")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fill(journal, [(Stream.STDOUT, b"fits again")])
    assert await entries(journal) == [(Stream.STDOUT, b"fits"), (Stream.STDOUT, b"fits again")]
    journal.close()


async def test_a_log_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "log", max_bytes=BIG)
    with pytest.raises(UnavailableError, match="log cannot be written"):
        journal.open(journal.examine(), fresh=True)


async def test_rubbish_in_a_log_ends_the_reading_and_nothing_else(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True)
    fill(journal, [(Stream.STDOUT, b"good")])
    journal.close()
    append_rubbish(tmp_path)
    assert await entries(journal) == [(Stream.STDOUT, b"good")]
    assert open_and_close(tmp_path) == 4


async def test_a_run_that_goes_on_from_a_snapshot_begins_at_its_offset(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fresh=True)
    fill(journal, [(Stream.STDOUT, b"one"), (Stream.STDOUT, b"two")])
    journal.close()
    journal = Journal(tmp_path, max_bytes=BIG)
    journal.open(journal.examine(), fresh=True, base=3)  # rolled back to after "one"
    assert journal.end_offset == 3
    journal.close()
    assert Journal(tmp_path, max_bytes=BIG).examine().end_offset == 3  # killed before it wrote
    journal = open_journal(tmp_path)
    journal.append(OutputChunk(2, Stream.STDOUT, b"eTWO"))  # what is there already is not written twice
    journal.close()
    assert await entries(journal) == [
        (Stream.STDOUT, b"one"),
        (Stream.STDOUT, b"two"),
        (Stream.STDOUT, b"TWO"),
    ]
