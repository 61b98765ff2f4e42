# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.v1 import image_pb2 as pb
from hyperctl.progress import render_layer
from hyperctl.render import (
    printable,
    quote,
    render_binary_size,
    render_duration,
    render_rfc3339,
    render_size,
    render_table,
)

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (MINUTE, "About a minute"),
        (119, "About a minute"),
        (2 * MINUTE, "2 minutes"),
        (45 * MINUTE, "45 minutes"),
        (HOUR, "About an hour"),
        (2 * HOUR, "2 hours"),
        (47 * HOUR, "47 hours"),
        (2 * DAY, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (731 * DAY, "2 years"),
    ],
)
def test_durations_as_docker_says_them(seconds, text):
    assert render_duration(seconds) == text


@given(st.floats(-1e12, 1e12))
def test_every_duration_has_a_text(seconds):
    assert render_duration(seconds)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (7_834_567, "7.83MB"),
        (999_900, "1MB"),
        (116_543_210, "117MB"),
    ],
)
def test_sizes(size, text):
    assert render_size(size) == text


def test_binary_sizes():
    assert render_binary_size(8 << 30) == "8GiB"
    assert render_binary_size(7.77 * 2**30) == "7.77GiB"


def test_a_time_that_is_not_set_is_gos_zero():
    assert render_rfc3339(0, 0) == "0001-01-01T00:00:00Z"
    assert render_rfc3339(1_800_000_000, 120_000_000) == "2027-01-15T08:00:00.12Z"


CELLS = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_table_is_one_line_a_row_and_sends_no_control_characters(rows):
    text = render_table(rows)
    lines = text.split("\n")
    assert len(lines) == len(rows)
    assert printable(text) == text
    width = max(10, 3 + max(len(row[0]) for row in rows))
    assert all(
        line[:width].rstrip(" ") == printable(row[0]).replace("\n", " ").rstrip(" ")
        for line, row in zip(lines, rows, strict=True)
    )


def test_commands_are_quoted_on_one_line():
    assert quote('sh -c "a\nb"') == r'"sh -c \"a\nb\""'


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.sampled_from(sorted(pb.LayerPhase.values())))
def test_every_progress_has_a_line(done, total, phase):
    line = render_layer(
        pb.LayerProgress(digest="sha256:" + "a" * 64, phase=phase, done_bytes=done, total_bytes=total)
    )
    assert line.startswith("a" * 12 + ": ")
    assert len(line) < 100


def test_a_bar():
    layer = pb.LayerProgress(
        digest="sha256:4f4fb700ef54",
        phase=pb.LAYER_PHASE_DOWNLOADING,
        done_bytes=5_000_000,
        total_bytes=10_000_000,
    )
    assert render_layer(layer) == "4f4fb700ef54: Downloading [===============>              ] 5MB/10MB"
