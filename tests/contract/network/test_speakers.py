# SPDX-License-Identifier: Apache-2.0
"""A guest speaks on the bridge as itself and as nobody else, from its first frame to its last."""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import socket
import struct
from collections.abc import Iterator

import pytest

from hyperd.host import process
from hyperd.model.network import Attachment, Endpoint
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetwork
from tests.contract.network.conftest import SETTINGS, clean

LIAR, LISTENER = SandboxId("a" * 64), SandboxId("b" * 64)
EVERYBODY = b"\xff" * 6
OTHER_MAC, OTHER_IP = "0a:48:0a:d5:00:63", "10.213.0.99"
LISTENER_MAC, LISTENER_IP = "0a:48:0a:d5:00:03", "10.213.0.3"
NO_OFFLOAD = bytes(10)  # virtio_net_hdr
IPV4, ARP = 0x0800, 0x0806


class Nic:
    """The guest's side of a tap, as QEMU has it."""

    def __init__(self, tap: str) -> None:
        self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._tun, 0x400454CA, struct.pack("16sH22x", tap.encode(), 0x5002))

    def send(self, frame: bytes) -> None:
        os.write(self._tun, NO_OFFLOAD + frame)

    async def hear(self) -> bytes:
        """The next word that comes, "" for a frame without one."""
        while True:
            try:
                return os.read(self._tun, 65536).partition(b"word:")[2].rstrip(b"\0")
            except BlockingIOError:
                await readable(self._tun)

    def close(self) -> None:
        os.close(self._tun)


async def readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    came = loop.create_future()
    loop.add_reader(descriptor, came.set_result, None)
    try:
        await came
    finally:
        loop.remove_reader(descriptor)


@contextlib.contextmanager
def plugged(*taps: str) -> Iterator[list[Nic]]:
    with contextlib.ExitStack() as stack:
        nics = []
        for tap in taps:
            nics.append(Nic(tap))
            stack.callback(nics[-1].close)
        yield nics


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ip(word: str, mac: str, address: str, *, protocol: int = 253, start: bytes = b"") -> bytes:
    payload = start + b"word:" + word.encode()
    ends = socket.inet_aton(address) + socket.inet_aton(LISTENER_IP)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + ends
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
    return raw(LISTENER_MAC) + raw(mac) + struct.pack("!H", IPV4) + header + payload


def offer(word: str, mac: str, address: str) -> bytes:
    """What a DHCP server says, to whoever listens."""
    return ip(word, mac, address, protocol=17, start=struct.pack("!4H", 67, 68, 0, 0))


def arp(word: str, mac: str, address: str, *, said: str = "") -> bytes:
    """A reply that nobody asked for: ``address`` is at ``said``."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + raw(said or mac) + socket.inet_aton(address)
    return EVERYBODY + raw(mac) + struct.pack("!H", ARP) + body + bytes(10) + b"word:" + word.encode()


async def heard(liar: Attachment, listener: Attachment) -> set[bytes]:
    """All that came through."""
    with plugged(liar.tap, listener.tap) as (mouth, ear):
        return await overheard(mouth, ear, liar, listener)


async def overheard(mouth: Nic, ear: Nic, liar: Attachment, listener: Attachment) -> set[bytes]:
    """Of what was said again and again until what must come through had come.

    Once is not enough: the kernel tells the bridge of the carriers when it has the time.
    """
    words: set[bytes] = set()
    async with asyncio.timeout(20):
        while not words >= {b"own ip", b"own arp", b"end"}:
            say(mouth, liar, listener)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while (word := await ear.hear()) != b"end":
                        words |= {word} - {b""}
                    words.add(word)
    return words - {b"end"}


def say(mouth: Nic, liar: Attachment, listener: Attachment) -> None:
    mouth.send(ip("own ip", liar.mac, liar.address))
    mouth.send(arp("own arp", liar.mac, liar.address))
    mouth.send(ip("forged mac", OTHER_MAC, liar.address))
    mouth.send(ip("forged ip", liar.mac, OTHER_IP))
    mouth.send(ip("neighbour", listener.mac, listener.address))
    mouth.send(arp("arp with a forged mac", OTHER_MAC, liar.address))
    mouth.send(arp("arp for another", liar.mac, OTHER_IP))
    mouth.send(arp("arp for the gateway", liar.mac, liar.gateway))
    mouth.send(arp("arp with another mac inside", liar.mac, liar.address, said=OTHER_MAC))
    mouth.send(arp("arp probe", liar.mac, "0.0.0.0"))
    mouth.send(EVERYBODY + raw(liar.mac) + b"\x86\xdd" + bytes(40) + b"word:ipv6 where there is none")
    mouth.send(EVERYBODY + raw(liar.mac) + b"\x81\x00\x00\x01" + bytes(40) + b"word:a network within")
    mouth.send(offer("offer of an address", liar.mac, liar.address))
    mouth.send(arp("end", liar.mac, liar.address))


async def elements() -> str:
    listed = await process.run(["nft", "list", "table", "bridge", SETTINGS.table], timeout_s=20)
    return listed.stdout.decode()


async def test_only_what_a_guest_says_as_itself_is_heard(bridge_network):
    liar, listener = await bridge_network.attach(LIAR), await bridge_network.attach(LISTENER)
    assert await heard(liar, listener) == {b"own ip", b"own arp"}


async def test_what_is_forged_teaches_the_bridge_nothing(bridge_network):
    liar, listener = await bridge_network.attach(LIAR), await bridge_network.attach(LISTENER)
    with plugged(liar.tap, listener.tap) as (
        mouth,
        ear,
    ):  # while it has a carrier: without one the bridge forgets
        await overheard(mouth, ear, liar, listener)
        listed = await process.run(["bridge", "fdb", "show", "dev", liar.tap], timeout_s=20)
    shown = listed.stdout.decode()
    assert liar.mac in shown
    assert OTHER_MAC not in shown
    assert f"{listener.mac} " not in shown


async def test_rules_that_were_flushed_come_back_with_those_of_every_tap(bridge_network):
    liar, listener = await bridge_network.attach(LIAR), await bridge_network.attach(LISTENER)
    before = await elements()
    keeping = asyncio.create_task(bridge_network.keep(0.01))
    try:
        await process.run_checked(["nft", "flush", "ruleset"], timeout_s=20)
        async with asyncio.timeout(20):
            while await elements() != before:  # each look is a child process: no busy loop
                assert not keeping.done()
    finally:
        keeping.cancel()
    assert await heard(liar, listener) == {b"own ip", b"own arp"}


async def test_the_next_daemon_holds_the_taps_it_finds_to_the_same(bridge_network, database):
    liar, listener = await bridge_network.attach(LIAR), await bridge_network.attach(LISTENER)
    bridge_network.close()
    following = BridgeNetwork(SETTINGS, database)
    try:
        await following.prepare()
        assert await heard(liar, listener) == {b"own ip", b"own arp"}
        await following.release(LIAR)
        await following.release(LISTENER)
    finally:
        following.close()


async def test_a_taps_rules_go_with_it(bridge_network):
    without = await elements()
    liar = await bridge_network.attach(LIAR)
    assert f'"{liar.tap}" . {liar.mac} . {liar.address}' in await elements()
    await bridge_network.attach(LIAR)
    await bridge_network.detach(LIAR)
    await bridge_network.detach(LIAR)
    assert liar.tap not in await elements()
    await bridge_network.attach(LIAR)
    await bridge_network.release(LIAR)
    assert await elements() == without


async def test_a_kernel_without_nftables_for_bridges_does_without_and_says_so_once(
    database, monkeypatch, tmp_path, caplog
):
    nft = tmp_path / "nft"
    nft.write_text(
        "#!/bin/sh\n"
        "rules=$(cat)\n"
        'case $rules in *"table bridge"*)\n'
        'echo "Error: Could not process rule: Operation not supported" >&2; exit 1;; esac\n'
        f'printf "%s" "$rules" | exec {shutil.which("nft")} "$@"\n'
    )
    nft.chmod(0o755)
    network = BridgeNetwork(SETTINGS, database)
    try:
        with caplog.at_level(logging.WARNING), monkeypatch.context() as without:
            without.setenv("PATH", str(tmp_path), prepend=os.pathsep)
            await network.prepare()
            await network.prepare()
            await network.attach(LIAR)
            await network.release(LIAR)
        assert network.trouble is None
        assert [record.message for record in caplog.records].count(
            "this kernel has no nftables for bridges: a guest can speak in another's name to its neighbours"
        ) == 1
        assert "masquerade" in (await process.run(["nft", "list", "ruleset"], timeout_s=20)).stdout.decode()
    finally:
        network.close()
        await clean()


async def test_a_further_nic_speaks_with_the_mac_that_was_asked_for_and_no_other(bridge_network):
    listener = await bridge_network.attach(LISTENER)
    liar = await bridge_network.attach(LIAR, (), "liar", Endpoint(mac_address="02:00:00:00:00:99"), 3)
    assert await heard(liar, listener) == {b"own ip", b"own arp"}


async def test_a_tap_that_left_its_network_leads_nowhere(bridge_network):
    """Neither to its neighbours nor to the host, which would route for an interface of its own."""
    without = await elements()
    liar, listener = await bridge_network.attach(LIAR), await bridge_network.attach(LISTENER)
    await bridge_network.disconnect(LIAR)
    shown = (await process.run(["ip", "-o", "link", "show", liar.tap], timeout_s=20)).stdout.decode()
    assert "UP" not in shown
    assert "master" not in shown
    assert liar.tap not in await elements()
    with plugged(liar.tap) as (mouth,), pytest.raises(OSError, match="Input/output error"):
        say(mouth, liar, listener)
    await bridge_network.release(LISTENER)
    await process.run_checked(["ip", "link", "del", liar.tap], timeout_s=20)
    assert await elements() == without
