# SPDX-License-Identifier: Apache-2.0
"""Which names may be looked up, and which addresses are told."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import dns.edns
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.model.policy import EgressMode, EgressPolicy, EgressRule, PortRange, Service
from hyperd.network.policy.screening import (
    GRACE_S,
    LEAST_S,
    MAX_ADDRESSES,
    MOST_S,
    is_public,
    may_look_up,
    prohibited,
    services_for,
    sift,
    text_of,
)

WEB, SSH = Service("tcp", (PortRange(443, 443),)), Service("tcp", (PortRange(22, 22),))


def policy(*domains, networks=(), service=WEB):
    return EgressPolicy(
        EgressMode.LISTED, (EgressRule(domains, tuple(map(ip_network, networks)), (), service),)
    )


def answered(name, *records):
    query = dns.message.make_query(name, "A")
    made = dns.message.make_response(query)
    for kind, ttl, *values in records:
        made.answer.append(dns.rrset.from_text(query.question[0].name, ttl, "IN", kind, *values))
    return made


@pytest.mark.parametrize(
    ("domain", "name", "allowed"),
    [
        ("a.test", "a.test", True),
        ("a.test", "b.a.test", False),
        ("a.test", "xa.test", False),
        ("*.a.test", "b.a.test", True),
        ("*.a.test", "c.b.a.test", True),
        ("*.a.test", "a.test", False),
        ("*.a.test", "xa.test", False),
        ("*", "whatever", True),
    ],
)
def test_a_domain_allows_itself_or_what_is_beneath_it(domain, name, allowed):
    assert may_look_up(policy(domain), name) is allowed


def test_a_name_has_the_services_of_every_rule_that_has_it():
    both = EgressPolicy(EgressMode.LISTED, (*policy("a.test").rules, *policy("*", service=SSH).rules))
    assert services_for(both, "a.test") == (WEB, SSH)
    assert services_for(both, "b.test") == (SSH,)


def test_names_are_compared_in_lower_case():
    assert text_of(dns.message.make_query("PyPI.Org.", "A")) == "pypi.org"


def test_an_answer_is_told_with_how_long_its_addresses_hold():
    made = sift(
        policy("a.test"), answered("a.test", ("A", 5, "93.184.216.34"), ("A", 90_000, "93.184.216.35"))
    )
    assert dict(made.told)[IPv4Address("93.184.216.34")] >= LEAST_S + GRACE_S
    assert max(rrset.ttl for rrset in made.message.answer) <= MOST_S


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "172.20.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ],
)
def test_an_address_inside_is_left_out_unless_the_policy_names_it(address):
    trap = answered("a.test", ("A", 60, address, "93.184.216.34"))
    made = sift(policy("a.test"), trap)
    assert made.left_out == (IPv4Address(address),)
    assert address not in made.message.to_text()
    named = sift(policy("a.test", networks=[address]), answered("a.test", ("A", 60, address)))
    assert [found for found, _ in named.told] == [IPv4Address(address)]


def test_our_own_zone_is_no_trap():
    made = sift(policy("db"), answered("db", ("A", 1, "10.213.0.9")), {IPv4Address("10.213.0.9")})
    assert [found for found, _ in made.told] == [IPv4Address("10.213.0.9")]


PUBLIC6 = "2606:2800:220:1::34"


def test_addresses_of_ipv6_are_told_to_whom_has_any():
    both = ("A", 60, "93.184.216.34"), ("AAAA", 60, PUBLIC6)
    made = sift(policy("a.test"), answered("a.test", *both), has_ipv6=True)
    assert dict(made.told).keys() == {IPv4Address("93.184.216.34"), IPv6Address(PUBLIC6)}
    alone = sift(policy("a.test"), answered("a.test", *both))
    assert dict(alone.told).keys() == {IPv4Address("93.184.216.34")}
    assert PUBLIC6 not in alone.message.to_text()
    assert not alone.left_out, "it is no trap"


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "::10.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:93.184.216.34",
        "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:a00:1::1",
        "3fff::1",
        "fd00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_inside_is_left_out_in_ipv6(address):
    trap = answered("a.test", ("AAAA", 60, address, PUBLIC6))
    made = sift(policy("a.test"), trap, has_ipv6=True)
    assert made.left_out == (IPv6Address(address),)
    assert dict(made.told).keys() == {IPv6Address(PUBLIC6)}
    named = sift(
        policy("a.test", networks=[address]), answered("a.test", ("AAAA", 60, address)), has_ipv6=True
    )
    assert [found for found, _ in named.told] == [IPv6Address(address)]


def test_what_a_translator_leads_to_the_public_is_public():
    assert is_public(IPv6Address("64:ff9b::93.184.216.34"))


def test_as_many_addresses_are_told_as_are_let_through():
    many = [f"93.184.{number // 250}.{number % 250 + 1}" for number in range(200)]
    made = sift(policy("a.test"), answered("a.test", ("A", 60, *many)))
    assert len(made.told) == MAX_ADDRESSES == sum(len(rrset) for rrset in made.message.answer)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_no_address_is_told_that_is_not_let_through(address):
    made = sift(policy("*"), answered("a.test", ("A", 60, str(address))))
    told = [rdata.address for rrset in made.message.answer for rdata in rrset]
    assert told == [str(found) for found, _ in made.told]
    assert bool(told) is is_public(address)
    assert bool(told) is not bool(made.left_out)


def test_a_refusal_says_why_to_whoever_can_hear_it():
    plain = prohibited(dns.message.make_query("a.test", "A"))
    assert plain.rcode() == dns.rcode.NXDOMAIN
    spoken = prohibited(dns.message.make_query("a.test", "A", use_edns=0))
    assert [option.code for option in spoken.options] == [dns.edns.EDECode.PROHIBITED]
