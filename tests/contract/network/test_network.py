# SPDX-License-Identifier: Apache-2.0
"""What every network promises, the fake one included."""

from ipaddress import IPv4Network

import pytest

from hyperd.errors import ExhaustedError
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetwork, BridgeSettings, Network
from tests.contract.network.conftest import SETTINGS, clean
from tests.fakes.network import FakeNetwork

SUBNET = IPv4Network("10.213.0.0/28")


def box(number):
    return SandboxId(f"{number:02x}" * 32)


@pytest.fixture(params=["fake", "bridge"])
async def network(request, database):
    if request.param == "fake":
        yield FakeNetwork(str(SUBNET))
        return
    real = BridgeNetwork(BridgeSettings(tap_owner_uid=0, bridge=SETTINGS.bridge, subnet=SUBNET), database)
    await real.prepare()
    yield real
    for owner in await real.list_attached():
        await real.release(owner)
    real.close()
    await clean()


async def test_a_sandbox_keeps_its_address_until_it_is_released(network: Network):
    first = await network.attach(box(1))
    assert await network.attach(box(1)) == first
    await network.detach(box(1))
    assert await network.list_attached() == {box(1)}
    assert (await network.attach(box(1))).address == first.address
    await network.release(box(1))
    assert await network.list_attached() == set()


async def test_sandboxes_have_nothing_in_common_but_the_gateway(network: Network):
    one, two = [await network.attach(box(number)) for number in (1, 2)]
    assert {one.address, one.mac, one.tap}.isdisjoint({two.address, two.mac, two.tap})
    assert one.gateway == two.gateway
    assert one.prefix_length == SUBNET.prefixlen


async def test_detaching_and_releasing_twice_is_fine(network: Network):
    for _ in range(2):
        await network.detach(box(1))
        await network.release(box(1))
    await network.attach(box(1))
    for _ in range(2):
        await network.detach(box(1))
    for _ in range(2):
        await network.release(box(1))


async def test_an_exhausted_subnet_says_so_and_leaves_nothing(network: Network):
    for number in range(13):
        await network.attach(box(number))
    with pytest.raises(ExhaustedError):
        await network.attach(box(99))
    assert await network.list_attached() == {box(number) for number in range(13)}
    await network.release(box(5))
    await network.attach(box(99))
