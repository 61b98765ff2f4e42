# SPDX-License-Identifier: Apache-2.0
from ipaddress import IPv4Address

import pytest

from hyperd.model.network import Protocol
from hyperd.network.forwards import AT_ADDRESS, AT_ANY, Forward, element, render

TCP, UDP = Protocol.TCP, Protocol.UDP
GUEST = IPv4Address("10.213.0.2")


def forward(host_ip="0.0.0.0", host_port=8080, protocol=TCP):
    return Forward(protocol, IPv4Address(host_ip), host_port, GUEST, 80)


@pytest.mark.parametrize(
    ("other", "overlaps"),
    [
        ((TCP, "0.0.0.0", 8080), True),
        ((TCP, "127.0.0.1", 8080), True),
        ((UDP, "0.0.0.0", 8080), False),
        ((TCP, "0.0.0.0", 8081), False),
    ],
)
def test_all_addresses_are_in_the_way_of_each(other, overlaps):
    protocol, host_ip, host_port = other
    assert forward().overlaps(protocol, IPv4Address(host_ip), host_port) is overlaps
    assert forward(host_ip, host_port, protocol).overlaps(TCP, IPv4Address("0.0.0.0"), 8080) is overlaps


def test_two_addresses_are_not_in_each_others_way():
    assert not forward("127.0.0.1").overlaps(TCP, IPv4Address("127.0.0.2"), 8080)


NETWORK = ("hyper0", "10.213.0.0/16", "10.213.0.1")


def test_a_port_is_one_element_of_one_of_two_maps_and_no_rule():
    many = [forward(host_port=port) for port in range(8000, 8100)] + [forward("127.0.0.1", 7000, UDP)]
    text, empty = render(*NETWORK, many), render(*NETWORK, [])
    assert text.count("\n") == empty.count("\n") + 2, "a line of elements each"
    assert "tcp . 8099 : 10.213.0.2 . 80" in text
    assert "127.0.0.1 . udp . 7000 : 10.213.0.2 . 80" in text
    assert [element(each).where for each in many[-2:]] == [AT_ANY, AT_ADDRESS]
