# SPDX-License-Identifier: Apache-2.0
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from hyperd.network.nameservers import without_ours
from hyperd.network.resolver import Resolver, choose_resolver, host_servers, parse_resolv_conf
from hyperd.network.settings import BridgeSettings


def test_servers_searches_and_options_are_taken_over():
    text = """
# a comment
nameserver 192.0.2.1
nameserver\t192.0.2.2
; another
search a.example b.example
options ndots:2 timeout:1
"""
    assert parse_resolv_conf(text) == Resolver(
        ("192.0.2.1", "192.0.2.2"), ("a.example", "b.example"), ("ndots:2", "timeout:1")
    )


def test_the_last_search_counts_and_domain_is_one():
    assert parse_resolv_conf("search a.example\ndomain b.example").searches == ("b.example",)


def test_at_most_three_servers_and_none_twice():
    text = "\n".join(f"nameserver 192.0.2.{number}" for number in (1, 1, 2, 3, 4))
    assert parse_resolv_conf(text).servers == ("192.0.2.1", "192.0.2.2", "192.0.2.3")


def test_what_a_guest_cannot_reach_is_left_out():
    text = "nameserver 127.0.0.1\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver 0.0.0.0"
    assert parse_resolv_conf(text).servers == ()


def test_behind_systemds_stub_are_the_servers_that_it_asks():
    main = "nameserver 127.0.0.53\noptions edns0 trust-ad ndots:1\nsearch a.example"
    behind = "nameserver 192.0.2.53\nsearch b.example"
    assert choose_resolver(main, behind) == Resolver(("192.0.2.53",), ("a.example",), ("ndots:1",))


def test_no_server_is_said_by_an_empty_list():
    assert choose_resolver("nameserver 127.0.0.1", "") == Resolver()
    assert choose_resolver("", "") == Resolver()


def test_what_hyperd_asks_is_what_the_host_asks():
    text = "nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver x\nnameserver 2001:db8::1\nnameserver ::\n"
    assert host_servers(text) == ("127.0.0.53", "fe80::1%eth0", "2001:db8::1")
    assert host_servers("") == ("127.0.0.1",), "resolv.conf(5)"


def test_our_own_servers_are_not_asked_what_they_were_asked():
    settings = BridgeSettings(0, subnet=IPv4Network("10.1.0.0/24"), subnet6=IPv6Network("fd00::/64"))
    upstream = without_ours(lambda: ["10.1.0.1", "192.0.2.1", "fd00::1"], lambda: [settings])
    assert upstream() == ["192.0.2.1"]


@given(st.text(), st.text())
def test_any_text_gives_only_addresses_and_single_words(main, behind):
    resolver = choose_resolver("nameserver " + main, behind)
    assert len(resolver.servers) <= 3
    for server in resolver.servers:
        assert str(IPv4Address(server)) == server
    for word in resolver.searches + resolver.options:
        assert word.isascii()
        assert len(word.split()) == 1
