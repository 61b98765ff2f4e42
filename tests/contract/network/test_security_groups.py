# SPDX-License-Identifier: Apache-2.0
"""Whom a sandbox with security groups hears, and speaks to; and the groups themselves, the fake's held to the same."""

import json
import re

import pytest

from hyperd.errors import ExistsError, InvalidError, NotFoundError, UnavailableError, WrongStateError
from hyperd.host import process
from hyperd.model.network import PortRequest
from hyperd.model.policy import Limits
from hyperd.network import BridgeNetworks
from hyperd.network.policy import Policies
from hyperd.network.policy.wire import Wire
from hyperd.network.policy.wires import Place
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.egress import (
    HOST_OUTSIDE,
    OUTSIDE,
    PLAIN,
    POLICED,
    connects,
    generation,
    rules,
    world,
)
from tests.fakes.policies import FakePolicies


def group(name, *given):
    return json.dumps({"name": name, "rules": list(given)})


def tcp(direction, port, **remote):
    return {
        "direction": direction,
        "protocol": "tcp",
        "port_range_min": port,
        "port_range_max": port,
        **remote,
    }


@pytest.fixture(params=["fake", "real"])
async def policies(request, database):
    if request.param == "fake":
        yield FakePolicies()
        return
    networks = BridgeNetworks(SETTINGS, database, lambda: ())
    await networks.prepare()
    yield networks.policies
    networks.close()
    await clean()


async def test_groups_are_made_changed_and_removed(policies):
    groups = policies.groups
    made = await groups.create(group("web"))
    assert groups.list_groups() == [made] == [groups.get("web")]
    with pytest.raises(ExistsError):
        await groups.create(group("web"))
    with pytest.raises(InvalidError):
        await groups.create(group("web"), "other")
    with pytest.raises(NotFoundError):
        await groups.create(group("db", {"direction": "ingress", "remote_group_name": "nobody"}))
    with pytest.raises(NotFoundError):
        await groups.update(group("nobody"))
    with pytest.raises(InvalidError):
        await groups.update("{", "web")
    await groups.create(group("db", {"direction": "ingress", "remote_group_name": "web"}))
    with pytest.raises(WrongStateError):
        await policies.remove_group("web")
    await groups.update(group("db"))
    await policies.remove_group("web")
    with pytest.raises(NotFoundError):
        await policies.remove_group("web")
    with pytest.raises(NotFoundError):
        policies.require_valid(Limits(groups=("web",)))
    policies.require_valid(Limits(groups=("db",)))


async def test_groups_outlive_hyperd(database):
    async with world(database, "") as it:
        made = await it.policies.groups.create(
            group("web", tcp("ingress", 80, remote_ip_prefix="192.0.2.0/24"))
        )
        await it.restart(database)
        assert it.policies.groups.list_groups() == [made]


async def in_groups(it, *names, egress=""):
    await it.policies.change(POLICED, Limits(egress, names), "job")
    await it.networks.enforce(POLICED)


async def test_a_sandbox_with_a_group_hears_what_that_lets_in(database):
    async with world(database, "") as it:
        address = it.leases[0].address
        await it.policies.groups.create(group("web", tcp("ingress", 80)))
        await it.policies.groups.create(group("ssh", tcp("ingress", 22, remote_ip_prefix="192.0.2.0/24")))
        await in_groups(it, "web")
        assert await connects(it.neighbour, it.guest, address, 80)
        assert not await connects(it.neighbour, it.guest, address, 22)
        await in_groups(it, "web", "ssh")
        assert not await connects(it.neighbour, it.guest, address, 22)
        changed = tcp("ingress", 22, remote_ip_prefix=f"{it.leases[1].address}/32")
        await it.policies.groups.update(group("ssh", changed))
        assert await connects(it.neighbour, it.guest, address, 22), "at once"
        await in_groups(it)
        assert await connects(it.neighbour, it.guest, address, 8080), "as without any"


async def test_what_is_published_is_heard_from_whom_a_group_lets_in(database):
    async with world(database, "") as it:
        await it.networks.publish(POLICED, [PortRequest(80, host_ip=HOST_OUTSIDE, host_port=8080)], "job")
        await it.policies.groups.create(group("web", tcp("ingress", 80, remote_ip_prefix="192.0.2.0/24")))
        await in_groups(it, "web")
        assert not await connects(it.outside, it.guest, HOST_OUTSIDE, 8080, listens=80)
        await it.policies.groups.update(group("web", tcp("ingress", 80, remote_ip_prefix=f"{OUTSIDE}/32")))
        assert await connects(it.outside, it.guest, HOST_OUTSIDE, 8080, listens=80)


async def test_a_group_without_a_word_of_egress_forbids_none(database):
    async with world(database, "") as it:
        await it.policies.groups.create(group("quiet"))
        await in_groups(it, "quiet")
        assert await it.connects(OUTSIDE, 8080)
        await it.policies.groups.update(group("quiet", tcp("egress", 443)))
        assert not await it.connects(OUTSIDE, 8080)
        assert await it.connects(OUTSIDE, 443)
        assert (OUTSIDE, 8080) in await it.tried()


async def test_a_group_and_a_policy_must_both_let_it_out(database):
    async with world(database, "") as it:
        await it.policies.groups.create(group("web", tcp("egress", 443), tcp("egress", 80)))
        await in_groups(it, "web", egress=f"allow: [{{cidr: {OUTSIDE}, ports: [80, 22]}}]")
        assert await it.connects(OUTSIDE, 80)
        assert not await it.connects(OUTSIDE, 443)
        assert not await it.connects(OUTSIDE, 22)


@pytest.mark.parametrize("by", ["group", "policy"])
async def test_a_rule_may_speak_of_a_group(database, by):
    async with world(database, "none") as it:
        await it.policies.groups.create(group("db", tcp("ingress", 5432)))
        await it.policies.groups.create(group("app", tcp("egress", 5432, remote_group_name="db")))
        if by == "group":
            await in_groups(it, "app", egress="allow-all")
        else:
            await in_groups(it, egress="allow: [{group: db, ports: 5432}]")
        there = it.leases[1].address
        assert not await it.connects(there, 5432, it.neighbour)
        await it.replug_neighbour(Limits(groups=("db",)))
        assert await it.connects(there, 5432, it.neighbour)
        await it.networks.release(PLAIN)
        assert there not in (await rules()).partition("set members_")[2].partition("}")[0]


async def members() -> set[str]:
    """Of the only group that a rule speaks of."""
    shown = (await rules()).partition("set members_")[2].partition("}")[0]
    return set(re.findall(r"\d+\.\d+\.\d+\.\d+", shown))


async def test_who_has_a_group_is_known_as_they_come_change_and_go(database):
    async with world(database, "none") as it:
        for name in ("db", "web"):
            await it.policies.groups.create(group(name))
        there, here = it.leases[1].address, it.leases[0].address
        await it.replug_neighbour(Limits(groups=("db",)))
        await in_groups(it, egress="allow: [{group: db}]")
        assert await members() == {there}, "also who had it before a rule spoke of it"
        await in_groups(it, "db", "web", egress="allow: [{group: db}]")
        assert await members() == {there, here}
        await it.replug_neighbour(Limits(groups=("web",)))
        assert await members() == {here}
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        await it.networks.prepare()
        assert await members() == {here}, "and after a flush"
        await in_groups(it, egress="allow: [{group: db}]")
        assert await members() == set()


async def test_a_group_that_is_gone_leaves_nothing(database):
    async with world(database, "none") as it:
        await it.policies.groups.create(group("db"))
        await in_groups(it, egress="allow: [{group: db}]")
        assert "members_" in await rules()
        await in_groups(it, egress="none")
        await it.policies.remove_group("db")
        assert "members_" not in await rules()


async def test_a_change_that_cannot_be_made_is_told_with_whom_and_made_later(database, monkeypatch):
    async with world(database, "") as it:
        address = it.leases[0].address
        await it.policies.groups.create(group("web", tcp("ingress", 80)))
        await in_groups(it, "web")
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        with monkeypatch.context() as without_nft:
            without_nft.setenv("PATH", "/nowhere")
            with pytest.raises(UnavailableError, match="still in force for job") as refused:
                await it.policies.groups.update(group("web", tcp("ingress", 81)))
        assert refused.value.subject == "security group web"
        assert not await it.policies.stands(SETTINGS.table)
        await it.networks.prepare()
        assert await it.policies.stands(SETTINGS.table)
        assert await connects(it.neighbour, it.guest, address, 81)
        assert not await connects(it.neighbour, it.guest, address, 80)


async def test_a_change_that_could_not_be_made_is_not_waited_for_when_nobody_has_it_any_more(
    database, monkeypatch
):
    async with world(database, "") as it:
        await it.policies.groups.create(group("web", tcp("ingress", 80)))
        await in_groups(it, "web")
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        with monkeypatch.context() as without_nft:
            without_nft.setenv("PATH", "/nowhere")
            with pytest.raises(UnavailableError):
                await it.policies.groups.update(group("web", tcp("ingress", 81)))
        assert not await it.policies.stands(SETTINGS.table)
        await it.networks.release(POLICED)
        await it.networks.prepare()
        assert await it.policies.stands(SETTINGS.table)


class Unforgetting(Policies):
    """For as often as it is told, the kernel keeps the connections that it should forget."""

    fail_next_cuts = 0

    async def cut(self, *wires):
        if self.fail_next_cuts:
            self.fail_next_cuts -= 1
            raise UnavailableError("the kernel refused")
        await super().cut(*wires)


async def test_a_group_s_change_is_made_when_what_had_begun_is_cut(database, bridge_network):
    base, address = bridge_network.settings.table, bridge_network.settings.subnet[9]
    settings = bridge_network.settings
    wire = Wire(
        "hypert-none", address, settings.name, settings.bridge, settings.subnet, settings.gateway, ipv6=None
    )
    policies, place = Unforgetting(database), Place(base, internal=False)
    await policies.load()
    try:
        await policies.groups.create(group("web", tcp("ingress", 80)))
        await policies.impose(POLICED, Limits(groups=("web",)), "job")
        await policies.arm(place, POLICED, wire)
        assert await policies.stands(base)
        policies.fail_next_cuts = 2
        with pytest.raises(UnavailableError):
            await policies.groups.update(group("web", tcp("ingress", 81)))
        assert not await policies.stands(base)
        with pytest.raises(UnavailableError):
            await policies.stand(place, [(POLICED, wire)])
        assert not await policies.stands(base)
        await policies.stand(place, [(POLICED, wire)])
        assert await policies.stands(base)
    finally:
        await policies.disarm(place, POLICED, wire)
        policies.close()


async def test_a_change_is_one_transaction_for_all_that_have_the_group(database):
    async with world(database, "") as it:
        await it.policies.groups.create(group("web", tcp("ingress", 80)))
        await in_groups(it, "web")
        await it.replug_neighbour(Limits("", ("web",)))
        before = generation()
        await it.policies.groups.update(group("web", tcp("ingress", 81)))
        assert generation() - before == 1
        for namespace, server, lease in (
            (it.neighbour, it.guest, it.leases[0]),
            (it.guest, it.neighbour, it.leases[1]),
        ):
            assert await connects(namespace, server, lease.address, 81)
            assert not await connects(namespace, server, lease.address, 80)


async def test_rates_are_put_in_and_taken_out(database):
    async with world(database, "") as it:
        await it.policies.change(POLICED, Limits(rate_in=1_000_000, rate_out=500_000), "job")
        await it.networks.enforce(POLICED)
        assert await it.connects(OUTSIDE, 8080)
        assert "rate over 500" in await rules()
        assert "rate 8Mbit" in await it.queue()
        await it.networks.release(POLICED)
        assert "rate over" not in await rules()


async def test_what_is_sent_beyond_the_rate_does_not_arrive(database):
    async with world(database, "") as it:
        await it.policies.change(POLICED, Limits(rate_out=1000), "job")
        await it.networks.enforce(POLICED)
        burst = 128 << 10
        assert burst // 2 <= await it.flood(4 * burst) <= burst + 64_000
