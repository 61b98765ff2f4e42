# SPDX-License-Identifier: Apache-2.0
"""Policies that change while something else is under way: what was said last holds."""

import asyncio
import json
import threading
from ipaddress import IPv4Address

from hyperd.model.policy import Limits
from tests.contract.network.conftest import SETTINGS
from tests.contract.network.egress import PLAIN, POLICED, SOON_S, generation, rules, world
from tests.contract.network.test_security_groups import group, tcp

DB = group("db", tcp("ingress", 5432))
LAST = {"name": "db", "rules": [tcp("ingress", 5433)]}
FORBIDDEN = IPv4Address("198.51.100.9")


async def waiting(lock: asyncio.Lock, count: int) -> None:
    """Until so many do."""
    async with asyncio.timeout(SOON_S):
        while len(lock._waiters or ()) < count:
            await asyncio.sleep(0)


async def test_a_group_that_changes_while_one_that_has_it_goes(database):
    async with world(database, "") as it:
        await it.policies.groups.create(DB)
        await it.policies.groups.create(group("app", tcp("egress", 5432, remote_group_name="db")))
        await it.replug_neighbour(Limits("", ("app",)))
        await it.policies.change(POLICED, Limits("", ("db",)), "job")
        await it.networks.enforce(POLICED)
        changing = it.policies._wires._changing[SETTINGS.table]
        async with changing:  # another start does
            going = asyncio.create_task(it.networks.release(POLICED))
            await waiting(changing, 1)
            update = asyncio.create_task(it.policies.groups.update(json.dumps(LAST), "db"))
            await waiting(changing, 2)
        await asyncio.gather(going, update)
        assert it.policies._wires.of(POLICED) == []
        assert it.leases[0].address not in (await rules())


async def test_a_policy_in_force_while_its_sandbox_goes(database):
    async with world(database, "allow-all") as it:
        changing = it.policies._wires._changing[SETTINGS.table]
        async with changing:
            going = asyncio.create_task(it.networks.release(POLICED))
            await waiting(changing, 1)
            enforcing = asyncio.create_task(it.policies.arm_again(*armed(it)))
            await waiting(changing, 2)
        await asyncio.gather(going, enforcing)
        assert it.policies._wires.of(POLICED) == []
        assert "_policy" not in await rules()


def armed(it):
    (one,) = it.policies._wires.of(POLICED)
    return one.place, POLICED, one.judged.wire


async def test_a_name_that_was_just_forbidden_is_not_let_through(database):
    async with world(database, "allow: [{domain: [good.example, bad.example]}]") as it:
        held = threading.Event()
        busy = asyncio.create_task(it.policies._kernel.call(held.wait, 10))  # something that takes long
        changing, revision = it.policies._wires._changing[SETTINGS.table], it.policies.revision(POLICED)
        async with changing:
            learning = asyncio.create_task(it.policies.learn(POLICED, "bad.example", [(FORBIDDEN, 360)]))
            await asyncio.sleep(0)
            change = asyncio.create_task(it.change("allow: [{domain: good.example}, {cidr: 192.0.2.0/24}]"))
            async with asyncio.timeout(SOON_S):
                while it.policies.revision(POLICED) == revision:
                    await asyncio.sleep(0)
        async with asyncio.timeout(SOON_S):
            while "192.0.2.0/24" not in await rules():
                await asyncio.sleep(0)
        held.set()
        await asyncio.gather(busy, change)
        assert not await learning
        assert str(FORBIDDEN) not in await rules()


async def test_a_policy_that_is_put_in_force_does_not_undo_the_record_of_the_next(database):
    async with world(database, "none") as it:
        await it.policies.change(POLICED, Limits("allow-all"), "job")
        lock = it.policies._wires._changing[SETTINGS.table]
        async with lock:
            enforcing = asyncio.create_task(it.networks.enforce(POLICED))
            await waiting(lock, 1)
        await asyncio.gather(enforcing, it.policies.change(POLICED, Limits("none"), "job"))
        await it.restart(database)
        assert it.policies.limits_of(POLICED) == Limits("none")


async def asked(it, addresses) -> int:
    """A question for each is answered with it, all of them at once: what that costs in transactions."""
    before = generation()
    told = [it.policies.learn(POLICED, "good.example", [(address, 360)]) for address in addresses]
    assert await asyncio.gather(*told) == [True] * len(told)
    return generation() - before


async def test_what_one_guest_asks_for_keeps_nobody_from_changing_rules(database):
    """Each transaction that takes an element out is some 10 ms in which no other sandbox starts or stops."""
    async with world(database, "allow: [{domain: good.example}]") as it:
        same = [IPv4Address("93.184.216.34")] * 400
        assert await asked(it, same) <= 2
        assert await asked(it, same) == 0, "it is known for long enough"
        others = [IPv4Address("93.185.0.0") + number for number in range(400)]
        assert await asked(it, others) <= 400 / 16 + 1
        found = await rules()
        assert all(f"{address} " in found for address in (same[0], *others))


async def test_an_answer_for_which_there_is_no_room_spoils_no_other(database):
    async with world(database, "allow: [{domain: good.example}]") as it:
        many = [(IPv4Address("93.185.0.0") + number, 360) for number in range(4096)]
        assert await it.policies.learn(POLICED, "good.example", many)
        await it.policies.change(PLAIN, Limits("allow: [{domain: good.example}]"), "neighbour")
        await it.networks.enforce(PLAIN)
        too_many, well = await asyncio.gather(
            it.policies.learn(POLICED, "good.example", [(FORBIDDEN, 360)]),
            it.policies.learn(PLAIN, "good.example", [(FORBIDDEN, 360)]),
        )
        assert (too_many, well) == (False, True)
        await it.restart(database)
        too_many, well = await asyncio.gather(
            it.policies.learn(POLICED, "good.example", [(FORBIDDEN + 1, 360)]),
            it.policies.learn(PLAIN, "good.example", [(FORBIDDEN + 1, 360)]),
        )
        assert (too_many, well) == (False, True), "nor when only the kernel knows"
