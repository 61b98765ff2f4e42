# SPDX-License-Identifier: Apache-2.0
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyperd.errors import ExhaustedError
from hyperd.network.pool import Pool, address4_of, address6_of, link_local_of, mac_of

SUBNET = IPv4Network("10.9.8.0/28")
GATEWAY = SUBNET[1]
USABLE = set(SUBNET.hosts()) - {GATEWAY}
subnets = st.integers(20, 29).flatmap(
    lambda prefix: st.integers(0, 2**prefix - 1).map(
        lambda number: IPv4Network((number << (32 - prefix), prefix))
    )
)


def without(pool: Pool, address: IPv4Address) -> Pool:
    """As the next lease finds it after one was released: made anew from the records."""
    return Pool.of(pool.subnet, pool.gateway, pool.taken - {address}, pool.last)


@given(subnets, st.integers(1, 40))
def test_no_address_is_given_twice_nor_one_that_is_not_for_guests(subnet, count):
    pool, given_out = Pool(subnet, subnet[1]), []
    for _ in range(min(count, subnet.num_addresses - 3)):
        address, pool = pool.give()
        given_out.append(address)
    assert len(set(given_out)) == len(given_out)
    assert not {subnet.network_address, subnet.broadcast_address, subnet[1]} & set(given_out)
    assert all(address in subnet for address in given_out)


def test_the_whole_subnet_is_used_and_then_the_pool_says_so():
    pool, given_out = Pool(SUBNET, GATEWAY), set()
    for _ in USABLE:
        address, pool = pool.give()
        given_out.add(address)
    assert given_out == USABLE
    with pytest.raises(ExhaustedError, match="13 addresses"):
        pool.give()
    address, _ = without(pool, SUBNET[7]).give()
    assert address == SUBNET[7]


def test_an_address_given_back_is_the_last_to_be_given_again():
    pool = Pool(SUBNET, GATEWAY)
    first, pool = pool.give()
    order = []
    pool = without(pool, first)
    for _ in USABLE:
        address, pool = pool.give()
        order.append(address)
    assert order[-1] == first


def test_addresses_of_another_subnet_count_for_nothing():
    other = IPv4Address("192.0.2.9")
    assert Pool.of(SUBNET, GATEWAY, [other, SUBNET[2]], other) == Pool(
        SUBNET, GATEWAY, frozenset({SUBNET[2]})
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_macs_are_local_unicast_and_differ_as_the_addresses_do(one, other):
    macs = mac_of(IPv4Address(one)), mac_of(IPv4Address(other))
    assert (macs[0] == macs[1]) == (one == other)
    assert int(macs[0][:2], 16) & 3 == 2


class Leasing(RuleBasedStateMachine):
    """Give and take back in any order."""

    def __init__(self):
        super().__init__()
        self.pool = Pool(SUBNET, GATEWAY)
        self.held: set[IPv4Address] = set()

    @rule()
    def give(self):
        if self.held == USABLE:
            with pytest.raises(ExhaustedError):
                self.pool.give()
            return
        address, self.pool = self.pool.give()
        assert address not in self.held
        self.held.add(address)

    @rule(data=st.data())
    def take_back(self, data):
        if self.held:
            address = data.draw(st.sampled_from(sorted(self.held)))
            self.held.remove(address)
            self.pool = without(self.pool, address)

    @invariant()
    def agrees(self):
        assert self.pool.taken == self.held <= USABLE


TestLeasing = Leasing.TestCase


def test_an_ipv6_address_stands_where_its_ipv4_address_does_and_back():
    subnet6 = IPv6Network("fd12:3456::/64")
    found = {address6_of(address, SUBNET, subnet6): address for address in SUBNET}
    assert len(found) == SUBNET.num_addresses
    for address6, address in found.items():
        assert address6 in subnet6
        assert address4_of(address6, SUBNET, subnet6) == address
    assert address4_of(subnet6[SUBNET.num_addresses], SUBNET, subnet6) is None
    assert address4_of(IPv6Address("::1"), SUBNET, subnet6) is None


@given(st.binary(min_size=6, max_size=6))
def test_a_link_local_address_says_its_mac(mac):
    made = link_local_of(":".join(f"{byte:02x}" for byte in mac))
    assert made.is_link_local
    assert made.packed[8:11] + made.packed[13:] == bytes([mac[0] ^ 2]) + mac[1:]
