# SPDX-License-Identifier: Apache-2.0
from hyperd.network.nameserver import BURST, RATE, Rates


def test_a_guest_has_so_many_questions_a_second_and_its_neighbours_have_theirs():
    now = [0.0]
    rates = Rates(lambda: now[0])
    assert [rates.allows("one") for _ in range(int(BURST) + 1)] == [True] * int(BURST) + [False]
    assert rates.allows("two")
    now[0] = 1.0
    assert sum(rates.allows("one") for _ in range(int(BURST))) == int(RATE)
