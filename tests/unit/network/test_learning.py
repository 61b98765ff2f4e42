# SPDX-License-Identifier: Apache-2.0
"""What of an answer the kernel has to be told."""

import errno

import pytest

from hyperd.network.elements import Element
from hyperd.network.policy.learning import REFUSED_S, Shelf
from hyperd.network.policy.rules import MAX_LEARNED


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def element(number=1, lasts_s=120):
    return Element("named", number.to_bytes(4, "big"), timeout_ms=lasts_s * 1000)


def shelf(*, is_whole=True):
    clock = Clock()
    return Shelf(is_whole=is_whole, clock=clock), clock


def test_what_is_not_there_is_put_in_and_what_may_be_there_begins_again():
    whole, _ = shelf()
    assert whole.due([element()]) == ([element()], [])
    some, _ = shelf(is_whole=False)
    assert some.due([element()]) == ([], [element()])


def test_what_is_there_for_long_enough_is_not_said_again():
    known, clock = shelf()
    known.put([element()])
    clock.now += 29
    assert known.due([element()]) == ([], [])
    clock.now += 2
    assert known.due([element()]) == ([], [element()])
    assert known.due([element(lasts_s=60)]) == ([], [])


def test_what_has_run_out_is_put_in_as_if_it_had_never_been_there():
    known, clock = shelf()
    known.put([element()])
    clock.now += 121
    assert known.due([element()]) == ([], [element()]), "the kernel may still have it"
    clock.now += 2
    assert known.due([element()]) == ([element()], [])


def test_after_a_failure_anything_may_be_there():
    known, _ = shelf()
    known.put([element(1)])
    known.doubt()
    assert known.due([element(1), element(2)]) == ([], [element(2)])


def test_one_that_is_told_twice_is_put_in_once_for_the_longer():
    known, _ = shelf(is_whole=False)
    assert known.due([element(), element(lasts_s=200), element()]) == ([], [element(lasts_s=200)])


def test_what_the_kernel_refused_it_is_not_asked_again_for_a_moment():
    known, clock = shelf()
    known.put([element(1)])
    known.refuse(OSError(errno.ENFILE, "full"))
    with pytest.raises(OSError, match="full"):
        known.due([element(2)])
    assert known.due([element(1)]) == ([], []), "nothing is to be asked"
    clock.now += REFUSED_S
    assert known.due([element(2)]) == ([element(2)], [])


def test_a_set_that_is_full_is_told_until_something_has_run_out():
    known, clock = shelf()
    known.put(element(number) for number in range(MAX_LEARNED))
    with pytest.raises(OSError, match="more than"):
        known.due([element(MAX_LEARNED)])
    clock.now += 123
    assert known.due([element(MAX_LEARNED)]) == ([element(MAX_LEARNED)], [])
