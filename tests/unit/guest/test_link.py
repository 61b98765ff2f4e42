# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.guest.link import FLAG, HostLink, LinkBrokenError, escape, new_nonce, render_opening
from tests.fakes.agent_link import AgentLink

NONCE = b"0123456789abcdef0123456789abcdef"
# Bytes that mean something to the link, far more often than chance would have them.
nasty = st.lists(
    st.one_of(
        st.sampled_from([b"~", b"}", b"^", b"]", b"}^", b"}]", b"~~", b"HYPER1", render_opening(b"f" * 32)]),
        st.binary(max_size=8),
    ),
    max_size=40,
).map(b"".join)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(nasty)
def test_escaped_data_holds_no_flag_and_no_opening(data):
    assert FLAG not in escape(data)


@given(nasty, nasty, st.lists(st.integers(0, 10_000), max_size=12))
def test_what_the_agent_wrote_arrives_whatever_came_before_and_however_it_is_cut(junk, data, cuts):
    link = HostLink(NONCE)
    wire = junk + render_opening(NONCE) + escape(data)
    assert b"".join(link.receive(piece) for piece in in_pieces(wire, cuts)) == data
    assert link.is_open


def test_every_single_cut_of_a_connection_gives_the_same_bytes():
    data = bytes(range(256)) + b"}~}^}]~"
    for stale in (
        b"",
        b"tail}",
        render_opening(b"a" * 32),
        render_opening(b"a" * 32)[:-1],
        b"~HYPER1" + NONCE[:-1],
    ):
        wire = stale + render_opening(NONCE) + escape(data)
        for cut in range(len(wire) + 1):
            link = HostLink(NONCE)
            assert link.receive(wire[:cut]) + link.receive(wire[cut:]) == data, (stale, cut)


@given(nasty, st.integers(0, 1000), nasty)
def test_data_comes_back_whether_escapes_are_rare_or_dense(before, filler, after):
    link = HostLink(NONCE)
    link.receive(render_opening(NONCE))
    data = before + b"." * filler + after
    assert link.receive(escape(data)) == data


@given(st.integers(0, 1000), st.sampled_from([b"}x", b"}}", b"}\x00"]), st.integers(0, 1000))
def test_a_wrong_escape_is_noticed_whether_escapes_are_rare_or_dense(before, wrong, after):
    link = HostLink(NONCE)
    link.receive(render_opening(NONCE))
    with pytest.raises(LinkBrokenError):
        link.receive(b"." * before + wrong + b"." * after)


@given(nasty, st.lists(st.integers(0, 10_000), max_size=12))
def test_another_hosts_answer_opens_nothing(data, cuts):
    link = HostLink(NONCE)
    wire = render_opening(b"e" * 32) + escape(data)
    assert b"".join(link.receive(piece) for piece in in_pieces(wire, cuts)) == b""
    assert not link.is_open


def test_waiting_for_the_answer_keeps_no_more_than_could_be_its_beginning():
    link = HostLink(NONCE)
    for _ in range(1000):
        link.receive(b"x" * 10_000)
    assert len(link._tail) < len(link.opening)


@given(
    nasty, st.sampled_from([b"~", b"}x", b"}}", b"}~"]), nasty, st.lists(st.integers(0, 10_000), max_size=5)
)
def test_a_flag_or_a_wrong_escape_breaks_the_connection(before, wrong, after, cuts):
    link = HostLink(NONCE)
    wire = link.opening + escape(before) + wrong + escape(after)
    with pytest.raises(LinkBrokenError):
        b"".join(link.receive(piece) for piece in in_pieces(wire, cuts))


@given(nasty, nasty, st.integers(0, 200), st.lists(st.integers(0, 10_000), max_size=12))
def test_the_agent_hears_the_last_host_whatever_an_earlier_one_left_half_said(stale, data, kept, cuts):
    cut_short = (render_opening(b"d" * 32) + escape(stale))[:kept]
    wire = cut_short + HostLink(NONCE).opening + escape(data)
    agent = AgentLink()
    events = [event for piece in in_pieces(wire, cuts) for event in agent.feed(piece)]
    last_opening = max(at for at, (kind, _) in enumerate(events) if kind == "open")
    assert events[last_opening] == ("open", NONCE)
    assert b"".join(payload for _, payload in events[last_opening + 1 :]) == data


def test_an_opening_cut_at_any_byte_does_not_swallow_the_next_one():
    stale = HostLink(b"d" * 32).opening
    for kept in range(len(stale) + 1):
        events = list(AgentLink().feed(stale[:kept] + HostLink(NONCE).opening))
        assert events[-1] == ("open", NONCE), kept


def test_nonces_are_fresh_and_fit_the_frame():
    nonces = {new_nonce() for _ in range(1000)}
    assert len(nonces) == 1000
    assert all(len(nonce) == 32 and set(nonce) <= set(b"0123456789abcdef") for nonce in nonces)
