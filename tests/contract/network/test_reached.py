# SPDX-License-Identifier: Apache-2.0
"""What is not published nobody beyond the network reaches, whatever a group lets in."""

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.model.network import Endpoint, NetworkSpec
from hyperd.model.policy import Limits
from hyperd.model.vm import SandboxId
from hyperd.network.tap import tap_name
from tests.contract.network.conftest import SETTINGS, Namespace
from tests.contract.network.egress import POLICED, connects, world
from tests.contract.network.test_security_groups import group, tcp

THIRD = SandboxId("3" * 64)
ANYBODY = tcp("ingress", 80)
BY_PREFIX = tcp("ingress", 80, remote_ip_prefix="0.0.0.0/0")


@pytest.mark.parametrize("rule", [ANYBODY, BY_PREFIX])
async def test_a_group_does_not_publish(database, rule):
    async with world(database, "") as it:
        await it.outside_knows(str(SETTINGS.subnet))
        await it.policies.groups.create(group("web", rule))
        await it.policies.change(POLICED, Limits("", ("web",)), "job")
        await it.networks.enforce(POLICED)
        address = it.leases[0].address
        assert await connects(it.neighbour, it.guest, address, 80), "the network itself"
        assert not await connects(it.outside, it.guest, address, 80)


@pytest.mark.parametrize("rule", [ANYBODY, BY_PREFIX])
async def test_a_group_lets_no_other_network_in(database, rule):
    async with world(database, "") as it:
        await it.policies.groups.create(group("web", rule))
        await it.policies.change(POLICED, Limits("", ("web",)), "job")
        await it.networks.enforce(POLICED)
        await it.networks.create_network(NetworkSpec("back"))
        stranger = await in_network(it, "back")
        try:
            assert not await connects(stranger, it.guest, it.leases[0].address, 80)
        finally:
            await it.networks.release(THIRD)
            await it.networks.remove_network("back")


async def in_network(it, name) -> Namespace:
    """A guest there."""
    lease = await it.networks.attach(THIRD, endpoint=Endpoint(network=name))
    bridge_name = it.networks.get_network(name).bridge
    guest = Namespace()
    it.stack.callback(guest.close)
    async with AsyncIPRoute() as netlink:
        for tap in await netlink.link_lookup(ifname=tap_name(THIRD)):
            await netlink.link("del", index=tap)
        (bridge,) = await netlink.link_lookup(ifname=bridge_name)
    address = f"{lease.address}/{lease.prefix_length}"
    wired = guest.wired(tap_name(THIRD), address, gateway=lease.gateway, mac=lease.mac, master=bridge)
    await it.stack.enter_async_context(wired)
    return guest
