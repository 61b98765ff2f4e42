# SPDX-License-Identifier: Apache-2.0
"""What a sandbox with an egress policy reaches, played by a namespace at the end of its tap."""

import asyncio
import socket

import pytest

from tests.contract.network.egress import (
    BAD,
    GOOD,
    INSIDE,
    OUTSIDE,
    POLICED,
    SOON_S,
    connects,
    world,
)

BY_NAME = "allow: [{domain: [good.example, '*.good.example'], ports: 443}]"


async def test_nothing_leaves_under_none_and_what_was_tried_is_told(database):
    async with world(database, "none") as it:
        assert not await it.connects(OUTSIDE, 8080)
        assert not await it.connects(OUTSIDE, 8080)
        assert not await it.connects(it.leases[1].address, 80, it.neighbour)
        assert not await it.connects(it.gateway, 8022)
        assert await it.look_up("good.example") == []
        assert not it.upstream.asked
        tried = await it.tried()
        assert tried == {
            (OUTSIDE, 8080): 2,
            (it.leases[1].address, 80): 1,
            (it.gateway, 8022): 1,
            ("good.example", 0): 1,
        }


async def test_an_allowed_name_leads_where_it_says_and_nowhere_else(database):
    async with world(database, BY_NAME) as it:
        assert not await it.connects(GOOD, 443), "not before it was asked for by its name"
        assert await it.look_up("good.example") == [GOOD]
        assert await it.connects(GOOD, 443)
        assert not await it.connects(GOOD, 80)
        assert await it.look_up("bad.example") == []
        assert "bad.example." not in it.upstream.asked
        assert not await it.connects(BAD, 443)
        report = await it.policies.report(POLICED)
        named = {(each.destination, each.port): each.name for each in report.attempts}
        assert named[GOOD, 80] == "good.example"
        assert named[BAD, 443] == ""


async def test_a_suffix_allows_what_is_beneath_it(database):
    async with world(database, "allow: [{domain: '*.good.example', ports: [443, 8000-8010]}]") as it:
        assert await it.look_up("files.good.example") == [GOOD]
        assert await it.connects(GOOD, 8010)
        assert await it.look_up("good.example") == []


async def test_whomever_it_asks_for_a_name_our_server_answers(database):
    async with world(database, BY_NAME) as it:
        assert await it.look_up("good.example", server="8.8.8.8") == [GOOD]
        assert await it.look_up("bad.example", server="8.8.8.8") == []


async def test_names_that_lead_inside_are_not_told(database):
    async with world(database, "allow: [{domain: [inside.example, both.example]}]") as it:
        assert await it.look_up("inside.example") == []
        assert await it.look_up("both.example") == [GOOD]
        assert not await it.connects(INSIDE, 80)
        assert (INSIDE, 0) in await it.tried()


async def test_a_range_that_is_named_is_reached_also_by_name(database):
    async with world(database, f"allow: [{{domain: inside.example, cidr: {INSIDE}, ports: 80}}]") as it:
        assert await it.connects(INSIDE, 80)
        assert await it.look_up("inside.example") == [INSIDE]


async def test_allow_all_reaches_what_a_sandbox_without_a_policy_does(database):
    async with world(database, "allow-all") as it:
        assert await it.connects(OUTSIDE, 8080)
        assert await it.connects(it.leases[1].address, 80, it.neighbour)
        assert await it.look_up("bad.example") == [BAD]
        assert not await it.connects(it.gateway, 8022)


async def test_its_neighbours_reach_it_as_before(database):
    async with world(database, "none") as it:
        assert await connects(it.neighbour, it.guest, it.leases[0].address, 8080)


async def test_a_policy_that_changes_holds_for_what_has_begun(database):
    async with world(database, BY_NAME) as it:
        assert await it.look_up("good.example") == [GOOD]
        await it.change("allow: [{domain: good.example, ports: [443, 444]}]")
        assert await it.connects(GOOD, 444), "what a name stands for is known under the new one, too"
        await it.change("none")
        assert not await it.connects(GOOD, 443)
        await it.change("allow-all")
        assert await it.connects(BAD, 80)


async def test_a_connection_ends_with_its_permission_and_goes_on_with_it(database):
    async with world(database, "allow-all") as it:
        async with it.connected(OUTSIDE, 8080) as (begun, accepted):
            assert await passes(begun, accepted, b"one")
            await it.change(f"allow: [{{cidr: {OUTSIDE}, ports: 8080}}]")
            assert await passes(begun, accepted, b"two")
            await it.change("none")
            assert not await passes(begun, accepted, b"three")
        assert (OUTSIDE, 8080) in await it.tried()


async def passes(begun: socket.socket, accepted: socket.socket, data: bytes) -> bool:
    """False: whoever sends it is told that the connection has ended."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SOON_S):
        await loop.sock_sendall(begun, data)
        ended = loop.create_task(loop.sock_recv(begun, 1))
        arrived = loop.create_task(loop.sock_recv(accepted, 100))
        done, left = await asyncio.wait((ended, arrived), return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.wait((ended, arrived))
    if ended in done:
        assert isinstance(ended.exception(), ConnectionResetError)
        return False
    return arrived.result() == data


@pytest.mark.parametrize("egress", ["none", BY_NAME])
async def test_a_sandbox_that_runs_gets_its_first_policy(database, egress):
    async with world(database, "") as it:
        assert await it.connects(OUTSIDE, 8080)
        await it.change(egress)
        assert not await it.connects(OUTSIDE, 8080)
        assert not await it.connects(it.leases[1].address, 80, it.neighbour)
