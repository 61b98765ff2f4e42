# SPDX-License-Identifier: Apache-2.0
"""What nftables is told of policies. That it understands, and what comes of it, tests/contract/network has."""

import zlib
from ipaddress import IPv4Address, IPv4Network

import pytest

from hyperd.model.policy import EgressMode, EgressPolicy, EgressRule, PortRange, Service
from hyperd.network.policy.group_rules import members_set
from hyperd.network.policy.rules import (
    NOWHERE,
    Judged,
    learned_set,
    render_base,
    render_gone,
    render_stale,
    render_wire,
)
from hyperd.network.policy.wire import Wire

SUBNET = IPv4Network("10.213.0.0/16")
WIRE = Wire("hyt123456789012", IPv4Address("10.213.0.2"), "bridge", "hyper0", SUBNET, SUBNET[1])
WEB = Service("tcp", (PortRange(80, 80), PortRange(443, 443)))


def listed(*rules):
    return EgressPolicy(EgressMode.LISTED, rules)


def outward(policy):
    lines = render_wire("t", Judged(WIRE, policy)).splitlines()
    start = f"add rule inet t_policy from_{WIRE.name} "
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def test_under_none_everything_is_refused():
    assert outward(EgressPolicy(EgressMode.NONE)) == [f"goto refuse_{WIRE.name}"]


@pytest.mark.parametrize("mode", list(EgressMode))
def test_whatever_no_rule_lets_through_is_refused(mode):
    assert outward(EgressPolicy(mode))[-1] == f"goto refuse_{WIRE.name}"


def test_link_local_addresses_are_out_of_reach_unless_they_are_named():
    everywhere = outward(listed(EgressRule((), (IPv4Network("0.0.0.0/0"),), (), WEB)))
    guard = next(index for index, rule in enumerate(everywhere) if f"@{NOWHERE} " in rule)
    (elements,) = (
        line for line in render_base("t", WIRE, internal=False).splitlines() if f"{NOWHERE} {{ 0" in line
    )
    assert "169.254.0.0/16" in elements
    assert everywhere[guard].endswith(f"goto refuse_{WIRE.name}")
    assert not any(rule.endswith("accept") for rule in everywhere[:guard])
    named = outward(listed(EgressRule((), (IPv4Network("169.254.169.254/32"),), (), WEB)))
    assert named[1] == "ip daddr { 169.254.169.254/32 } meta l4proto tcp th dport { 80, 443 } accept"


def test_ranges_within_others_are_left_to_them():
    networks = (IPv4Network("10.1.0.0/16"), IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.0/24"))
    rules = outward(listed(EgressRule((), networks, (), Service())))
    assert "ip daddr { 10.0.0.0/8, 192.0.2.0/24 } accept" in rules


def test_names_of_one_service_are_one_set():
    rules = (EgressRule(("a.test",), (), (), WEB), EgressRule(("b.test",), (), (), WEB))
    text = render_wire("t", Judged(WIRE, listed(*rules)))
    assert text.count(f"add set inet t_policy {learned_set(WIRE.name, WEB)} ") == 1


def test_groups_whose_names_share_a_checksum_share_no_members():
    names = "ckvdpyjfm", "jmuzvgsyz"
    assert len({zlib.crc32(name.encode()) for name in names}) == 1
    assert len({members_set(name) for name in names}) == 2


def test_a_packet_s_way_does_not_grow_with_the_wires():
    base = render_base("t", WIRE, internal=False)
    hooks = {"outward", "inward", "host", "sent", "names"}
    more = render_wire("t", Judged(WIRE, listed(EgressRule(("a.test",), (), (), WEB))))
    assert all(f"add chain inet t_policy {hook} {{" in base for hook in hooks)
    assert not any(f"add rule inet t_policy {hook} " in more for hook in hooks)


def test_what_was_added_is_taken_out():
    policy = listed(EgressRule(("a.test",), (), (), WEB), EgressRule(("b.test",), (), (), Service()))
    added = render_wire("t", Judged(WIRE, policy)).splitlines()
    gone = render_gone("t", Judged(WIRE, policy)).splitlines()
    for what in ("set", "chain"):
        names = {line.split()[4] for line in added if line.startswith(f"add {what} ")}
        assert names <= {line.split()[4] for line in gone if line.startswith(f"delete {what} ")}


def test_sets_that_no_policy_needs_any_more_go():
    before, now = listed(EgressRule(("a.test",), (), (), WEB)), EgressPolicy(EgressMode.NONE)
    name = learned_set(WIRE.name, WEB)
    assert f"delete set inet t_policy {name}" in render_stale("t", Judged(WIRE, now), [before])
    assert name not in render_stale("t", Judged(WIRE, before), [before])


def test_on_an_internal_network_nothing_leaves_it():
    assert f"add rule inet t_policy outward ip daddr != {SUBNET} iifname vmap" in render_base(
        "t", WIRE, internal=True
    )
