# SPDX-License-Identifier: Apache-2.0
"""Rules of one sandbox in messages of our own: what nft would have made of the same words, and nothing else."""

import asyncio
import contextlib
import errno
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from hyperd.host import process
from hyperd.host.workers import Workers
from hyperd.model.policy import (
    Direction,
    EgressMode,
    EgressPolicy,
    GroupRule,
    PortRange,
    SecurityGroup,
    Service,
)
from hyperd.model.vm import SandboxId
from hyperd.network.assembler import UnspokenError, assemble
from hyperd.network.policy.document import parse_egress
from hyperd.network.policy.group_rules import render_members
from hyperd.network.policy.hooks import render_base, table_of
from hyperd.network.policy.rules import Judged, render_gone, render_wire
from hyperd.network.policy.wire import Ipv6, Wire
from hyperd.network.policy.wires import Armed, Place, Wires
from tests.contract.network.egress import GOOD, OUTSIDE, world

SUBNET, SUBNET6 = IPv4Network("10.219.0.0/16"), IPv6Network("fd12:3456::/64")
BASE = "hyper_assembled"
TABLE = f"inet {table_of(BASE)}"
WEB = Service("tcp", (PortRange(80, 80), PortRange(443, 443), PortRange(8000, 8100)))
PINGS = Service("icmp", (PortRange(0, 0), PortRange(8, 8)))
PINGS6 = Service("icmpv6", (PortRange(128, 129),))
LISTED = """
allow:
  - {domain: a.test, ports: 443}
  - {domain: "*.b.test", ports: [80, 443, 8000-8100, 8101]}
  - {cidr: 192.0.2.0/24}
  - {cidr: [198.51.100.0/24, 198.51.101.0/24, 203.0.113.7/32], ports: 22}
  - {cidr: 0.0.0.0/0, ports: 1-65535, protocol: udp}
  - {cidr: 169.254.169.254/32, ports: 80}
  - {domain: c.test, protocol: udp}
  - {group: db, ports: 5432}
"""
LISTED6 = f"""{LISTED}
  - {{cidr: ["2001:db8::/32", 192.0.2.7]}}
  - {{cidr: ["2001:db8:1::/48", "2001:db8:2::7", "2001:db8:2::8/125"], ports: 22}}
  - {{cidr: "::/0", ports: 1-65535, protocol: udp}}
  - {{cidr: "fd00:ec2::254", ports: 80}}
  - {{cidr: ["::/0", 0.0.0.0/0], protocol: icmp}}
"""
GROUP = SecurityGroup(
    "web",
    "",
    (
        GroupRule(Direction.INGRESS, WEB),
        GroupRule(Direction.INGRESS, PINGS, IPv4Network("10.0.0.0/8")),
        GroupRule(Direction.INGRESS, Service("udp"), IPv4Network("0.0.0.0/0")),
        GroupRule(Direction.EGRESS, Service(), group="db"),
        GroupRule(Direction.EGRESS, Service("", (PortRange(1, 1023),)), IPv4Network("10.1.2.3/32")),
        GroupRule(Direction.INGRESS, PINGS6, IPv6Network("fd00::/8")),
        GroupRule(Direction.INGRESS, Service("icmp")),
        GroupRule(Direction.EGRESS, Service("icmp"), IPv6Network("2001:db8::1/128")),
        GroupRule(Direction.EGRESS, PINGS6, IPv6Network("::/0")),
    ),
)


def wire(number: int = 1, ipv6: Ipv6 | None = None, **fields: int) -> Wire:
    name = f"hyt{number:012x}"
    return Wire(name, SUBNET[number + 1], "bench", "hyperb0", SUBNET, SUBNET[1], ipv6=ipv6, **fields)


def six(number: int = 1) -> Wire:
    return wire(number, Ipv6(SUBNET6[number + 1], IPv6Network("fe80::/64")[number], SUBNET6, SUBNET6[1]))


CASES = {
    "nothing": Judged(wire(), EgressPolicy(EgressMode.NONE)),
    "all": Judged(wire(), EgressPolicy(EgressMode.ALLOW_ALL)),
    "listed": Judged(wire(), parse_egress(LISTED)),
    "a group": Judged(wire(), EgressPolicy(EgressMode.ALLOW_ALL), (GROUP,)),
    "an empty group": Judged(wire(), parse_egress(LISTED), (SecurityGroup("none"),)),
    "nothing in either family": Judged(six(), EgressPolicy(EgressMode.NONE)),
    "all in both families": Judged(six(), EgressPolicy(EgressMode.ALLOW_ALL)),
    "listed in both families": Judged(six(), parse_egress(LISTED6)),
    "a group in both families": Judged(six(), EgressPolicy(EgressMode.ALLOW_ALL), (GROUP,)),
    "an empty group in both families": Judged(six(), parse_egress(LISTED6), (SecurityGroup("none"),)),
    "rates": Judged(wire(rate_in=5000, rate_out=5000), EgressPolicy(EgressMode.ALLOW_ALL)),
}


def words_of(judged: Judged) -> str:
    return render_members(TABLE, ["db"], (4, 6)) + render_wire(BASE, judged, forgets=True)


async def nft(text: str) -> None:
    await process.run_checked(["nft", "-f", "-"], timeout_s=20, stdin=text.encode())


async def listed() -> str:
    shown = await process.run_checked(["nft", "list", "table", *TABLE.split()], timeout_s=20)
    # Whoever comes first has the lower number, by whichever way.
    return re.sub(r"expires \S+", "", shown.stdout.decode())


@pytest.fixture
async def hooks():
    text = render_base(BASE, six(), internal=False)
    await nft(text)
    yield text
    await nft(f"delete table {TABLE}")


@pytest.mark.parametrize("case", CASES)
async def test_it_is_what_nft_makes_of_the_same_words(hooks, case):
    text = words_of(CASES[case])
    await nft(text)
    wanted = await listed()
    assert "from_hyt" in wanted
    await nft(f"delete table {TABLE}")
    await nft(hooks)
    for _ in range(2):  # and again, as often as one likes
        assemble(text)
        assert await listed() == wanted
    await nft(text)
    assert await listed() == wanted, "nor does nft find anything in its way"


@pytest.mark.parametrize("case", CASES)
async def test_it_is_taken_out_to_the_last(hooks, case):
    assemble(render_members(TABLE, ["db"], (4, 6)))
    before = await listed()
    assemble(render_wire(BASE, CASES[case]))
    assert await listed() != before
    for _ in range(2):
        assemble(render_gone(BASE, CASES[case]))
        assert await listed() == before


async def test_what_is_refused_halfway_changes_nothing(hooks):
    before = await listed()
    text = f"add chain {TABLE} first\nadd rule {TABLE} first accept\nadd rule {TABLE} first goto nowhere_at_all\n"
    with pytest.raises(OSError) as caught:
        assemble(text)
    assert caught.value.errno == errno.ENOENT
    assert await listed() == before


@pytest.mark.parametrize(
    "line",
    [
        f"add chain {TABLE} hook {{ type filter hook input priority 0; }}",
        f"add rule {TABLE} first meta mark 1",
        f"add rule {TABLE} first ip daddr 10.0.0.1/8 accept",
        f"add rule {TABLE} first ip daddr {{ 10.0.0.1",
        f'add rule {TABLE} first iifname "hyt*" accept',
        f"add rule {TABLE} first ct state new accept",
        "add rule ip filter first accept",
        f"delete table {TABLE}",
        "accept",
    ],
)
def test_what_is_not_of_our_part_of_the_language_is_left_to_nft(line):
    with pytest.raises(UnspokenError):
        assemble(line)


def armed(number: int) -> Armed:
    judged = Judged(wire(number), parse_egress(LISTED), (GROUP,))
    return Armed(SandboxId(f"{number:064x}"), Place(BASE, internal=False), judged)


async def test_one_more_sandbox_needs_no_nft(monkeypatch):
    """Which would read all rules of the host first."""
    kernel = Workers("test", 1)
    wires = Wires(kernel)
    try:
        await wires.stand([armed(number) for number in range(1, 4)])
        with monkeypatch.context() as nowhere:
            nowhere.setenv("PATH", "/nonexistent")
            await wires.arm(BASE, lambda: [armed(4)])
            await wires.disarm(armed(2))
        shown = await listed()
        assert "from_hyt000000000004" in shown
        assert "from_hyt000000000002" not in shown
    finally:
        await wires.withdraw(BASE)
        wires.close()
        kernel.close()


async def test_with_the_table_gone_it_is_made_again(monkeypatch):
    kernel = Workers("test", 1)
    wires = Wires(kernel)
    try:
        await wires.stand([armed(1)])
        await nft(f"delete table {TABLE}")
        await wires.arm(BASE, lambda: [armed(2)])
        shown = await listed()
        assert "from_hyt000000000002" in shown
        assert "hook forward" in shown
    finally:
        await wires.withdraw(BASE)
        wires.close()
        kernel.close()


@contextlib.asynccontextmanager
async def tracing():
    """What nft tells of each rule that a packet passes."""
    child = await asyncio.create_subprocess_exec(
        "nft", "monitor", "trace", stdout=asyncio.subprocess.PIPE, limit=1 << 20
    )
    try:
        yield child.stdout
    finally:
        child.kill()
        await child.wait()


async def rules_passed(it) -> int:
    """By the first packet of a connection of the guest to outside, of all tables."""
    base = f"hyper_{it.networks.get_network('bridge').bridge}"
    tap = it.policies.wire_at(base, IPv4Address(it.leases[0].address)).name
    await nft(
        "table inet tracer { chain first { type filter hook prerouting priority -400;"
        f' iifname "{tap}" tcp flags syn meta nftrace set 1\n }}\n}}\n'
    )
    try:
        async with tracing() as told, asyncio.timeout(20):
            passed: dict[bytes, int] = {}
            connecting = asyncio.create_task(_until_cancelled(it))
            try:
                while True:
                    line = await told.readline()
                    number = line.split()[2] if line.startswith(b"trace id") else b""
                    passed[number] = passed.get(number, 0) + (b" rule " in line)
                    if number and b"postrouting" in line and passed[number]:
                        return passed[number]
            finally:
                connecting.cancel()
    finally:
        await nft("delete table inet tracer")


async def _until_cancelled(it) -> None:
    """Until somebody listens to what is told of it."""
    while True:
        assert await it.connects(OUTSIDE, 8080)


async def test_a_packets_way_does_not_grow_with_the_sandboxes_that_have_rules(database):
    async with world(database, f"allow: [{{cidr: {OUTSIDE}/32}}, {{cidr: {GOOD}/32}}]") as it:
        alone = await rules_passed(it)
        place = Place(next(iter(it.policies._wires._armed))[0], internal=False)
        for number in range(40):
            one = armed(number + 100)
            made = [Armed(one.owner, place, one.judged)]
            await it.policies._wires.arm(place.base, lambda made=made: made)
        try:
            assert await rules_passed(it) == alone
        finally:
            for number in range(40):
                await it.policies._wires.disarm(
                    Armed(armed(number + 100).owner, place, armed(number + 100).judged)
                )
        assert alone > 3
