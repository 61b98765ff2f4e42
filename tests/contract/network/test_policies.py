# SPDX-License-Identifier: Apache-2.0
"""Policies from their records to the kernel and back; and the fake, held to the same."""

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import zlib
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.errors import InvalidError, NotFoundError, UnavailableError
from hyperd.host import process
from hyperd.model.network import PortRequest
from hyperd.model.policy import Limits
from hyperd.network import BridgeNetworks
from hyperd.network.tap import tap_name
from hyperd.network.watch import TOGETHER_S, watching
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.egress import GOOD, OUTSIDE, PLAIN, POLICED, SOON_S, world
from tests.fakes.policies import FakePolicies

BY_NAME = "allow: [{domain: good.example, ports: 443}]"
TABLE = f"inet {SETTINGS.table}_policy"


@contextlib.asynccontextmanager
async def networks_of(database):
    networks = BridgeNetworks(SETTINGS, database, lambda: ())
    try:
        await networks.prepare()
        yield networks
    finally:
        networks.close()


@pytest.fixture(params=["fake", "real"])
async def policies(request, database):
    if request.param == "fake":
        yield FakePolicies()
        return
    async with networks_of(database) as networks:
        yield networks.policies
    await clean()


async def test_limits_that_were_changed_are_not_imposed_again(policies):
    await policies.impose(POLICED, Limits(), "job")
    assert not policies.limits_of(POLICED)
    await policies.impose(POLICED, Limits("none"), "job")
    await policies.change(POLICED, Limits("allow-all"), "job")
    await policies.impose(POLICED, Limits("none"), "job")
    assert policies.limits_of(POLICED) == Limits("allow-all")


async def test_what_is_wrong_changes_nothing(policies):
    await policies.impose(POLICED, Limits("none"), "job")
    wrong = Limits("allow: [{domain: is wrong}]")
    with pytest.raises(InvalidError):
        policies.require_valid(wrong)
    with pytest.raises(InvalidError):
        await policies.change(POLICED, wrong, "job")
    assert policies.limits_of(POLICED) == Limits("none")


async def test_a_report_is_found_by_id_name_and_prefix_and_no_other_way(policies):
    await policies.impose(POLICED, Limits("none"), "job")
    for reference in (POLICED, "job", POLICED[:4]):
        assert (await policies.report(reference)).sandbox_id == POLICED
    for reference in ("nobody", ""):
        with pytest.raises(NotFoundError):
            await policies.report(reference)


async def rules() -> str:
    return (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout.decode()


async def proxies() -> list[str]:
    shown = await process.run_checked(["ip", "neigh", "show", "proxy"], timeout_s=20)
    return [line.split()[0] for line in shown.stdout.decode().splitlines()]


async def test_a_release_leaves_nothing_but_the_report(database):
    async with world(database, BY_NAME) as it:
        await it.look_up("good.example")
        assert not await it.connects(OUTSIDE, 22)
        assert await proxies() == [it.leases[0].address]
        await it.networks.release(POLICED)
        assert "_policy" not in await rules()
        assert await proxies() == []
        assert POLICED not in await it.networks.list_attached()
        report = await it.policies.report("job")
        assert [(each.destination, each.count) for each in report.attempts] == [(OUTSIDE, 1)]


async def test_the_next_hyperd_goes_on_with_what_is_in_force(database):
    async with world(database, BY_NAME) as it:
        await it.look_up("good.example")
        assert not await it.connects(OUTSIDE, 22)
        before = await rules()
        await it.restart(database)
        assert await it.connects(GOOD, 443), "what a name stands for is still known"
        assert not await it.connects(OUTSIDE, 22)
        assert it.policies.limits_of(POLICED) == Limits(BY_NAME)
        assert await it.tried() == {(OUTSIDE, 22): 2}
        assert before.count("chain") == (await rules()).count("chain")


async def test_what_an_earlier_hyperd_has_learned_under_other_names_of_sets_is_taken_over(database):
    async with world(database, BY_NAME) as it:
        crc = f"{zlib.crc32(b'any:443'):08x}"
        older = f"named_{tap_name(POLICED)}_{crc}", f"members_{crc}", "members_00000000"
        of_learned = f"{{ type ipv4_addr; flags timeout; elements = {{ {GOOD} timeout 300s }}; }}"
        told = f"add set {TABLE} {older[0]} {of_learned}\n"
        told += "".join(f"add set {TABLE} {name} {{ type ipv4_addr; }}\n" for name in older[1:])
        told += f"add chain {TABLE} from_gone\n"  # of one that has gone since
        told += f"add rule {TABLE} from_gone ip daddr @{older[2]} accept\n"
        await process.run_checked(["nft", "-f", "-"], timeout_s=20, stdin=told.encode())
        assert not await it.connects(GOOD, 443)
        await it.restart(database)
        assert await it.connects(GOOD, 443)
        assert [name for name in older if f"set {name} " in await rules()] == [older[2]], "while it is in use"
        await process.run_checked(["nft", "flush", "chain", *TABLE.split(), "from_gone"], timeout_s=20)
        await it.restart(database)
        assert await it.connects(GOOD, 443), "what is known stays"
        assert older[2] not in await rules()


async def test_counts_of_several_runs_add_up(database):
    async with world(database, "none") as it:
        assert not await it.connects(OUTSIDE, 22)
        await it.networks.detach(POLICED)
        await it.networks.detach(POLICED)
        await it.plug_again()
        assert not await it.connects(OUTSIDE, 22)
        assert await it.tried() == {(OUTSIDE, 22): 2}


async def test_rules_that_somebody_flushed_are_made_again(database):
    async with world(database, "none") as it:
        assert not await it.connects(OUTSIDE, 22)
        assert await it.tried() == {(OUTSIDE, 22): 1}
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        assert not await it.policies.stands(SETTINGS.table)
        await it.networks.prepare()
        assert not await it.connects(OUTSIDE, 22)
        assert await it.tried() == {(OUTSIDE, 22): 2}


async def test_what_a_name_stands_for_is_known_again_when_somebody_has_flushed_the_rules(database):
    async with world(database, BY_NAME) as it:
        await it.look_up("good.example")
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        await it.networks.prepare()
        assert await it.connects(GOOD, 443)
        assert not await it.connects(GOOD, 80)


@pytest.mark.parametrize("how", ["flush", "delete"])
async def test_without_its_rules_nothing_of_it_is_let_through(database, how):
    async with world(database, "allow-all") as it:
        await process.run_checked(["nft", how, "table", *TABLE.split()], timeout_s=20)
        assert not await it.policies.stands(SETTINGS.table)
        loop = asyncio.get_running_loop()
        with (
            it.guest.socket(socket.SOCK_DGRAM) as guest,
            it.outside.socket(socket.SOCK_DGRAM) as outside,
            it.neighbour.socket(socket.SOCK_DGRAM) as neighbour,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host,
        ):
            host.setblocking(False)
            for heard in (outside, neighbour, host):
                heard.bind(("", 9000))
            for address in (OUTSIDE, it.leases[1].address, it.gateway):
                await loop.sock_sendto(guest, b"not judged", (str(address), 9000))
            host.sendto(b"judged", (it.gateway, 9000))
            await it.networks.prepare()
            for address in (OUTSIDE, it.leases[1].address):
                await loop.sock_sendto(guest, b"judged", (str(address), 9000))
            async with asyncio.timeout(SOON_S):
                assert [await loop.sock_recv(heard, 100) for heard in (outside, neighbour, host)] == [
                    b"judged"
                ] * 3


async def test_loopback_s_addresses_mean_something_only_where_a_port_is_published(database):
    async with world(database, "allow-all") as it:
        switch = Path(f"/proc/sys/net/ipv4/conf/{tap_name(POLICED)}/route_localnet")
        assert switch.read_text() == "0\n"
        published = await it.networks.publish(POLICED, [PortRequest(80, host_port=8080)], "job")
        assert switch.read_text() == "1\n"
        await it.restart(database)
        assert switch.read_text() == "1\n"
        await it.networks.unpublish(POLICED, published)
        assert switch.read_text() == "0\n"
        switch.write_text("1")  # as an earlier hyperd left it
        await it.restart(database)
        assert switch.read_text() == "0\n"


async def test_whoever_flushes_the_rules_finds_them_made_again_at_once(database):
    async with world(database, "none") as it:
        keeping = asyncio.get_running_loop().create_task(it.networks.keep(every_s=3600))
        await asyncio.sleep(0)  # now it listens
        try:
            async with watching() as watch:
                await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
                assert await watch.wait(SOON_S)
                async with asyncio.timeout(SOON_S):
                    while not await it.policies.stands(SETTINGS.table):
                        await watch.wait(0.05)
            assert not await it.connects(OUTSIDE, 80)
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping


async def test_a_change_that_takes_no_table_away_wakes_nobody(database):
    async with world(database, "none"), watching() as watch:
        while await watch.wait(0.05):
            pass
        await process.run_checked(["nft", "add", "table", "ip", "another"], timeout_s=20)
        assert not await watch.wait(0.2)
        await process.run_checked(["nft", "delete", "table", "ip", "another"], timeout_s=20)
        assert await watch.wait(SOON_S)


async def test_those_that_take_tables_away_all_the_time_are_told_of_together(database):
    loop = asyncio.get_running_loop()
    async with watching() as watch:
        told = []
        for _ in range(3):
            await process.run_checked(["nft", "add table ip another; delete table ip another"], timeout_s=20)
            assert await watch.wait(SOON_S)
            told.append(loop.time())
        assert told[1] - told[0] >= TOGETHER_S
        assert told[2] - told[1] >= TOGETHER_S


async def test_where_the_rules_cannot_be_made_again_the_sandbox_is_off_the_network(database, monkeypatch):
    async with world(database, "allow-all") as it:
        assert await it.connects(OUTSIDE, 80)
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        with monkeypatch.context() as without_nft:
            without_nft.setenv("PATH", "/nowhere")
            with pytest.raises(UnavailableError):
                await it.networks.prepare()
        async with AsyncIPRoute() as netlink:
            (index,) = await netlink.link_lookup(ifname=tap_name(POLICED))
            (link,) = await netlink.link("get", index=index)
        assert link.get_attr("IFLA_OPERSTATE") == "DOWN"
        await it.networks.prepare()
        assert await it.connects(OUTSIDE, 80)


async def test_a_change_that_was_cut_short_is_made_by_the_next_hyperd(database):
    async with world(database, BY_NAME) as it:
        await it.look_up("good.example")
        await it.policies.change(POLICED, Limits("allow: [{domain: other.example}]"), "job")  # and killed
        assert await it.connects(GOOD, 443), "the older one is in force"
        await it.restart(database)
        assert not await it.connects(GOOD, 443)
        assert (await rules()).count("set named_") == 1


async def test_a_first_policy_that_was_cut_short_is_in_force_with_the_next_hyperd(database):
    async with world(database, "") as it:
        await it.policies.change(POLICED, Limits("none"), "job")  # and killed
        await it.restart(database)
        assert not await it.connects(OUTSIDE, 80)


async def test_a_start_that_cannot_have_its_rules_leaves_nothing(database, monkeypatch):
    async with networks_of(database) as networks:
        await networks.policies.impose(POLICED, Limits("none"), "job")
        with monkeypatch.context() as without_nft:
            without_nft.setenv("PATH", "/nowhere")
            with pytest.raises(UnavailableError):
                await networks.attach(POLICED)
        async with AsyncIPRoute() as netlink:
            assert await netlink.link_lookup(ifname=tap_name(POLICED)) == []
        await networks.release(POLICED)
        assert await networks.list_attached() == set()
        assert "_policy" not in await rules()
    await clean()


async def test_a_bridge_that_somebody_removed_is_made_again_for_one_with_a_policy(database):
    async with networks_of(database) as networks:
        await networks.policies.impose(POLICED, Limits("none"), "job")
        await process.run_checked(["ip", "link", "del", SETTINGS.bridge], timeout_s=20)
        lease = await networks.attach(POLICED)
        assert await proxies() == [lease.address]
        await process.run_checked(["ip", "link", "del", SETTINGS.bridge], timeout_s=20)
        await networks._default.look()
        assert await proxies() == [lease.address], "also of one that runs"
        await networks.release(POLICED)
    await clean()


async def test_one_that_ends_while_the_rules_are_made_again_keeps_nobody_off_the_network(
    database, tmp_path, monkeypatch
):
    async with networks_of(database) as networks:
        await networks.policies.impose(POLICED, Limits("none"), "job")
        tap = (await networks.attach(POLICED)).tap
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        ending = tmp_path / "nft"
        ending.write_text(f'#!/bin/sh\nip link del {tap} 2>/dev/null\nexec {shutil.which("nft")} "$@"\n')
        ending.chmod(0o755)
        with monkeypatch.context() as meanwhile:
            meanwhile.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
            await networks.prepare()
        assert tap not in {name for _, name in socket.if_nameindex()}
        await networks.attach(PLAIN)
        for owner in (POLICED, PLAIN):
            await networks.release(owner)
    await clean()


async def test_where_nothing_is_heard_of_nftables_its_rules_are_looked_at(database):
    async with world(database, "none") as it:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no further socket
        try:
            keeping = asyncio.get_running_loop().create_task(it.networks.keep(every_s=0.05))
            await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        try:
            await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
            async with asyncio.timeout(SOON_S):
                while not keeping.done() and not await it.policies.stands(SETTINGS.table):
                    await asyncio.sleep(0)
            assert not keeping.done()
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping


async def test_a_policy_without_a_sandbox_is_found_and_removed(database):
    async with networks_of(database) as networks:
        await networks.policies.impose(POLICED, Limits("none"), "job")
        assert await networks.list_attached() == {POLICED}
        await networks.release(POLICED)
        assert await networks.list_attached() == set()
    await clean()


async def test_one_that_scans_is_counted_within_bounds(database):
    async with world(database, "none") as it:
        await it.scan(1500)
        report = await it.policies.report(POLICED)
        assert 1000 <= len(report.attempts) <= 1024
