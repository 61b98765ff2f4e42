# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest

from hyperd.errors import InvalidError, UnavailableError
from hyperd.model.vm import SandboxId
from hyperd.network import nat
from hyperd.network.bridge import HostRoute, choose_mtu, require_free
from hyperd.network.nat import render_rules
from hyperd.network.settings import BridgeSettings
from hyperd.network.tap import tap_name

SETTINGS = BridgeSettings(tap_owner_uid=64055)


def route(destination, interface="eth0", mtu=1500):
    return HostRoute(IPv4Network(destination), interface, mtu)


@pytest.mark.parametrize("destination", ["10.213.4.0/24", "10.213.0.0/16", "10.0.0.0/8", "10.213.0.9/32"])
def test_a_subnet_that_the_host_sends_elsewhere_is_refused(destination):
    with pytest.raises(UnavailableError, match=r"through eth0") as caught:
        require_free(SETTINGS.subnet, [route("0.0.0.0/0"), route(destination)], "hyper0")
    assert "another subnet" in caught.value.hint


def test_a_wider_route_is_no_overlap_once_the_bridge_is_there():
    ours = route("10.213.0.0/16", "hyper0")
    require_free(SETTINGS.subnet, [ours, route("10.0.0.0/8", "tun0")], "hyper0")
    with pytest.raises(UnavailableError):
        require_free(SETTINGS.subnet, [ours, route("10.213.4.0/24", "tun0")], "hyper0")


def test_the_default_route_and_our_own_are_no_overlap():
    routes = [route("0.0.0.0/0"), route("10.213.0.0/16", "hyper0"), route("172.17.0.0/16", "docker0")]
    require_free(SETTINGS.subnet, routes, "hyper0")


def test_the_mtu_is_as_configured_else_that_of_the_way_out_else_ethernets():
    assert choose_mtu(9000, [route("0.0.0.0/0", mtu=1460)]) == 9000
    assert choose_mtu(0, [route("0.0.0.0/0", mtu=1460), route("192.0.2.0/24", mtu=1280)]) == 1460
    assert choose_mtu(0, [route("0.0.0.0/0", mtu=9001)]) == 1500
    assert choose_mtu(0, []) == 1500


def test_rules_replace_the_table_as_a_whole():
    lines = render_rules(SETTINGS, []).splitlines()
    assert lines[:3] == [
        "table inet hyper_hyper0",
        "delete table inet hyper_hyper0",
        "table inet hyper_hyper0 {",
    ]


def test_name_servers_on_the_host_itself_are_reachable_and_nothing_else_is():
    with_dns = render_rules(SETTINGS, ["192.0.2.1", "192.0.2.2"])
    assert "ip daddr { 192.0.2.1, 192.0.2.2 } th dport 53 accept" in with_dns
    assert "ip daddr {" not in render_rules(SETTINGS, [])


def test_an_internal_network_has_no_way_out_at_all_and_none_in():
    rules = render_rules(replace(SETTINGS, internal=True, has_names=True), ["192.0.2.1"])
    for way in ("169.254", "192.0.2.1", "ct status dnat accept", f'iifname "{SETTINGS.bridge}" accept'):
        assert way in render_rules(SETTINGS, ["192.0.2.1"])
        assert way not in rules
    assert f"ip daddr {{ {SETTINGS.gateway} }} th dport 53 accept" in rules


@pytest.mark.parametrize(
    "wrong",
    [
        {"bridge": "much-too-long-name"},
        {"bridge": 'hyper0" accept'},
        {"subnet": IPv4Network("10.1.2.0/30")},
        {"mtu": 100},
        {"mtu": 65522},
        {"mtu": 1279, "subnet6": IPv6Network("fd00::/64")},
    ],
)
def test_settings_that_cannot_work_are_invalid(wrong):
    with pytest.raises(InvalidError):
        BridgeSettings(tap_owner_uid=0, **wrong)


def test_a_taps_name_fits_an_interface():
    name = tap_name(SandboxId("0123456789abcdef" * 4))
    assert name == "hyt0123456789ab"
    assert len(name) == 15


def test_an_interface_that_goes_while_ipv6_is_forwarded_is_none(tmp_path, monkeypatch):
    for interface, heeds in (("all", "1"), ("eth0", "1"), ("gone", None)):
        (tmp_path / interface).mkdir()
        if heeds is not None:
            (tmp_path / interface / "accept_ra").write_text(heeds)
    (tmp_path / "all" / "forwarding").write_text("0")
    monkeypatch.setattr(nat, "_INTERFACES6", tmp_path)
    assert nat.enable_forwarding6()
    assert (tmp_path / "all" / "forwarding").read_text() == "1"
    assert (tmp_path / "eth0" / "accept_ra").read_text() == "2"
