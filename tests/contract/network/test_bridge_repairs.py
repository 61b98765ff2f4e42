# SPDX-License-Identifier: Apache-2.0
"""Rules and bridges that somebody flushed, changed or removed are there again."""

import asyncio
import os
import shutil

import pytest

from hyperd.host import process
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetworks
from hyperd.network.nat import enable_forwarding
from hyperd.network.watch import watching
from tests.contract.network.conftest import SETTINGS, clean
from tests.contract.network.kernel import box, links, rules

BOX = SandboxId("b" * 64)


async def test_preparing_again_changes_nothing_and_repairs_what_was_flushed(bridge_network):
    before = await rules()
    await bridge_network.prepare()
    assert await rules() == before
    await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
    await process.run_checked(["ip", "address", "flush", "dev", SETTINGS.bridge], timeout_s=20)
    await process.run_checked(["ip", "link", "set", SETTINGS.bridge, "down"], timeout_s=20)
    await bridge_network.prepare()
    assert await rules() == before
    shown = (
        await process.run(["ip", "-br", "address", "show", SETTINGS.bridge], timeout_s=20)
    ).stdout.decode()
    assert "10.213.0.1/24" in shown
    assert not enable_forwarding(), "it is on"


async def test_the_next_sandbox_brings_back_rules_that_somebody_flushed(bridge_network):
    before = await rules()
    await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
    await bridge_network.attach(BOX)
    await bridge_network.release(BOX)
    assert await rules() == before


async def test_many_who_find_the_rules_gone_make_them_once(bridge_network, tmp_path, monkeypatch):
    nft = tmp_path / "nft"
    nft.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {shutil.which("nft")} "$@"\n')
    nft.chmod(0o755)
    await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(bridge_network.attach(box(number)))
    assert (tmp_path / "calls").read_text() == "-f -\n"


@pytest.mark.parametrize("family", ["inet", "bridge"])
async def test_flushed_rules_are_brought_back_without_any_start(bridge_network, family):
    before = await rules()
    keeping = asyncio.create_task(bridge_network.keep(0.01))
    try:
        await process.run_checked(["nft", "delete", "table", family, SETTINGS.table], timeout_s=20)
        async with asyncio.timeout(20):
            while await rules() != before:  # each look is a child process: no busy loop
                assert not keeping.done()
    finally:
        keeping.cancel()


@pytest.mark.parametrize(
    "what",
    [
        ("flush", "table", "inet", SETTINGS.table),
        ("flush", "table", "bridge", SETTINGS.table),
        ("flush", "chain", "inet", SETTINGS.table, "postrouting"),
        ("flush", "chain", "inet", SETTINGS.table, "arriving"),
        ("delete", "chain", "inet", SETTINGS.table, "leaving"),
    ],
    ids=" ".join,
)
async def test_rules_that_are_taken_out_of_a_table_that_stays_are_brought_back(database, what):
    """At once, for it is heard of: nobody looks in between."""
    networks = BridgeNetworks(SETTINGS, database)
    try:
        await networks.prepare()
        before = await rules()
        async with watching() as watch:
            keeping = asyncio.create_task(networks._keep(watch, 3600))
            try:
                await process.run_checked(["nft", *what], timeout_s=20)
                async with asyncio.timeout(20):
                    while await rules() != before:  # each look is a child process: no busy loop
                        assert not keeping.done()
            finally:
                keeping.cancel()
                await asyncio.wait([keeping])
    finally:
        networks.close()
        await clean()


async def test_the_next_sandbox_brings_back_a_chain_that_was_flushed(bridge_network):
    before = await rules()
    await process.run_checked(["nft", "flush", "chain", "inet", SETTINGS.table, "postrouting"], timeout_s=20)
    assert await rules() != before
    await bridge_network.attach(BOX)
    await bridge_network.release(BOX)
    assert await rules() == before


async def test_a_bridge_that_somebody_removed_is_made_again_for_the_next_sandbox(bridge_network):
    await process.run_checked(["ip", "link", "del", SETTINGS.bridge], timeout_s=20)
    attachment = await bridge_network.attach(BOX)
    found = await links()
    assert found[attachment.tap].get_attr("IFLA_MASTER") == found[SETTINGS.bridge]["index"]


async def test_whoever_runs_is_plugged_into_a_bridge_that_was_made_again(bridge_network):
    attachment = await bridge_network.attach(BOX)
    await process.run_checked(["ip", "link", "del", SETTINGS.bridge], timeout_s=20)
    await bridge_network.look()
    found = await links()
    assert found[attachment.tap].get_attr("IFLA_MASTER") == found[SETTINGS.bridge]["index"]
