# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from hyperd.errors import ExistsError, InvalidError, NotFoundError, UnsupportedError, WrongStateError
from hyperd.model.container import ContainerSpec
from hyperd.model.image import ImageConfig
from hyperd.model.network import NetworkSpec, PortRequest, Protocol, PublishedPort, UnpublishRequest
from hyperd.sandbox import NetworkDesk, ports
from hyperd.sandbox.records import dumps, loads
from tests.fakes.world import created, started

TCP, UDP = Protocol.TCP, Protocol.UDP
SPEC = ContainerSpec(image="web")


@pytest.mark.parametrize(
    "request_",
    [
        PortRequest(0),
        PortRequest(65536),
        PortRequest(80, host_port=65536),
        PortRequest(80, host_port=9000, host_port_end=8000),
        PortRequest(80, host_port_end=8000),
        PortRequest(80, host_port=65000, host_port_end=70000),
    ],
)
def test_ports_that_are_none_are_refused(request_):
    with pytest.raises(InvalidError):
        ports.require_valid(replace(SPEC, ports=(request_,)))


def test_a_port_of_the_host_leads_to_one_place():
    twice = (PortRequest(80, host_port=8080), PortRequest(81, host_port=8080))
    with pytest.raises(InvalidError, match="twice at port 8080/tcp"):
        ports.require_valid(replace(SPEC, ports=twice))
    ports.require_valid(replace(SPEC, ports=(twice[0], replace(twice[1], protocol=UDP))))
    ports.require_valid(replace(SPEC, ports=(PortRequest(80), PortRequest(81))))
    ports.require_valid(
        replace(SPEC, ports=(replace(twice[0], host_port_end=8090), replace(twice[1], host_port_end=8090)))
    )


@pytest.mark.parametrize("text", ["", "0", "80/icmp", "90-80", "80-", "65536", "1-65535", "eighty"])
def test_exposed_ports_that_are_none_are_refused(text):
    with pytest.raises(InvalidError):
        ports.require_valid(replace(SPEC, expose=(text,)))


def test_the_images_exposed_ports_come_behind_those_asked_for_and_nonsense_in_it_is_left_out():
    image = ImageConfig(exposed_ports=("80/tcp", "443", "so what"))
    assert ports.with_exposed(replace(SPEC, expose=("53/udp", "80/tcp")), image).expose == (
        "53/udp",
        "80/tcp",
        "443",
    )


def test_publish_all_adds_a_free_port_for_each_exposed_one_that_is_not_named():
    spec = replace(
        SPEC, ports=(PortRequest(80, host_port=8080),), expose=("80", "53/udp", "100-101", "7/sctp")
    )
    assert ports.wanted(spec) == spec.ports
    assert ports.wanted(replace(spec, publish_all=True)) == (
        *spec.ports,
        PortRequest(53, UDP),
        PortRequest(100),
        PortRequest(101),
    )


def test_without_a_network_nothing_is_published():
    assert ports.wanted(replace(SPEC, network="none", ports=(PortRequest(80),), publish_all=True)) == ()


def test_a_clone_has_only_ports_that_are_chosen_anew():
    assert ports.of_clone([PortRequest(80, host_port=8080), PortRequest(443)]) == (PortRequest(443),)


def test_what_is_taken_back_is_all_of_a_port_or_at_one_of_the_host():
    one, two = PublishedPort(80, TCP, "0.0.0.0", 8080), PublishedPort(80, TCP, "0.0.0.0", 8081)
    other = PublishedPort(80, UDP, "0.0.0.0", 8080)
    published = (one, two, other)
    assert ports.choose(published, [UnpublishRequest(80)], "web") == (one, two)
    assert ports.choose(published, [UnpublishRequest(80, host_port=8081)], "web") == (two,)
    for request in (UnpublishRequest(81), UnpublishRequest(80, UDP, 8081)):
        with pytest.raises(NotFoundError):
            ports.choose(published, [UnpublishRequest(80), request], "web")


def test_a_spec_with_ports_is_recorded_and_read_back():
    spec = replace(
        SPEC, ports=(PortRequest(53, UDP, "127.0.0.1", 5353, 5360),), publish_all=True, expose=("80",)
    )
    assert loads(ContainerSpec, dumps(spec)) == spec


async def test_ports_are_taken_by_a_start_and_given_back_by_its_end(world, fleet):
    handle = await started(fleet, name="web", ports=(PortRequest(80, host_port=8080),))
    assert handle.view().ports == (PublishedPort(80, TCP, "0.0.0.0", 8080),)
    other = await created(fleet, name="other", ports=(PortRequest(80, host_port=8080),))
    with pytest.raises(ExistsError, match="in use by container web"):
        await other.start()
    await handle.stop(timeout_s=0)
    assert handle.view().ports == ()
    await other.start()
    assert other.view().ports


async def test_ports_are_published_and_taken_back_only_while_it_runs(fleet):
    handle = await created(fleet, name="web")
    with pytest.raises(WrongStateError):
        await handle.publish([PortRequest(80)])
    await handle.start()
    with pytest.raises(InvalidError):
        await handle.publish([PortRequest(0)])
    made = await handle.publish([PortRequest(80), PortRequest(81)])
    assert handle.view().ports == made
    assert await handle.unpublish([UnpublishRequest(80)]) == made[:1]
    assert handle.view().ports == made[1:]


async def test_a_network_that_containers_are_on_stays_and_names_them(world, fleet):
    desk = NetworkDesk(world.network, fleet.views, fleet.records)
    await desk.create(NetworkSpec("back"))
    await desk.create(NetworkSpec("idle"))
    handle = await created(fleet, name="web", network="back")
    with pytest.raises(WrongStateError, match="in use by web"):
        await desk.remove("back")
    assert await desk.prune() == ["idle"]
    await handle.start()
    assert [named.names[0] for named in fleet.named()] == ["web"]
    await handle.remove(force=True)
    assert await desk.remove("back") == "back"
    with pytest.raises(NotFoundError):
        await created(fleet, network="back")


async def test_a_network_may_be_asked_for_by_its_id(world, fleet):
    made = await world.network.create_network(NetworkSpec("back"))
    handle = await created(fleet, name="web", network=made.network_id)
    assert handle.record.spec.network == "back"
    assert [
        view.record.name for view in NetworkDesk(world.network, fleet.views, fleet.records).on("back")
    ] == ["web"]


async def test_ports_that_an_internal_network_keeps_in_are_refused_at_once(world, fleet):
    await world.network.create_network(NetworkSpec("vault", internal=True))
    for asked in ({"ports": (PortRequest(80),)}, {"publish_all": True}):
        with pytest.raises(InvalidError, match="internal"):
            await created(fleet, network="vault", **asked)
    assert not fleet.views()


async def test_ports_at_ipv6_are_refused_at_once_where_no_network_has_it(world, fleet):
    await world.network.create_network(NetworkSpec("four"))
    await world.network.create_network(NetworkSpec("six", ipv6=True))
    asked = (PortRequest(80, host_ip="::1", host_port=8080),)
    with pytest.raises(UnsupportedError, match="network four: has no IPv6"):
        await created(fleet, network="four", ports=asked)
    await created(fleet, network="six", ports=asked)


def both(container_port, host_port):
    return [PublishedPort(container_port, Protocol.TCP, ip, host_port) for ip in ("0.0.0.0", "::")]


@pytest.mark.parametrize(
    ("asked", "published", "kept"),
    [
        ([PortRequest(80)], both(80, 49153), [PortRequest(80)]),
        ([], both(80, 8080), [PortRequest(80, host_port=8080)]),
        ([PortRequest(80)], both(80, 49153)[1:], [PortRequest(80)]),
        (
            [
                PortRequest(80, host_ip="::1", host_port=80),
                PortRequest(80, host_ip="127.0.0.1", host_port=80),
            ],
            [PublishedPort(80, Protocol.TCP, ip, 80) for ip in ("127.0.0.1", "::1")],
            [
                PortRequest(80, host_ip="127.0.0.1", host_port=80),
                PortRequest(80, host_ip="::1", host_port=80),
            ],
        ),
    ],
)
def test_what_one_that_sleeps_has_when_it_wakes_is_one_request_for_both_families(asked, published, kept):
    spec = ContainerSpec("x", ports=tuple(asked))
    assert ports.kept(spec, published) == tuple(kept)
