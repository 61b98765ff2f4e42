# SPDX-License-Identifier: Apache-2.0
"""A sandbox with a policy on two networks: it is held to it on both, and told of as one."""

from hyperd.model.network import Endpoint, NetworkSpec
from hyperd.model.policy import Limits
from hyperd.network import BridgeNetworks
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.egress import POLICED, rules


async def test_both_are_armed_and_disarmed_and_counted_once(database):
    networks = BridgeNetworks(SETTINGS, database, lambda: ())
    try:
        await networks.prepare()
        await networks.create_network(NetworkSpec("back"))
        await networks.policies.impose(POLICED, Limits("none"), "job")
        one = await networks.attach(POLICED)
        two = await networks.attach(POLICED, endpoint=Endpoint("back"), slot=1)
        told = await rules()
        for made in (one, two):
            assert f'"{made.tap}" : goto from_{made.tap}' in told.replace("\t", "")
        assert one.dns_servers == (one.gateway,)
        await networks.detach(POLICED)
        await networks.release(POLICED)
        assert "_policy" not in await rules()
        await networks.remove_network("back")
    finally:
        networks.close()
        await clean()
