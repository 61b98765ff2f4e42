# SPDX-License-Identifier: Apache-2.0
"""Networks that users make: bridges of their own, closed to each other, made again from the records."""

import asyncio
import contextlib
import socket
from ipaddress import IPv4Address, IPv4Network

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.errors import ExistsError, InvalidError, NotFoundError, UnavailableError, WrongStateError
from hyperd.host import process
from hyperd.model.network import Endpoint, NetworkSpec, PortRequest
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetwork, BridgeNetworks
from hyperd.network.definitions import Definitions
from hyperd.network.tap import PREFIX
from tests.contract.network.conftest import SETTINGS, Namespace, clean
from tests.contract.network.test_ports import tcp_peer

ONE, TWO = SandboxId("1" * 64), SandboxId("2" * 64)
OUTSIDE = "198.51.100.2"


@pytest.fixture
async def networks(database):
    made = BridgeNetworks(SETTINGS, database)
    try:
        await made.prepare()
        yield made
    finally:
        for owner in await made.list_attached():
            await made.release(owner)
        for view in made.list_networks()[1:]:
            await made.remove_network(view.spec.name)
        made.close()
        await clean()


@contextlib.asynccontextmanager
async def guest(networks, sandbox_id, network, ports=()):
    lease = await networks.attach(sandbox_id, ports, f"box{sandbox_id[0]}", Endpoint(network))
    async with AsyncIPRoute() as netlink:
        (bridge,) = await netlink.link_lookup(ifname=networks.get_network(network).bridge)
    with contextlib.closing(Namespace()) as namespace:
        async with namespace.wired(
            f"{PREFIX}-guest{sandbox_id[0]}",
            f"{lease.address}/{lease.prefix_length}",
            gateway=lease.gateway,
            mac=lease.mac,
            master=bridge,
        ):
            yield namespace, lease


@contextlib.asynccontextmanager
async def somebody_outside():
    with contextlib.closing(Namespace()) as outside:
        async with outside.wired("veth-out", f"{OUTSIDE}/24") as out:
            async with AsyncIPRoute() as netlink:
                await netlink.addr("add", index=out, address="198.51.100.1", prefixlen=24)
            yield outside


async def ruleset():
    return (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout.decode()


async def bridges():
    async with AsyncIPRoute() as netlink:
        return {link.get_attr("IFLA_IFNAME") async for link in await netlink.link("dump")}


async def test_networks_are_closed_to_each_other_but_for_published_ports(networks):
    await networks.create_network(NetworkSpec("back"))
    async with (
        guest(networks, ONE, "back", [PortRequest(80, host_port=8080)]) as (one, one_lease),
        guest(networks, TWO, "bridge") as (two, two_lease),
    ):
        for client, server, address in (
            (two.socket(), one.socket(), one_lease.address),
            (one.socket(), two.socket(), two_lease.address),
        ):
            with pytest.raises((OSError, TimeoutError)):
                await tcp_peer(client, server, 80, (address, 80), soon_s=1)
        with pytest.raises((OSError, TimeoutError)):
            await tcp_peer(one.socket(), socket.socket(), 8123, (two_lease.gateway, 8123), soon_s=1)
        seen = await tcp_peer(two.socket(), one.socket(), 80, (one_lease.gateway, 8080))
        assert seen == one_lease.gateway


async def test_an_internal_network_has_no_way_out_and_publishes_nothing(networks):
    await networks.create_network(NetworkSpec("vault", internal=True))
    async with somebody_outside() as outside, guest(networks, ONE, "vault") as (one, lease):
        with pytest.raises((OSError, TimeoutError)):
            await tcp_peer(one.socket(), outside.socket(), 80, (OUTSIDE, 80), soon_s=1)
        async with guest(networks, TWO, "vault") as (two, _):
            await tcp_peer(two.socket(), one.socket(), 80, (lease.address, 80))
    with pytest.raises(InvalidError, match="internal"):
        await networks.attach(SandboxId("3" * 64), [PortRequest(80)], "box3", Endpoint("vault"))
    await networks.attach(ONE, (), "box1", Endpoint("vault"))
    with pytest.raises(InvalidError, match="internal"):
        await networks.publish(ONE, [PortRequest(80)], "box1", "vault")


async def test_another_network_reaches_the_outside(networks):
    await networks.create_network(NetworkSpec("back"))
    async with somebody_outside() as outside, guest(networks, ONE, "back") as (one, _):
        assert await tcp_peer(one.socket(), outside.socket(), 80, (OUTSIDE, 80)) == "198.51.100.1"


async def test_a_network_is_as_it_was_asked_for(networks):
    spec = NetworkSpec("own", "10.230.0.0/24", "10.230.0.254", "10.230.0.128/30", mtu=1400)
    made = await networks.create_network(spec)
    assert made.spec == spec
    given = [
        await networks.attach(SandboxId(f"{number:x}" * 64), (), "x", Endpoint("own"))
        for number in range(1, 5)
    ]
    assert [lease.address for lease in given] == [f"10.230.0.{number}" for number in (128, 129, 130, 131)]
    assert {(lease.gateway, lease.mtu) for lease in given} == {("10.230.0.254", 1400)}


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec("x", "10.213.0.0/16"),  # the default one's
        NetworkSpec("x", "10.230.0.1/24"),
        NetworkSpec("x", "10.230.0.0/30"),
        NetworkSpec("x", "fd00::/64"),
        NetworkSpec("x", "nonsense"),
        *(
            NetworkSpec("x", wrong)
            for wrong in ("127.1.0.0/24", "169.254.0.0/16", "224.0.0.0/24", "255.0.0.0/24")
        ),
        NetworkSpec("x", "0.0.0.0/0"),
        NetworkSpec("x", "10.230.0.0/24", "10.231.0.1"),
        NetworkSpec("x", "10.230.0.0/24", "10.230.0.255"),
        NetworkSpec("x", "10.230.0.0/24", "", "10.231.0.0/25"),
        NetworkSpec("x", mtu=100),
        NetworkSpec("x", mtu=65522),
        NetworkSpec("x", subnet6="fd00::%eth0/64"),
        NetworkSpec("x", subnet6="fd00::/64", gateway6="fd00::1%eth0"),
        NetworkSpec("bridge"),
        NetworkSpec("host"),
        NetworkSpec(""),
        NetworkSpec("a b"),
    ],
)
async def test_what_cannot_be_a_network_is_refused_and_leaves_nothing(networks, spec):
    before = await ruleset(), await bridges()
    with pytest.raises(InvalidError):
        await networks.create_network(spec)
    assert (await ruleset(), await bridges()) == before
    assert len(networks.list_networks()) == 1


@pytest.mark.parametrize("name", ["bridge", "bad/name"])
async def test_a_name_that_no_network_can_have_is_told_with_what_can_be_one(networks, name):
    with pytest.raises(InvalidError) as raised:
        await networks.create_network(NetworkSpec(name))
    assert "63 at the most; bridge, container, default, host, none are taken" in raised.value.hint


async def test_a_removed_network_leaves_nothing(networks):
    before = await ruleset(), await bridges()
    await networks.create_network(NetworkSpec("back"))
    assert (await ruleset(), await bridges()) != before
    await networks.remove_network("back")
    assert (await ruleset(), await bridges()) == before


async def test_the_next_hyperd_has_the_networks_and_makes_what_is_missing(networks, database):
    made = await networks.create_network(NetworkSpec("back"))
    lease = await networks.attach(ONE, [PortRequest(80, host_port=8080)], "box1", Endpoint("back"))
    before = await ruleset()
    await process.run_checked(["nft", "delete", "table", "inet", f"hyper_{made.bridge}"], timeout_s=20)
    networks.close()
    following = BridgeNetworks(SETTINGS, database)
    try:
        await following.prepare()
        assert following.list_networks()[1:] == [made]
        assert (await following.attach(ONE, (), "box1", Endpoint("back"))).address == lease.address
        assert sorted((await ruleset()).splitlines()) == sorted(before.splitlines())
        assert [port.host_port for port in following.published(ONE)] == [8080]
        await following.release(ONE)
        await following.remove_network("back")
    finally:
        following.close()
    networks._networks.pop("back")
    networks._views.pop("back")


async def test_each_network_that_names_no_subnet_gets_one_that_nobody_has(networks):
    await process.run_checked(["ip", "link", "add", "other0", "type", "bridge"], timeout_s=20)
    try:
        await process.run_checked(["ip", "link", "set", "other0", "up"], timeout_s=20)
        await process.run_checked(["ip", "route", "add", "10.214.0.0/24", "dev", "other0"], timeout_s=20)
        made = [await networks.create_network(NetworkSpec(f"n{number}")) for number in range(2)]
        assert [view.spec.subnet for view in made] == ["10.214.1.0/24", "10.214.2.0/24"]
        assert all(IPv4Address(view.spec.gateway) in IPv4Network(view.spec.subnet) for view in made)
    finally:
        await process.run_checked(["ip", "link", "del", "other0"], timeout_s=20)


class NoNft:
    """On the PATH: refuses."""

    def __init__(self, directory, monkeypatch):
        program = directory / "nft"
        program.write_text("#!/bin/sh\necho refused >&2; exit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(directory), prepend=":")


async def test_one_that_cannot_be_made_leaves_no_ghost_when_nothing_can_be_removed_either(
    networks, database, tmp_path, monkeypatch
):
    before = await bridges()
    with monkeypatch.context() as patch:
        NoNft(tmp_path, patch)
        with pytest.raises(UnavailableError):
            await networks.create_network(NetworkSpec("back"))
    assert await bridges() == before
    assert await Definitions(database).list_all() == []
    await networks.create_network(NetworkSpec("back"))


async def test_the_others_are_prepared_when_the_default_one_cannot_be(networks, database):
    made = await networks.create_network(NetworkSpec("back"))
    networks.close()
    await process.run_checked(["nft", "delete", "table", "inet", f"hyper_{made.bridge}"], timeout_s=20)
    await process.run_checked(["ip", "link", "del", SETTINGS.bridge], timeout_s=20)
    await process.run_checked(["ip", "link", "add", SETTINGS.bridge, "type", "veth"], timeout_s=20)
    following = BridgeNetworks(SETTINGS, database)
    try:
        with pytest.raises(UnavailableError):
            await following.prepare()
        assert f"hyper_{made.bridge}" in await ruleset()
        await following.remove_network("back")
    finally:
        following.close()
        networks._networks.pop("back")
        networks._views.pop("back")


async def test_a_network_with_addresses_that_was_never_prepared_is_when_it_is_looked_at(networks, database):
    made = await networks.create_network(NetworkSpec("back"))
    await networks.attach(ONE, (), "box1", Endpoint("back"))
    networks.close()
    await process.run_checked(["nft", "delete", "table", "inet", f"hyper_{made.bridge}"], timeout_s=20)
    alone = BridgeNetwork(networks._networks["back"].settings, database)
    try:
        await alone.look()
        assert f"hyper_{made.bridge}" in await ruleset()
    finally:
        await alone.release(ONE)
        alone.close()


async def test_who_has_an_address_is_told_by_name_where_he_has_one(networks):
    networks.names_from(tuple, lambda sandbox_id: "web" if sandbox_id == ONE else "")
    await networks.create_network(NetworkSpec("back"))
    lease = await networks.attach(ONE, endpoint=Endpoint("back"))
    with pytest.raises(ExistsError, match="in use by container web"):
        await networks.attach(TWO, endpoint=Endpoint("back", lease.address))
    with pytest.raises(WrongStateError, match="in use by container web"):
        await networks.remove_network("back")
    lease = await networks.attach(TWO)
    with pytest.raises(ExistsError, match="in use by 222222222222"):
        await networks.attach(ONE, endpoint=Endpoint("bridge", lease.address))


async def test_one_that_is_removed_is_not_made_again_by_who_comes_too_late(networks):
    await networks.create_network(NetworkSpec("back"))
    network = networks._networks["back"]
    await network.attach(ONE)
    with pytest.raises(WrongStateError, match="in use by 111"):
        await network.remove()
    await network.release(ONE)
    await networks.remove_network("back")
    before = await ruleset(), await bridges()
    with pytest.raises(NotFoundError):
        await network.attach(TWO)
    assert (await ruleset(), await bridges()) == before


async def test_all_that_was_made_on_the_host_goes_and_comes_again_when_it_is_needed(networks):
    await networks.create_network(NetworkSpec("back"))
    await networks.attach(ONE)
    with pytest.raises(WrongStateError, match="in use"):
        await networks.clear()
    await networks.release(ONE)
    await networks.clear()
    assert "hyper" not in await ruleset()
    assert not {name for name in await bridges() if name.startswith("hy")}
    assert [view.spec.name for view in networks.list_networks()] == ["bridge"]
    assert (await networks.attach(ONE)).network == "bridge"
    assert f"table inet {SETTINGS.table}" in await ruleset()
    await networks.release(ONE)


async def test_networks_are_read_once_whoever_needs_them_at_the_same_time(networks, database):
    await networks.create_network(NetworkSpec("back"))
    again = BridgeNetworks(SETTINGS, database, lambda: ())

    async def loaded():
        await again._load()
        return again._networks["back"]

    try:
        first, second = await asyncio.gather(loaded(), loaded())
        assert first is second
    finally:
        again.close()
