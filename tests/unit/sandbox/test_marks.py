# SPDX-License-Identifier: Apache-2.0
"""A log is looked at from its end: what that costs does not grow with the log, and it says the same."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperd.api import logs
from hyperd.model.guest import OutputChunk, Stream
from hyperd.sandbox import Cursor, Journal, LogEntry, journal, marks

BIG = 1 << 24
EVERYTHING = logs.Wanted(follow=False, tail_lines=None, since_ns=0, until_ns=None)
parts = st.lists(st.text("ab\n", min_size=1, max_size=80).map(str.encode), max_size=40)


@pytest.fixture(scope="module", autouse=True)
def _marks_are_close() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "EVERY_BYTES", 200)
        yield


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def written(directory: Path, data: list[bytes], *, max_bytes: int = BIG) -> Journal:
    shutil.rmtree(directory, ignore_errors=True)
    log = Journal(directory, max_bytes=max_bytes)
    log.open(log.examine(), fresh=True)
    append(log, data)
    return log


def append(log: Journal, data: list[bytes]) -> None:
    for piece in data:
        log.append(OutputChunk(log.end_offset, Stream.STDOUT, piece))


async def forwards(log: Journal) -> list[LogEntry]:
    return [entry async for entry in log.read()]


async def backwards(log: Journal, cursor: Cursor) -> list[LogEntry]:
    pieces = [piece async for piece in log.read_back(cursor)]
    return [entry for piece in reversed(pieces) for entry in piece]


@given(data=parts, further=parts)
@settings(deadline=None, max_examples=60)
def test_back_is_as_forth_and_the_cursor_goes_on_at_the_end(
    place: Path, data: list[bytes], further: list[bytes]
) -> None:
    async def look() -> None:
        cursor = Cursor()
        assert await backwards(log, cursor) == await forwards(log)
        append(log, further)
        assert [entry.data async for entry in log.read(cursor)] == further

    log = written(place / "log", data)
    asyncio.run(look())
    log.close()


@given(data=parts, draw=st.data())
@settings(deadline=None, max_examples=60)
def test_after_a_crash_at_any_byte_it_is_found_as_one_without_marks_is(
    place: Path, data: list[bytes], draw: st.DataObject
) -> None:
    written(place / "log", data).close()
    file = place / "log/output.00000000"
    with file.open("r+b") as opened:
        opened.truncate(draw.draw(st.integers(0, file.stat().st_size)))
    found = Journal(place / "log", max_bytes=BIG).examine()
    shutil.copytree(place / "log", place / "plain", ignore=shutil.ignore_patterns("*.marks"))
    assert Journal(place / "plain", max_bytes=BIG).examine() == found
    shutil.rmtree(place / "plain")
    again = Journal(place / "log", max_bytes=BIG)
    again.open(found, fresh=False)
    append(again, data)
    assert asyncio.run(backwards(again, Cursor())) == asyncio.run(forwards(again))
    again.close()
    assert Journal(place / "log", max_bytes=BIG).examine().end_offset == again.end_offset


@given(data=parts, lines=st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_the_last_lines_are_those_of_the_whole(place: Path, data: list[bytes], lines: int) -> None:
    log = written(place / "log", data)
    wanted = logs.Wanted(follow=False, tail_lines=lines, since_ns=0, until_ns=None)
    found = b"".join(entry.data for entry in asyncio.run(logs._last_lines(log, wanted, Cursor())))
    log.close()
    assert found == b"".join(b"".join(data).splitlines(keepends=True)[-lines:] if lines else [])


async def test_the_marks_of_a_file_go_with_it(tmp_path: Path) -> None:
    log = written(tmp_path / "log", [b"x" * 65536] * 100, max_bytes=2 << 20)
    log.close()
    files = {path.name for path in (tmp_path / "log").iterdir()}
    assert len(files) == 4
    assert {f"{name}.marks" for name in files if not name.endswith(".marks")} < files
    assert await backwards(log, Cursor()) == await forwards(log)


async def test_the_end_of_a_long_log_costs_what_the_end_of_a_short_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = 0
    header = journal._HEADER

    class Counted:
        size = header.size

        @staticmethod
        def unpack(data: bytes) -> tuple[int, ...]:
            nonlocal unpacked
            unpacked += 1
            return header.unpack(data)

        pack = staticmethod(header.pack)

    monkeypatch.setattr(journal, "_HEADER", Counted)
    wanted = logs.Wanted(follow=False, tail_lines=1, since_ns=0, until_ns=None)
    costs = []
    for length in (100, 2000):
        log = written(tmp_path / f"log{length}", [b"forty bytes of a line that is not long\n"] * length)
        log.close()
        unpacked = 0
        log.examine()
        (last,) = await logs._last_lines(log, wanted, Cursor())
        assert last.end_offset == log.end_offset
        costs.append(unpacked)
    assert max(costs) < 20
