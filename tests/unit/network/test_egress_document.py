# SPDX-License-Identifier: Apache-2.0
"""Egress policies as people write them."""

import contextlib
import itertools
import json
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError
from hyperd.model.policy import EgressMode, EgressPolicy, EgressRule, PortRange, Service
from hyperd.network.policy.document import MAX_RULES, merged, parse_egress

WHOLE = """\
allow:
  - domain: pypi.org
    ports: 443
  - domain: ["*.PythonHosted.org.", files.test]
    ports: [443, 8000-8010]
    protocol: tcp
  - cidr: 192.0.2.0/24
    protocol: icmp
  - cidr: [198.51.100.7]
"""
ports = st.integers(1, 65535)


def test_a_document_is_its_rules():
    assert parse_egress(WHOLE) == EgressPolicy(
        EgressMode.LISTED,
        (
            EgressRule(("pypi.org",), (), (), Service("", (PortRange(443, 443),))),
            EgressRule(
                ("*.pythonhosted.org", "files.test"),
                (),
                (),
                Service("tcp", (PortRange(443, 443), PortRange(8000, 8010))),
            ),
            EgressRule((), (IPv4Network("192.0.2.0/24"),), (), Service("icmp")),
            EgressRule((), (IPv4Network("198.51.100.7/32"),), (), Service()),
        ),
    )


def test_json_is_read_as_well():
    document = {"allow": [{"domain": ["a.test"], "ports": [80, "443"]}]}
    (rule,) = parse_egress(json.dumps(document)).rules
    assert rule.service.ports == (PortRange(80, 80), PortRange(443, 443))


@pytest.mark.parametrize("mode", [EgressMode.NONE, EgressMode.ALLOW_ALL])
def test_a_word_is_a_policy(mode):
    assert parse_egress(mode.value) == EgressPolicy(mode)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("some", 1, "is not none, allow-all"),
        ("allow:\n  - domain: a b\n", 2, "is not a domain name"),
        ("allow:\n  - domain: a.test\n    ports: 0\n", 3, "'0' is not a port"),
        ("allow:\n  - domain: a.test\n    ports: 80-79\n", 3, "is not a port"),
        ("allow:\n  - domain: a.test\n    ports: [80,\n      65536]\n", 4, "is not a port"),
        ("allow:\n  - cidr: 10.0.0.1/8\n", 2, "is no network"),
        ("allow:\n  - cidr: []\n", 2, "is empty"),
        ("allow:\n  - group: -x\n", 2, "is not a name"),
        ("allow:\n  - ports: 80\n", 2, "needs a domain, a cidr or a group"),
        ("allow:\n  - domain: a.test\n    protocol: sctp\n", 3, "is not tcp, udp or icmp"),
        ("allow:\n  - cidr: 0.0.0.0/0\n    protocol: icmp\n    ports: 80\n", 4, "icmp has no ports"),
        ("allow:\n  - domian: a.test\n", 2, "'domian' is none of the keys"),
        ("allow:\n  - domain: a.test\n    domain: b.test\n", 3, "stands here twice"),
        ("deny:\n  - domain: a.test\n", 1, "'deny' is none of the keys"),
        ("allow:\n", 1, "no list of rules"),
        ("- domain: a.test\n", 1, "should be keys"),
        ("allow:\n  - domain: ä.test\n", 2, "xn--"),
        ("allow:\n\t- x\n", 2, "neither YAML nor JSON"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, line, says):
    with pytest.raises(InvalidError) as raised:
        parse_egress(text, "policy.yaml")
    assert f"policy.yaml, line {line}" in str(raised.value)
    assert says in str(raised.value)


def test_what_is_too_much_is_refused():
    with pytest.raises(InvalidError, match="more than 256 rules"):
        parse_egress("allow:\n" + "  - domain: a.test\n" * (MAX_RULES + 1))
    many = ", ".join(str(port) for port in range(1, 5000))
    with pytest.raises(InvalidError, match="more than 4096"):
        parse_egress(f"allow: [{{domain: a.test, ports: [{many}]}}]")
    with pytest.raises(InvalidError, match="larger than"):
        parse_egress("#" * (1 << 19))
    with pytest.raises(InvalidError, match="is empty"):
        parse_egress("# nothing")


def test_ranges_are_of_either_family():
    (rule,) = parse_egress("allow: [{cidr: ['2001:db8::/32', 192.0.2.7, 'fd00::1']}]").rules
    assert [str(each) for each in rule.networks] == ["2001:db8::/32", "192.0.2.7/32", "fd00::1/128"]


@pytest.mark.parametrize("cidr", ["fe80::1%eth0", "2001:db8::1/32", "fd00::/129"])
def test_what_is_no_range_of_ipv6_is_refused(cidr):
    with pytest.raises(InvalidError, match="line 1"):
        parse_egress(f"allow: [{{cidr: '{cidr}'}}]")


def require_policy_or_refusal(text):
    with contextlib.suppress(InvalidError):
        assert isinstance(parse_egress(text), EgressPolicy)


@given(st.text())
def test_any_text_is_a_policy_or_a_refusal(text):
    require_policy_or_refusal(text)


@given(st.text(alphabet="allow:- \n[]{}domaincidrports*&.,0123456789'\"", max_size=80))
def test_what_looks_like_a_document_is_one_or_a_refusal(text):
    require_policy_or_refusal(f"allow:\n  - domain: a.test\n{text}")


@given(st.lists(st.tuples(ports, ports).map(sorted).map(lambda pair: PortRange(*pair))))
def test_merged_ranges_are_the_same_ports_and_lie_apart(ranges):
    found = merged(ranges)
    assert list(found) == sorted(found)
    assert all(one.last + 1 < other.first for one, other in itertools.pairwise(found))
    edges = {edge + step for each in ranges for edge in (each.first, each.last) for step in (-1, 0, 1)}
    for port in edges:
        assert any(each.first <= port <= each.last for each in ranges) == any(
            each.first <= port <= each.last for each in found
        )
