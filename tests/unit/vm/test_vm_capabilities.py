# SPDX-License-Identifier: Apache-2.0
import pytest

from hyperd.vm.libvirt.capabilities import were_old


@pytest.mark.parametrize(
    ("before", "after", "old"),
    [
        ({}, {"a": 1}, False),
        ({"a": 1}, {"a": 1}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {}, False),
    ],
)
def test_answers_were_old_when_those_that_were_kept_are_written_again(
    before: dict[str, int], after: dict[str, int], *, old: bool
) -> None:
    assert were_old(before, after) is old
