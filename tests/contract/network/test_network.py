# SPDX-License-Identifier: Apache-2.0
"""What every network promises, the fake one included."""

from ipaddress import IPv4Network

import pytest

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.network import Endpoint, NetworkSpec, PortRequest, Protocol, PublishedPort
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetworks, BridgeSettings, Network
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
    real = BridgeNetworks(BridgeSettings(tap_owner_uid=0, bridge=SETTINGS.bridge, subnet=SUBNET), database)
    await real.prepare()
    yield real
    for owner in await real.list_attached():
        await real.release(owner)
    for view in real.list_networks()[1:]:
        await real.remove_network(view.spec.name)
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


async def test_ports_are_published_until_the_sandbox_is_detached(network: Network):
    await network.attach(box(1), [PortRequest(80, host_port=8080), PortRequest(53, Protocol.UDP)], "one")
    dns, web = network.published(box(1))
    assert web == PublishedPort(80, Protocol.TCP, "0.0.0.0", 8080)
    assert (dns.container_port, dns.protocol) == (53, Protocol.UDP)
    assert dns.host_port > 0
    await network.detach(box(1))
    assert network.published(box(1)) == ()


async def test_a_port_that_another_has_is_refused_with_its_name_and_nothing_stays(network: Network):
    await network.attach(box(1), [PortRequest(80, host_port=8080)], "one")
    for host_ip in ("", "127.0.0.1"):
        with pytest.raises(ExistsError, match="in use by container one"):
            await network.attach(
                box(2), [PortRequest(81), PortRequest(80, host_ip=host_ip, host_port=8080)], "two"
            )
    assert network.published(box(2)) == ()
    await network.detach(box(1))
    await network.attach(box(2), [PortRequest(80, host_port=8080)], "two")


async def test_one_port_at_two_addresses_is_two_and_so_is_one_of_two_protocols(network: Network):
    for number, request in enumerate(
        (
            PortRequest(80, host_ip="127.0.0.1", host_port=8080),
            PortRequest(80, host_ip="127.0.0.2", host_port=8080),
            PortRequest(80, Protocol.UDP, host_ip="127.0.0.1", host_port=8080),
        )
    ):
        await network.attach(box(number), [request], f"box{number}")
        assert len(network.published(box(number))) == 1


async def test_of_a_range_one_that_is_free_is_taken(network: Network):
    requests = [PortRequest(80, host_port=8080, host_port_end=8081)]
    for number, host_port in ((1, 8080), (2, 8081)):
        await network.attach(box(number), requests, f"box{number}")
        assert [port.host_port for port in network.published(box(number))] == [host_port]
    with pytest.raises(ExistsError):
        await network.attach(box(3), requests, "box3")


async def test_further_ports_are_published_and_taken_back_all_or_none(network: Network):
    await network.attach(box(1))
    with pytest.raises(WrongStateError):
        await network.publish(box(2), [PortRequest(80)], "two")
    (made,) = await network.publish(box(1), [PortRequest(80, host_port=8080)], "one")
    with pytest.raises(ExistsError):
        await network.publish(box(1), [PortRequest(81), PortRequest(82, host_port=8080)], "one")
    assert network.published(box(1)) == (made,)
    other = PublishedPort(80, Protocol.TCP, "0.0.0.0", 8081)
    with pytest.raises(NotFoundError):
        await network.unpublish(box(1), [made, other])
    assert network.published(box(1)) == (made,)
    await network.unpublish(box(1), [made])
    assert network.published(box(1)) == ()


async def test_a_network_is_made_used_and_removed(network: Network):
    made = await network.create_network(NetworkSpec("back", labels={"team": "web"}))
    assert [view.spec.name for view in network.list_networks()] == ["bridge", "back"]
    assert network.get_network("back") == network.get_network(made.network_id) == made
    assert made.spec.labels == {"team": "web"}
    with pytest.raises(ExistsError):
        await network.create_network(NetworkSpec("back"))
    attachment = await network.attach(box(1), [PortRequest(80, host_port=8080)], "one", Endpoint("back"))
    assert attachment.network == "back"
    with pytest.raises(ExistsError, match="in use by container one"):
        await network.attach(box(2), [PortRequest(80, host_port=8080)], "two")
    with pytest.raises(WrongStateError):
        await network.remove_network("back")
    assert await network.list_attached() == {box(1)}
    await network.release(box(1))
    await network.remove_network("back")
    with pytest.raises(NotFoundError):
        network.get_network("back")


async def test_the_default_network_stays(network: Network):
    with pytest.raises(WrongStateError):
        await network.remove_network("bridge")


async def test_a_network_that_there_is_not_is_told(network: Network):
    for attempt in (
        lambda: network.attach(box(1), (), "one", Endpoint("nowhere")),
        lambda: network.remove_network("nowhere"),
    ):
        with pytest.raises(NotFoundError):
            await attempt()
    assert await network.list_attached() == set()


async def test_a_sandbox_has_the_address_that_it_asks_for_or_none(network: Network):
    assert (await network.attach(box(1), endpoint=Endpoint(address="10.213.0.9"))).address == "10.213.0.9"
    with pytest.raises(ExistsError):
        await network.attach(box(2), endpoint=Endpoint(address="10.213.0.9"))
    for address in ("10.213.0.0", "10.213.0.1", "10.213.0.15", "192.0.2.1"):
        with pytest.raises(InvalidError):
            await network.attach(box(2), endpoint=Endpoint(address=address))
    assert await network.list_attached() == {box(1)}
    given = [(await network.attach(box(number))).address for number in range(2, 14)]
    assert "10.213.0.9" not in given
    await network.detach(box(1))
    assert (await network.attach(box(1), endpoint=Endpoint(address="10.213.0.9"))).address == "10.213.0.9"


MAC = "02:00:00:00:00:07"


async def test_a_sandbox_on_several_networks_has_a_tap_and_an_address_on_each(network: Network):
    for name in ("back", "vault"):
        await network.create_network(NetworkSpec(name, internal=name == "vault"))
    made = [
        await network.attach(box(1), (), "one", Endpoint("bridge", mac_address=MAC), 0),
        await network.attach(box(1), (), "one", Endpoint("back", gateway_priority=3), 1),
        await network.attach(box(1), (), "one", Endpoint("vault"), 2),
    ]
    assert len({at.tap for at in made}) == 3
    assert [(at.network, at.slot, at.internal, at.gateway_priority) for at in made] == [
        ("bridge", 0, False, 0),
        ("back", 1, False, 3),
        ("vault", 2, True, 0),
    ]
    assert made[0].mac == MAC
    assert await network.list_parked(box(1)) == {}
    await network.detach(box(1))
    assert await network.attach(box(1), (), "one", Endpoint("back", gateway_priority=3), 1) == made[1]
    for name in ("back", "vault"):
        with pytest.raises(WrongStateError):
            await network.remove_network(name)
    await network.release(box(1))
    assert await network.list_attached() == set()


async def test_a_mac_address_is_given_once_in_a_network(network: Network):
    await network.create_network(NetworkSpec("back"))
    await network.attach(box(1), endpoint=Endpoint(mac_address=MAC))
    with pytest.raises(ExistsError, match=MAC):
        await network.attach(box(2), endpoint=Endpoint(mac_address=MAC))
    implied = (await network.attach(box(3))).mac
    with pytest.raises(ExistsError, match=implied):
        await network.attach(box(2), endpoint=Endpoint(mac_address=implied))
    assert await network.list_attached() == {box(1), box(3)}
    await network.attach(box(2), endpoint=Endpoint("back", mac_address=MAC))


async def test_who_leaves_a_network_has_a_tap_that_waits_and_nothing_else(network: Network):
    await network.create_network(NetworkSpec("back"))
    stays = await network.attach(box(1))
    left = await network.attach(box(1), [PortRequest(80, host_port=8080)], "one", Endpoint("back"), 1)
    for _ in range(2):
        await network.disconnect(box(1), "back")
    assert await network.list_parked(box(1)) == {1: left.tap}
    assert network.published(box(1)) == ()
    await network.remove_parked(box(1), stays.tap)
    assert await network.attach(box(1), (), "one") == stays
    again = await network.attach(box(1), (), "one", Endpoint("back"), 1)
    assert again.tap == left.tap, "it is used again"
    assert await network.list_parked(box(1)) == {}
    await network.disconnect(box(1), "back")
    await network.remove_parked(box(1), left.tap)
    assert await network.list_parked(box(1)) == {}
    await network.disconnect(box(1), "bridge")
    await network.detach(box(1))
    assert await network.list_attached() == set(), "a tap that waited goes, too"
    with pytest.raises(NotFoundError):
        await network.disconnect(box(1), "nowhere")


async def test_only_wanted_networks_are_kept(network: Network):
    await network.create_network(NetworkSpec("back"))
    for number in (1, 2):
        await network.attach(box(number))
        await network.attach(box(number), (), "x", Endpoint("back"), 1)
    assert await network.keep_only({box(1): ["bridge"]}) == {box(1)}
    assert await network.keep_only({box(1): ["bridge"], box(2): ["bridge", "back"]}) == set()
    assert set(await network.list_parked(box(1))) == {1}
    assert await network.list_parked(box(2)) == {}


async def test_ports_are_led_to_another_of_its_networks(network: Network):
    await network.create_network(NetworkSpec("back"))
    await network.create_network(NetworkSpec("vault", internal=True))
    await network.attach(box(1), [PortRequest(80, host_port=8080)], "one")
    for slot, name in enumerate(("back", "vault"), start=1):
        await network.attach(box(1), (), "one", Endpoint(name), slot)
    was = network.published(box(1))
    for _ in range(2):
        await network.lead_ports(box(1), "back", "one")
        assert network.published(box(1)) == was
    await network.disconnect(box(1), "bridge")
    assert network.published(box(1)) == was
    await network.lead_ports(box(1), "vault", "one")
    assert network.published(box(1)) == ()
    await network.lead_ports(box(1), "back", "one")
    assert network.published(box(1)) == ()
    await network.lead_ports(box(1), "back", "one", [PortRequest(80, host_port=8080)])
    assert network.published(box(1)) == was


async def test_where_a_network_has_ipv6_ports_are_published_in_both_families(network: Network):
    await network.create_network(NetworkSpec("six", ipv6=True))
    await network.attach(box(1), [PortRequest(80, host_port=8080)], "one", Endpoint("six"))
    assert [port.host_ip for port in network.published(box(1))] == ["0.0.0.0", "::"]
    with pytest.raises(ExistsError):
        await network.attach(box(2), [PortRequest(80, host_ip="::", host_port=8080)], "x", Endpoint("six"))
    with pytest.raises(UnsupportedError):
        await network.attach(box(3), [PortRequest(80, host_ip="::", host_port=8081)], "x")


async def test_where_a_network_has_ipv6_each_has_an_address_of_it(network: Network):
    await network.create_network(NetworkSpec("six", ipv6=True))
    one, two = [await network.attach(box(number), (), "x", Endpoint("six")) for number in (1, 2)]
    assert len({one.address6, two.address6, one.gateway6}) == 3
    assert one.gateway6 == two.gateway6
    assert one.prefix_length6 == 64
    plain = await network.attach(box(1))
    assert (plain.address6, plain.gateway6, plain.prefix_length6) == ("", "", 0)
