# SPDX-License-Identifier: Apache-2.0
"""Beside Docker's or ufw's rules, which drop forwarded packets by default: with what docs/network.md says, all goes as
without them, and nothing of theirs is touched. Their chains are as iptables writes them.
"""

import contextlib

import pytest

from hyperd.host import process
from hyperd.model.network import PortRequest
from hyperd.model.policy import Limits
from tests.contract.network.egress import HOST_OUTSIDE, OUTSIDE, POLICED, connects, world

DOCKER = """
table ip filter {
    chain DOCKER { iifname != "docker0" oifname "docker0" drop; }
    chain DOCKER-USER { }
    chain DOCKER-FORWARD {
        oifname "docker0" ct state related,established accept
        oifname "docker0" jump DOCKER
        iifname "docker0" accept
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        counter jump DOCKER-FORWARD
    }
}
"""
UFW = """
table ip filter {
    chain ufw-user-forward { }
    chain ufw-before-forward {
        ct state related,established accept
        jump ufw-user-forward
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump ufw-before-forward
    }
}
"""
# iptables -I DOCKER-USER -i hy+ -j ACCEPT
# iptables -I DOCKER-USER -o hy+ -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
WITH_DOCKER = """
add rule ip filter DOCKER-USER iifname "hy*" accept
add rule ip filter DOCKER-USER oifname "hy*" ct state related,established accept
add rule ip filter DOCKER-USER oifname "hy*" ct status dnat accept
"""
# ufw route allow in on hyper0; ufw route allow out on hyper0
WITH_UFW = """
add rule ip filter ufw-user-forward iifname "hypert0" accept
add rule ip filter ufw-user-forward oifname "hypert0" accept
"""
THEIRS = pytest.mark.parametrize(
    ("theirs", "remedy"), [(DOCKER, WITH_DOCKER), (UFW, WITH_UFW)], ids=["docker", "ufw"]
)


async def nft(text: str) -> None:
    await process.run_checked(["nft", "-f", "-"], timeout_s=20, stdin=text.encode())


async def listed() -> str:
    shown = await process.run_checked(["nft", "--stateless", "list", "table", "ip", "filter"], timeout_s=20)
    return shown.stdout.decode()


@contextlib.asynccontextmanager
async def beside(theirs: str):
    await nft(theirs)
    try:
        yield
    finally:
        await nft("delete table ip filter")


async def reaches(client, server, host, port, *, listens=0):
    """What is dropped is not told of."""
    try:
        return await connects(client, server, host, port, listens=listens)
    except TimeoutError:
        return False


@THEIRS
async def test_guests_are_cut_off_until_what_the_documentation_says_is_done(database, theirs, remedy):
    async with beside(theirs), world(database, "") as it:
        await it.networks.publish(POLICED, [PortRequest(80, host_ip=HOST_OUTSIDE, host_port=8080)], "job")
        assert not await reaches(it.guest, it.outside, OUTSIDE, 8080)
        await nft(remedy)
        assert await it.connects(OUTSIDE, 8080)
        assert await connects(it.outside, it.guest, HOST_OUTSIDE, 8080, listens=80), "published"
        assert await it.connects(it.leases[1].address, 80, it.neighbour)
        assert not await reaches(it.outside, it.guest, it.leases[0].address, 80), "it opens nothing of ours"
        assert not await it.connects(it.gateway, 8022)


async def test_beside_docker_one_with_a_policy_reaches_what_that_says(database):
    async with beside(DOCKER), world(database, f"allow: [{{cidr: {OUTSIDE}, ports: 8080}}]") as it:
        await nft(WITH_DOCKER)
        assert await it.connects(OUTSIDE, 8080)
        assert not await it.connects(OUTSIDE, 8081)
        assert await connects(it.neighbour, it.guest, it.leases[0].address, 80)


@THEIRS
async def test_nothing_of_theirs_is_touched(database, theirs, remedy):
    async with beside(theirs):
        await nft(remedy)
        before = await listed()
        async with world(database, "none") as it:
            await it.change("allow-all")
            await it.policies.change(POLICED, Limits(rate_out=1000), "job")
            await it.networks.enforce(POLICED)
            assert await listed() == before
            await it.networks.prepare()
        assert await listed() == before
