# SPDX-License-Identifier: Apache-2.0
"""Bridges, taps and rules, in the network namespace that the test run made and never in the host's own."""

import asyncio
import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from hyperd.network import BridgeNetwork, BridgeSettings

CLONE_NEWNET = 0x40000000
SETTINGS = BridgeSettings(tap_owner_uid=65534, bridge="hypert0", subnet=IPv4Network("10.213.0.0/24"))


@pytest.fixture(autouse=True)
def private_namespace():
    """Every test here changes interfaces and rules: fail rather than touch those of the host."""
    if not is_namespace_private():
        pytest.fail("not in a network namespace made for the tests: use `make test`, or `unshare --net`")


def is_namespace_private() -> bool:
    """Whether PID 1 lives in another one; where that cannot be read, whether a process that started us does.

    What cannot be told counts as the host's.
    """
    own = network_namespace("self")
    first = network_namespace("1")
    if first is not None:
        return first != own
    return any(namespace not in (None, own) for namespace in map(network_namespace, ancestors()))


def network_namespace(process: str) -> str | None:
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except OSError:  # PID 1 of a container may have capabilities that root there has not
        return None


def ancestors() -> Iterator[str]:
    process = str(os.getpid())
    while process not in ("0", "1"):
        yield process
        status = Path(f"/proc/{process}/status").read_text()
        process = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))


@pytest.fixture
async def bridge_network(database) -> AsyncIterator[BridgeNetwork]:
    """A prepared network, and nothing of it afterwards."""
    network = BridgeNetwork(SETTINGS, database)
    try:
        await network.prepare()
        yield network
    finally:
        for owner in await network.list_attached():
            await network.release(owner)
        network.close()
        await clean()


async def clean(settings: BridgeSettings = SETTINGS) -> None:
    async with AsyncIPRoute() as netlink:
        for index in await netlink.link_lookup(ifname=settings.bridge):
            await netlink.link("del", index=index)
    for family in ("inet", "bridge"):
        child = await asyncio.create_subprocess_exec(
            "nft", "delete", "table", family, settings.table, stderr=asyncio.subprocess.DEVNULL
        )
        await child.wait()


class Namespace:
    """A network namespace that lives as long as its thread; a socket made there stays there."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="namespace")
        self.call(self._unshare)
        self._path = f"/proc/{os.getpid()}/task/{self.call(threading.get_native_id)}/ns/net"

    @staticmethod
    def _unshare() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._thread.submit(function, *args).result(10)

    def configure(self, steps: Callable[[AsyncIPRoute], Any]) -> None:
        async def run() -> None:
            async with AsyncIPRoute() as netlink:
                await netlink.link("set", index=1, state="up")
                await steps(netlink)

        self.call(asyncio.run, run())

    def socket(self, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        made: socket.socket = self.call(socket.socket, socket.AF_INET, kind, protocol)
        made.setblocking(False)
        return made

    def close(self) -> None:
        self._thread.shutdown()

    @contextlib.asynccontextmanager
    async def wired(
        self, host_side: str, address: str, *, gateway: str = "", mac: str = "", master: int = 0
    ) -> AsyncIterator[int]:
        """A cable to the test's own namespace, where its end is called ``host_side``; yields that end's index."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            async with AsyncIPRoute() as netlink:
                peer = {"ifname": "eth0", "net_ns_fd": descriptor} | ({"address": mac} if mac else {})
                await netlink.link("add", ifname=host_side, kind="veth", peer=peer)
                (index,) = await netlink.link_lookup(ifname=host_side)
                await netlink.link("set", index=index, state="up", **({"master": master} if master else {}))
        finally:
            os.close(descriptor)

        async def steps(netlink: AsyncIPRoute) -> None:
            (eth0,) = await netlink.link_lookup(ifname="eth0")
            await netlink.link("set", index=eth0, state="up")
            plain, prefix = address.split("/")
            await netlink.addr("add", index=eth0, address=plain, prefixlen=int(prefix))
            if gateway:
                await netlink.route("add", dst="default", gateway=gateway)

        self.configure(steps)
        try:
            yield index
        finally:
            async with AsyncIPRoute() as netlink:
                for left in await netlink.link_lookup(ifname=host_side):
                    await netlink.link("del", index=left)
