# SPDX-License-Identifier: Apache-2.0
"""Security groups as hyper.sh wrote them."""

import contextlib
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError
from hyperd.model.policy import Direction, GroupRule, PortRange, SecurityGroup, Service
from hyperd.network.policy.group_document import parse_security_group
from hyperd.network.policy.group_rules import begun, heard
from hyperd.network.policy.groups import parse_kept, render_document

WHOLE = """\
name: sg-test-1
description: sg-test-description
rules:
- direction: ingress
  port_range_min: 22
  port_range_max: 22
  protocol: tcp
  remote_ip_prefix: "0.0.0.0/0"
- direction: egress
  protocol: ""
  remote_group_name: lb
- direction: ingress
  protocol: icmp
  port_range_min: 8
"""
SUBNET, SUBNET6 = IPv4Network("10.213.0.0/16"), IPv6Network("fd12::/64")
networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda pair: IPv4Network(pair, strict=False)
    ),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda pair: IPv6Network(pair, strict=False)
    ),
)
whom: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}), networks.map(lambda network: {"network": network}), st.just({"group": "other"})
)


@st.composite
def group_rules(draw):
    protocol = draw(st.sampled_from(["", "tcp", "udp", "icmp", "icmpv6"]))
    most = 255 if protocol.startswith("icmp") else 65535
    first, last = sorted(draw(st.tuples(st.integers(1, most), st.integers(1, most))))
    ports = draw(st.sampled_from([(), (PortRange(first, last),)]))
    return GroupRule(draw(st.sampled_from(Direction)), Service(protocol, ports), **draw(whom))


def test_a_document_is_its_rules():
    assert parse_security_group(WHOLE) == SecurityGroup(
        "sg-test-1",
        "sg-test-description",
        (
            GroupRule(Direction.INGRESS, Service("tcp", (PortRange(22, 22),)), IPv4Network("0.0.0.0/0")),
            GroupRule(Direction.EGRESS, Service(), None, "lb"),
            GroupRule(Direction.INGRESS, Service("icmp", (PortRange(8, 8),))),
        ),
    )


def test_the_command_may_name_what_the_document_does_not():
    assert parse_security_group("rules: []", "web").name == "web"
    assert parse_security_group("{name: web}", "web").rules == ()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("rules: []", 1, "is not a name"),
        ("name: a b", 1, "is not a name"),
        ("name: other", 1, "it is of 'other'"),
        ("rules:\n- direction: in\n", 2, "is not ingress or egress"),
        ("rules:\n- protocol: tcp\n", 2, "is not ingress or egress"),
        ("rules:\n- direction: ingress\n  protocol: sctp\n", 3, "is not tcp, udp, icmp"),
        ("rules:\n- direction: ingress\n  port_range_min: 0\n", 3, "not between 1 and 65535"),
        (
            "rules:\n- direction: ingress\n  protocol: icmp\n  port_range_min: 256\n",
            4,
            "not between 0 and 255",
        ),
        ("rules:\n- direction: ingress\n  port_range_max: 9\n", 2, "has no port_range_min"),
        ("rules:\n- direction: ingress\n  port_range_min: 9\n  port_range_max: 8\n", 4, "8 is before 9"),
        (
            "rules:\n- direction: ingress\n  remote_ip_prefix: 10.0.0.0/8\n  remote_group_name: x\n",
            4,
            "not both",
        ),
        ("rules:\n- direction: ingress\n  remote_ip_prefix: [10.0.0.0/8, 11.0.0.0/8]\n", 2, "one prefix"),
        ("rules: {}", 1, "is no list"),
        ("rule: []", 1, "none of the keys"),
        ('description: "a\\tb"', 1, "no line of at most"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, line, says):
    with pytest.raises(InvalidError) as raised:
        parse_security_group(text, "" if "name" in says else "web", "web.yaml")
    assert f"web.yaml, line {line}" in str(raised.value)
    assert says in str(raised.value)


@given(st.lists(group_rules(), max_size=5), st.text(max_size=20))
def test_what_is_kept_is_read_back_to_the_same(rules, description):
    group = SecurityGroup("web", description, tuple(rules))
    assert parse_kept(render_document(group)) == group


@given(st.text(alphabet="rulesdirectionngprotocol:- \n[]{}&*,0123456789'\"", max_size=100))
def test_any_text_is_a_group_or_a_refusal(text):
    with contextlib.suppress(InvalidError):
        assert parse_security_group(text, "web").name == "web"


@given(st.lists(group_rules(), max_size=5))
def test_whatever_no_rule_lets_in_is_refused(rules):
    group = SecurityGroup("web", "", tuple(rules))
    for subnets in ((SUBNET,), (SUBNET, SUBNET6)):
        told = list(heard([group], "hyper0", subnets))
        assert all(rule.endswith("accept") for rule in told[:-2])
        assert "reject" in told[-2]
        assert "reject" in told[-1]
        places = ('iifname "hyper0"', "iifname @routed")
        words = zip(("ip", "ip6"), subnets, strict=False)
        ours = [f"{place} {word} saddr {subnet}" for word, subnet in words for place in places]
        assert all(rule.startswith(("ct status dnat", *ours)) for rule in told[:-2])


@given(group_rules())
def test_a_rule_is_one_for_each_way_in_of_its_family(rule):
    told = list(heard([SecurityGroup("web", "", (rule,))], "hyper0", (SUBNET,)))
    ways = 2 if rule.group else 3  # from the bridge, from other taps, and but of a group by what is published
    is_ipv6 = rule.service.protocol == "icmpv6" or isinstance(rule.network, IPv6Network)
    is_told = rule.direction is Direction.INGRESS and not is_ipv6
    assert len(told) == 2 + (ways if is_told else 0)


def test_what_a_family_has_not_is_no_rule_of_it():
    pings, pings6 = Service("icmp", (PortRange(8, 8),)), Service("icmpv6", (PortRange(128, 128),))
    rules = [GroupRule(Direction.EGRESS, each) for each in (pings, pings6, Service("icmp"))]
    told = list(begun([SecurityGroup("web", "", tuple(rules))], "refuse", (4, 6)))
    assert told == [
        "meta l4proto icmp icmp type { 8 } accept",
        "meta l4proto ipv6-icmp icmpv6 type { 128 } accept",
        "meta l4proto icmp accept",
        "meta l4proto ipv6-icmp accept",
        "goto refuse",
    ]
    only = GroupRule(Direction.EGRESS, Service("tcp"), SUBNET6)
    assert list(begun([SecurityGroup("web", "", (only,))], "refuse")) == ["goto refuse"]


@given(st.lists(group_rules(), max_size=5))
def test_whatever_no_rule_lets_out_is_refused_once_there_is_one(rules):
    told = list(begun([SecurityGroup("web", "", tuple(rules))], "refuse", (4, 6)))
    some = any(rule.direction is Direction.EGRESS for rule in rules)
    assert told[-1] == ("goto refuse" if some else "accept")
