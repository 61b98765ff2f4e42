# SPDX-License-Identifier: Apache-2.0
"""Somebody else changes our rules by hand: it is noticed, told once, and undone."""

import asyncio
import logging

import pytest

from hyperd.host import process
from hyperd.model.policy import Limits
from hyperd.network import BridgeNetworks
from hyperd.network.elements import INET_FAMILY
from hyperd.network.standing import digest_rules
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.egress import POLICED, SOON_S

OWN, POLICY = f"inet {SETTINGS.table}", f"inet {SETTINGS.table}_policy"
TOLD = "the bridge or the rules of sandboxes are gone or changed: making them again"


async def nft(*words: str) -> None:
    await process.run_checked(["nft", *" ".join(words).split()], timeout_s=20)


async def listed(table: str) -> str:
    """Without what was counted."""
    shown = await process.run_checked(["nft", "--stateless", "list", "table", *table.split()], timeout_s=20)
    return shown.stdout.decode()


@pytest.fixture
async def watched(database):
    """A network that looks after its rules, with a sandbox that has a policy."""
    networks = BridgeNetworks(SETTINGS, database, lambda: ())
    try:
        await networks.prepare()
        await networks.policies.impose(POLICED, Limits("none"), "job")
        await networks.attach(POLICED)
        keeping = asyncio.create_task(networks.keep(3600.0))
        yield networks
        keeping.cancel()
        await asyncio.wait([keeping])
        await networks.release(POLICED)
    finally:
        networks.close()
        await clean()


async def handle_of(table: str, chain: str, words: str) -> str:
    shown = await process.run_checked(["nft", "-a", "list", "chain", *table.split(), chain], timeout_s=20)
    line = next(line for line in shown.stdout.decode().splitlines() if words in line)
    return line.rpartition("# handle ")[2]


@pytest.mark.parametrize(
    ("table", "chain", "words"),
    [
        (OWN, "input", "insert rule {} input accept"),
        (OWN, "forward", "add rule {} forward ip daddr 198.51.100.0/24 accept"),
        (OWN, "input", "replace rule {} input handle {} accept"),
        (POLICY, "outward", "insert rule {} outward accept"),
        (POLICY, "sent", "delete rule {} sent handle {}"),
        (f"bridge {SETTINGS.table}", "guest", "insert rule {} guest accept"),
    ],
)
async def test_a_rule_that_somebody_adds_changes_or_takes_out_is_undone_at_once(
    watched, caplog, table, chain, words
):
    before = await listed(table)
    handle = await handle_of(table, chain, "counter")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        await nft(words.format(table, handle))
        assert await listed(table) != before
        async with asyncio.timeout(SOON_S):
            while await listed(table) != before:
                pass
    told = [record for record in caplog.records if record.getMessage() == TOLD]
    assert len(told) == 1


async def test_what_we_do_ourselves_is_no_change(watched, caplog):
    with caplog.at_level(logging.WARNING):
        await watched.policies.change(POLICED, Limits("allow-all"), "job")
        await watched.enforce(POLICED)
        await watched.prepare()
        for network in watched._networks.values():
            await network.look()
    assert TOLD not in caplog.text


async def test_what_is_counted_is_no_change_and_what_is_said_is():
    async def said(rule: str) -> bytes:
        await process.run_checked(
            ["nft", "-f", "-"],
            timeout_s=20,
            stdin=f"table inet counted {{ chain one {{ {rule}\n }}\n }}\n".encode(),
        )
        try:
            return digest_rules(INET_FAMILY, "counted")
        finally:
            await nft("delete table inet counted")

    first = await said("tcp dport { 22, 80 } counter packets 5 bytes 5 accept")
    assert await said("tcp dport { 22, 80 } counter packets 9 bytes 9 accept") == first
    others = ("counter drop", "counter accept", "tcp dport 22 counter accept", "counter accept comment one")
    assert len({first, *[await said(rule) for rule in others]}) == 5
