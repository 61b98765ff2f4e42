# SPDX-License-Identifier: Apache-2.0
import asyncio
import dataclasses
import fcntl
import os
import struct
from ipaddress import IPv4Network

import pytest

from hyperd.errors import UnavailableError, WrongStateError
from hyperd.host import process
from hyperd.host.database import Database
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetwork, BridgeSettings
from hyperd.network.links import remove
from hyperd.network.tap import tap_name
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.kernel import box, links, rules

BOX = SandboxId("b" * 64)


async def test_a_tap_is_on_the_bridge_up_and_its_owners(bridge_network):
    attachment = await bridge_network.attach(BOX)
    found = await links()
    tap = found[attachment.tap]
    assert tap.get_attr("IFLA_MASTER") == found[SETTINGS.bridge]["index"]
    assert tap["flags"] & 1, "up"
    assert tap.get_attr("IFLA_MTU") == attachment.mtu == 1500
    details = (await process.run(["ip", "-d", "link", "show", attachment.tap], timeout_s=20)).stdout.decode()
    assert "tun type tap pi off vnet_hdr on persist on" in details
    assert "user nobody" in details or f"user {SETTINGS.tap_owner_uid}" in details


async def test_an_attachment_says_all_that_the_guest_needs(bridge_network):
    attachment = await bridge_network.attach(BOX)
    assert attachment.address == "10.213.0.2"
    assert attachment.prefix_length == 24
    assert attachment.gateway == "10.213.0.1"
    assert attachment.mac == "0a:48:0a:d5:00:02"
    assert attachment.network == "bridge"


async def test_the_bridge_keeps_its_mac_whatever_is_plugged_in(bridge_network):
    before = (await links())[SETTINGS.bridge].get_attr("IFLA_ADDRESS")
    await bridge_network.attach(BOX)
    assert (await links())[SETTINGS.bridge].get_attr("IFLA_ADDRESS") == before


async def test_a_start_with_everything_in_place_runs_no_program(bridge_network, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    await bridge_network.attach(BOX)


async def test_attaching_again_while_a_machine_holds_the_tap(bridge_network):
    first = await bridge_network.attach(BOX)
    machine = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(machine, 0x400454CA, struct.pack("16sH22x", first.tap.encode(), 0x5002))
        assert await bridge_network.attach(BOX) == first
        await bridge_network.detach(BOX)
        assert first.tap not in await links()
    finally:
        os.close(machine)


async def test_a_name_that_is_taken_by_something_else_is_an_error_that_leaves_nothing(bridge_network):
    await process.run_checked(["ip", "link", "add", tap_name(BOX), "type", "veth"], timeout_s=20)
    try:
        with pytest.raises(UnavailableError):
            await bridge_network.attach(BOX)
        assert BOX not in await bridge_network.list_attached()
    finally:
        await process.run_checked(["ip", "link", "del", tap_name(BOX)], timeout_s=20)


async def test_a_caller_that_goes_away_at_any_moment_leaves_nothing(bridge_network):
    for moment in range(40):
        attaching = asyncio.create_task(bridge_network.attach(BOX))
        for _ in range(moment):
            await asyncio.sleep(0)
        attaching.cancel()
        await asyncio.wait([attaching])
        if not attaching.cancelled():
            await bridge_network.release(BOX)
        assert tap_name(BOX) not in await links(), moment
        assert await bridge_network.list_attached() == set(), moment


async def test_a_tap_without_a_lease_is_known_by_its_alias(bridge_network, database):
    await bridge_network.attach(BOX)
    await database.transaction(lambda connection: connection.execute("DELETE FROM network_lease"))
    assert await bridge_network.list_attached() == {BOX}
    await bridge_network.release(BOX)
    assert await bridge_network.list_attached() == set()


async def test_fifty_at_once(bridge_network):
    async with asyncio.TaskGroup() as tasks:
        attaching = [tasks.create_task(bridge_network.attach(box(number))) for number in range(50)]
    assert len({task.result().address for task in attaching}) == 50
    assert len({task.result().tap for task in attaching}) == 50


async def test_a_subnet_that_the_host_uses_is_refused(database):
    await process.run_checked(["ip", "link", "add", "other0", "type", "bridge"], timeout_s=20)
    network = BridgeNetwork(SETTINGS, database)
    try:
        await process.run_checked(["ip", "link", "set", "other0", "up"], timeout_s=20)
        await process.run_checked(["ip", "address", "add", "10.213.0.130/25", "dev", "other0"], timeout_s=20)
        with pytest.raises(UnavailableError, match=r"10\.213\.0\.128/25 through other0"):
            await network.prepare()
        assert SETTINGS.bridge not in await links()
    finally:
        network.close()
        await process.run_checked(["ip", "link", "del", "other0"], timeout_s=20)


async def test_another_subnet_in_the_configuration_moves_the_bridge(bridge_network, database):
    bridge_network.close()
    moved = BridgeNetwork(
        BridgeSettings(tap_owner_uid=0, bridge=SETTINGS.bridge, subnet=IPv4Network("10.214.0.0/24")),
        database,
    )
    try:
        await moved.prepare()
        shown = (
            await process.run(["ip", "-br", "-4", "address", "show", SETTINGS.bridge], timeout_s=20)
        ).stdout
        assert b"10.214.0.1/24" in shown
        assert b"10.213" not in shown
    finally:
        moved.close()


async def test_an_interface_that_is_no_bridge_is_left_alone(database):
    await process.run_checked(["ip", "link", "add", SETTINGS.bridge, "type", "veth"], timeout_s=20)
    network = BridgeNetwork(SETTINGS, database)
    try:
        with pytest.raises(UnavailableError, match="no bridge"):
            await network.prepare()
    finally:
        network.close()
        await clean()


async def test_without_nft_the_error_says_what_to_install(database, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    network = BridgeNetwork(SETTINGS, database)
    try:
        with pytest.raises(UnavailableError, match="nftables is needed") as caught:
            await network.prepare()
        assert "install" in caught.value.hint
    finally:
        network.close()
        monkeypatch.undo()
        await clean()


async def test_a_network_that_cannot_be_prepared_says_why_and_is_tried_again_by_the_next_start(database):
    await process.run_checked(["ip", "link", "add", "vpn0", "type", "bridge"], timeout_s=20)
    await process.run_checked(["ip", "link", "set", "vpn0", "up"], timeout_s=20)
    await process.run_checked(["ip", "route", "add", "10.213.0.128/25", "dev", "vpn0"], timeout_s=20)
    network = BridgeNetwork(SETTINGS, database)
    try:
        for ask in (network.prepare, lambda: network.attach(BOX)):
            with pytest.raises(UnavailableError, match="vpn0"):
                await ask()
            assert "vpn0" in str(network.trouble)
        assert await network.list_attached() == set()
        await process.run_checked(["ip", "link", "del", "vpn0"], timeout_s=20)
        await network.attach(BOX)
        assert network.trouble is None
        assert "masquerade" in await rules()
        await network.release(BOX)
    finally:
        network.close()
        await clean()


async def test_without_its_rules_nothing_is_attached(database, monkeypatch):
    async def refuse(*_):
        raise UnavailableError("nft is missing")

    network = BridgeNetwork(SETTINGS, database)
    try:
        with monkeypatch.context() as broken:
            broken.setattr("hyperd.network.bridge_network.apply_rules", refuse)
            for ask in (network.prepare, lambda: network.attach(BOX)):
                with pytest.raises(UnavailableError, match="nft is missing"):
                    await ask()
        await network.attach(BOX)
        await network.release(BOX)
    finally:
        network.close()
        await clean()


@pytest.fixture
async def other_database(tmp_path):
    it = Database(tmp_path / "other.db")
    await it.open()
    yield it
    await it.close()


async def test_a_second_daemon_on_the_same_bridge_is_refused_and_changes_nothing(
    bridge_network, other_database
):
    attachment = await bridge_network.attach(BOX)
    before = await rules()
    second = BridgeNetwork(dataclasses.replace(SETTINGS, subnet=IPv4Network("10.214.0.0/24")), other_database)
    try:
        with pytest.raises(WrongStateError, match=f"bridge {SETTINGS.bridge}.*pid {os.getpid()}") as caught:
            await second.prepare()
        assert "[network] bridge, subnet" in caught.value.hint
        with pytest.raises(WrongStateError):
            await second.attach(box(1))
        assert await second.list_attached() == set()
    finally:
        second.close()
    assert await rules() == before
    assert attachment.tap in await links()


async def test_a_second_daemon_with_a_bridge_of_its_own_leaves_the_first_ones_taps_and_rules(
    bridge_network, other_database
):
    first = await bridge_network.attach(BOX)
    before = await rules()
    settings = dataclasses.replace(SETTINGS, bridge="hypert1", subnet=IPv4Network("10.214.0.0/24"))
    second = BridgeNetwork(settings, other_database)
    try:
        await second.prepare()
        assert await second.list_attached() == set(), (
            "a tap of the first's is none that the second may discard"
        )
        attached = await second.attach(box(1))
        assert await second.list_attached() == {box(1)}
        assert await bridge_network.list_attached() == {BOX}
        found = await links()
        assert found[attached.tap].get_attr("IFLA_MASTER") == found["hypert1"]["index"]
        assert found[first.tap].get_attr("IFLA_MASTER") == found[SETTINGS.bridge]["index"]
        assert before in await rules(), "both have their own"
        await second.release(box(1))
    finally:
        second.close()
        await clean(settings)


async def test_the_bridge_is_free_when_its_daemon_has_ended(bridge_network, other_database):
    bridge_network.close()
    second = BridgeNetwork(SETTINGS, other_database)
    try:
        await second.prepare()
    finally:
        second.close()


async def test_those_that_go_together_go_in_one_group_and_nothing_else_with_them(bridge_network):
    before, others = await rules(), set(await links())
    boxes = [box(number) for number in range(20)]
    await bridge_network.attach(BOX)
    with_one = await rules()
    for sandbox_id in boxes:
        await bridge_network.attach(sandbox_id)
    missing = tap_name(boxes[7])
    await process.run_checked(["ip", "link", "del", missing], timeout_s=20)
    async with asyncio.TaskGroup() as tasks:
        for sandbox_id in boxes:
            tasks.create_task(bridge_network.detach(sandbox_id))
    assert set(await links()) == others | {tap_name(BOX)}
    assert await rules() == with_one
    await bridge_network.detach(BOX)
    assert await rules() == before


async def test_of_those_that_go_together_one_that_is_not_there_holds_up_nobody(bridge_network):
    for number in (1, 2):
        await bridge_network.attach(box(number))
    remove([tap_name(box(1)), "hyt-never-was", tap_name(box(2))])
    assert not [name for name in await links() if name.startswith("hyt")]
