# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import Aim, NotMeasured, interleaved, percentile, render, summarize, write

samples = st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=200)


@given(samples, st.floats(min_value=0, max_value=1))
def test_a_percentile_is_one_of_the_samples_and_has_its_share_below_it(values, share):
    found = percentile(values, share)
    assert found in values
    assert sum(value < found for value in values) <= share * len(values) + 0.5
    assert sum(value > found for value in values) <= (1 - share) * len(values) + 0.5


def test_percentiles_of_a_hundred():
    values = [float(value) for value in range(101)]
    assert [percentile(values, share) for share in (0, 0.5, 0.95, 1)] == [0, 50, 95, 100]
    assert percentile([7.0], 0.95) == 7


def test_p50_and_ratio_are_medians():
    result = summarize("x", "ms", [3.0, 1.0, 100.0], floor=[2.0, 1.0, 2.0])
    assert (result.n, result.p50, result.p95, result.floor, result.ratio) == (3, 3, 100, 2, 1.5)
    assert (result.met, result.aim) == (None, "")


@pytest.mark.parametrize(
    ("aim", "met"),
    [
        (Aim(ratio=1.5), True),
        (Aim(ratio=1.4), False),
        (Aim(ratio=1.5, ratio_p95=2.5), True),
        (Aim(ratio=1.5, ratio_p95=2.4), False),
        (Aim(above=5), True),
        (Aim(above=4.9), False),
        (Aim(most=15), True),
        (Aim(most=14.9), False),
    ],
)
def test_an_aim_is_met_or_not(aim, met):
    result = summarize("x", "ms", [15.0, 15.0, 25.0], floor=[10.0], aim=aim)
    assert result.met is met
    assert result.aim == str(aim)


def test_an_aim_against_no_floor_is_a_mistake():
    with pytest.raises(ValueError, match="no floor"):
        summarize("x", "ms", [1.0], aim=Aim(ratio=1.5))
    assert summarize("x", "ms", [1.0], aim=Aim(most=1)).met


def test_ours_and_the_floor_take_turns():
    turns = []

    def take(name):
        turns.append(name)
        return float(len(turns))

    assert interleaved(2, lambda: take("ours"), lambda: take("floor")) == ([1.0, 3.0], [2.0, 4.0])
    assert turns == ["ours", "floor", "ours", "floor"]


def test_the_table_and_the_file_say_what_was_missed(tmp_path):
    results = [
        summarize("start", "ms", [3.0], floor=[1.0], aim=Aim(ratio=2)),
        summarize("other", "MiB", [1.0]),
    ]
    table = render(results).splitlines()
    assert table[1].split() == ["start", "ms", "1", "3.0", "3.0", "1.0", "3.0", "p50", "<=", "2x", "NO"]
    assert table[2].split() == ["other", "MiB", "1", "1.0", "1.0", "-", "-", "-", "-"]
    write(tmp_path / "build/bench.json", {"accelerator": "tcg"}, results, [NotMeasured("fork", "no fork")])
    document = json.loads((tmp_path / "build/bench.json").read_text())
    assert document["accelerator"] == "tcg"
    assert [(item["name"], item["met"]) for item in document["results"]] == [
        ("start", False),
        ("other", None),
    ]
    assert document["not_measured"] == [{"bench": "fork", "why": "no fork"}]
