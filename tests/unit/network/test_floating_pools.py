# SPDX-License-Identifier: Apache-2.0
"""Floating addresses: which there are, and that none is given twice."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import ExhaustedError, ExistsError, InvalidError
from hyperd.network.floating.pools import choose, parse_pools
from hyperd.network.floating.rules import render, table_of

POOLS = (IPv4Network("203.0.113.0/29"), IPv4Network("198.51.100.7/32"))
ALL = {IPv4Address(f"203.0.113.{number}") for number in range(1, 7)} | {IPv4Address("198.51.100.7")}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["203.0.113.1/29"], "is no IPv4 network"),
        (["2001:db8::/64"], "is no IPv4 network"),
        (["127.0.0.0/8"], "means something else"),
        (["224.0.0.0/24"], "means something else"),
        (["203.0.113.0/28", "203.0.113.8/29"], "overlaps 203.0.113.0/28"),
        (["203.0.0.0/16"], "more than 4096"),
    ],
)
def test_pools_that_are_none_are_refused(texts, says):
    with pytest.raises(InvalidError, match=says):
        parse_pools(texts)


@given(st.lists(st.tuples(st.sampled_from(["give", "back"]), st.integers(1, 4)), max_size=40))
def test_no_address_is_given_twice_and_all_are_given(steps):
    taken: list[IPv4Address] = []
    for step, count in steps:
        if step == "back":
            del taken[:count]
            continue
        try:
            made = choose(POOLS, taken, count)
        except ExhaustedError:
            assert len(ALL - set(taken)) < count
            continue
        assert len(made) == count
        assert not set(made) & set(taken)
        assert set(made) <= ALL
        taken += made


def test_one_that_is_wanted_is_given_or_refused():
    wanted = IPv4Address("203.0.113.3")
    assert choose(POOLS, (), 1, wanted) == [wanted]
    with pytest.raises(ExistsError):
        choose(POOLS, {wanted}, 1, wanted)
    for nobodys in ("203.0.113.0", "203.0.113.7", "192.0.2.1"):
        with pytest.raises(InvalidError, match="in no pool"):
            choose(POOLS, (), 1, IPv4Address(nobodys))
    with pytest.raises(InvalidError, match="no pool of floating"):
        choose((), (), 1)
    with pytest.raises(InvalidError):
        choose(POOLS, (), 0)


def test_a_packet_s_way_does_not_grow_with_the_addresses():
    many = {IPv4Address(f"203.0.113.{n}"): IPv4Address(f"10.213.0.{n}") for n in range(1, 200)}
    one = dict(list(many.items())[:1])
    assert render("t", "hyper0", many).count("\n") == render("t", "hyper0", one).count("\n")
    assert render("t", "hyper0", {}).splitlines()[-1] == f"delete table inet {table_of('t')}"
