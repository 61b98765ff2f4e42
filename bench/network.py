# SPDX-License-Identifier: Apache-2.0
"""Throughput and round trips of guests' TCP, beside bare QEMU guests on a plain bridge; and what published ports add.

The servers are Debian's nginx and iperf3, of an image for tests, on both sides. From the host asks this process. Ours
and the floor take turns, in short runs: how busy the machine is hits both. What a clock says of a transfer is also said
in CPU time of the QEMU that serves it, which others take nothing of.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path

from bench.cpu import cpu_ms_of
from bench.measure import Aim, CannotMeasureError, Result, interleaved, summarize
from bench.stage import Stage
from hyperd.guest import Guest
from hyperd.host.database import Database
from hyperd.model.guest import Link, Route
from hyperd.model.network import PortRequest
from hyperd.model.vm import SandboxId
from hyperd.network import BridgeNetwork, BridgeSettings
from tests import bareguest
from tests.harness import Hyper
from tests.images import ROOT

IMAGE = "test.local/servers"
ARCHIVE = ROOT / "build/assets/servers.tar"
SCRATCH = "/var/tmp"
BIG_MIB = 16
READY = "served"
SERVE = rf"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /tmp/www; truncate -s {BIG_MIB}M /tmp/www/big; echo hello > /tmp/www/small
cat > /tmp/nginx.conf <<EOF
user root; pid /tmp/nginx.pid; error_log /tmp/error.log; events {{}}
http {{ access_log off; server {{ listen 80; root /tmp/www; keepalive_requests 100000; }} }}
EOF
iperf3 -s -D; nginx -c /tmp/nginx.conf && echo {READY}; exec sleep 100000
"""
FASTER = Aim(ratio=1.1)  # of times: a tenth more than the floor's
DEADLINE_S = 120.0
IPERF_S = 2
_BRIDGE, _SUBNET = "benchbr", IPv4Network("10.218.0.0/24")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two guests, of which the first serves; ``ask``: a script in the second, and what it says."""

    address: str
    ask: Callable[[str], str]
    pid: int  # of the QEMU that serves

    def cpu_ms(self, work: Callable[[], object]) -> float:
        """That its QEMU takes meanwhile, in the kernel and out of it, per MiB."""
        before = cpu_ms_of([self.pid])
        work()
        return (cpu_ms_of([self.pid]) - before) / BIG_MIB

    def to_host_ms(self) -> float:
        """The large file, read by the host."""
        connection = http.client.HTTPConnection(self.address, timeout=DEADLINE_S)
        began = time.monotonic()
        connection.request("GET", "/big")
        response, size = connection.getresponse(), 0
        while part := response.read(1 << 20):
            size += len(part)
        took = (time.monotonic() - began) * 1000
        connection.close()
        if size != BIG_MIB << 20:
            raise RuntimeError(f"{size} bytes of {BIG_MIB} MiB")
        return took

    def between_ms(self) -> float:
        """As long as ``BIG_MIB`` take from the second guest to the first, at the rate that iperf3 tells."""
        told = json.loads(self.ask(f"iperf3 -c {self.address} -t {IPERF_S} -J"))
        return (BIG_MIB << 20) * 8 / float(told["end"]["sum_received"]["bits_per_second"]) * 1000

    def round_trips_ms(self, count: int) -> float:
        """One, of so many over one connection."""
        connection = http.client.HTTPConnection(self.address, timeout=DEADLINE_S)
        connection.connect()
        began = time.monotonic()
        for _ in range(count):
            self._get(connection)
        took = (time.monotonic() - began) * 1000
        connection.close()
        return took / count

    def connections_ms(self, count: int) -> float:
        """One request over a connection of its own, of so many, one after the other."""
        began = time.monotonic()
        for _ in range(count):
            connection = http.client.HTTPConnection(self.address, timeout=DEADLINE_S)
            self._get(connection)
            connection.close()
        return (time.monotonic() - began) * 1000 / count

    @staticmethod
    def _get(connection: http.client.HTTPConnection) -> None:
        connection.request("GET", "/small")
        if connection.getresponse().read() != b"hello\n":
            raise RuntimeError("not what was asked for")


def traffic(stage: Stage) -> list[Result]:
    if stage.accelerator != "tcg":
        raise CannotMeasureError("the floor's guests are emulated ones")
    with ExitStack() as stack:
        ours, floor = stack.enter_context(_ours(stage)), stack.enter_context(_bare())
        runs = stage.runs(10)
        measured: list[tuple[str, Callable[[Pair], float]]] = [
            (f"guest to host, {BIG_MIB} MiB by HTTP", Pair.to_host_ms),
            ("guest to host, CPU of its QEMU for a MiB", lambda pair: pair.cpu_ms(pair.to_host_ms)),
            (f"guest to guest, {BIG_MIB} MiB by iperf3", Pair.between_ms),
            ("request over a connection that stays", lambda pair: pair.round_trips_ms(200)),
            ("request over a connection of its own", lambda pair: pair.connections_ms(100)),
        ]
        return [
            _compared(title, measure, ours, floor, runs if "iperf3" in title else 2 * runs)
            for title, measure in measured
        ]


def _compared(title: str, measure: Callable[[Pair], float], ours: Pair, floor: Pair, runs: int) -> Result:
    mine, bare = interleaved(runs, lambda: measure(ours), lambda: measure(floor))
    note = f"{BIG_MIB * 1000 / sorted(mine)[len(mine) // 2]:.0f} MiB/s" if f"{BIG_MIB} MiB" in title else ""
    return summarize(title, "ms", mine, floor=bare, aim=FASTER, note=note)


def attaches(stage: Stage) -> list[Result]:
    """Of a sandbox to its network, in this process, with nothing published and with three ports."""
    return asyncio.run(_attaches(stage.runs(50)))


async def _attaches(count: int) -> list[Result]:
    settings = BridgeSettings(tap_owner_uid=65534, bridge="benchnet", subnet=IPv4Network("10.217.0.0/24"))
    ports = [PortRequest(80 + number) for number in range(3)]
    took: dict[int, list[float]] = {0: [], 3: []}
    with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
        database = Database(Path(directory) / "records.sqlite")
        await database.open()
        network = BridgeNetwork(replace(settings, lock_dir=Path(directory)), database)
        try:
            await network.prepare()
            for _, many in itertools.product(range(count), took):
                sandbox_id = SandboxId(secrets.token_hex(32))
                began = time.monotonic()
                await network.attach(sandbox_id, ports[:many], "bench")
                took[many].append((time.monotonic() - began) * 1000)
                await network.release(sandbox_id)
            await network.remove()
        finally:
            network.close()
            await database.close()
    plain, published = took[0], took[3]
    return [
        summarize("attach of a sandbox to its network", "ms", plain),
        summarize("attach with three published ports", "ms", published, floor=plain, aim=Aim(above=5.0)),
    ]


@contextlib.contextmanager
def _ours(stage: Stage) -> Iterator[Pair]:
    """On a network of their own, as users have several."""
    host, name = stage.host, f"bench-{secrets.token_hex(4)}"
    host.ok("import", str(ARCHIVE), IMAGE, timeout_s=300)
    host.ok("network", "create", name)
    try:
        for each, script in ((f"{name}-a", SERVE), (f"{name}-b", "exec sleep 100000")):
            host.ok("run", "-d", "--name", each, "--network", name, IMAGE, "/bin/sh", "-c", script)
        address = host.ok(
            "inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{name}").IPAddress}}}}', f"{name}-a"
        )

        def ask(script: str) -> str:
            return host.ok("exec", f"{name}-b", "/bin/sh", "-c", script, timeout_s=DEADLINE_S)

        _wait_served(host, f"{name}-a")
        yield Pair(address, ask, int(host.ok("inspect", "-f", "{{.State.Pid}}", f"{name}-a")))
    finally:
        host.run("rm", "-f", f"{name}-a", f"{name}-b")
        host.ok("network", "rm", name)


def _wait_served(host: Hyper, name: str) -> None:
    """Until its log says so. Raises CannotMeasureError."""
    with subprocess.Popen(host.argv("logs", "-f", name), stdout=subprocess.PIPE) as log:
        giving_up = threading.Timer(DEADLINE_S, log.kill)
        giving_up.start()
        try:
            assert log.stdout is not None
            if not any(READY in line.decode() for line in log.stdout):
                raise CannotMeasureError(f"nothing answers in {name}")
        finally:
            giving_up.cancel()
            log.kill()


@contextlib.contextmanager
def _bare() -> Iterator[Pair]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=SCRATCH)))
        image = directory / "image"
        mkfs = str(bareguest.ASSETS / "mkfs.erofs")
        _run(mkfs, "--quiet", "--tar=f", str(image), str(ARCHIVE))
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        stack.callback(_run, "ip", "link", "del", _BRIDGE)
        _run("ip", "addr", "add", f"{_SUBNET[1]}/{_SUBNET.prefixlen}", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        guests, pids = [], []
        for number, script in enumerate((SERVE, "exec sleep 100000")):
            tap, place = f"benchtap{number}", directory / str(number)
            _run("ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr")
            stack.callback(_run, "ip", "link", "del", tap)
            _run("ip", "link", "set", tap, "master", _BRIDGE, "up")
            place.mkdir()
            machine = stack.enter_context(bareguest.Bench(place, image=image)).boot(tap)
            address = str(_SUBNET[2 + number])
            link = Link(machine.mac, "eth0", (f"{address}/24",), (Route("0.0.0.0/0", str(_SUBNET[1])),))
            guest = loop.run_until_complete(_served(machine, link, script))
            stack.callback(lambda guest=guest: loop.run_until_complete(guest.close()))  # type: ignore[misc]
            guests.append(guest)
            pids.append(machine.process.pid)
        loop.run_until_complete(asyncio.wait_for(bareguest.read_until(guests[0], READY), DEADLINE_S))

        def ask(script: str) -> str:
            path = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin; "
            return loop.run_until_complete(bareguest.execute(guests[1], path + script))

        yield Pair(str(_SUBNET[2]), ask, pids[0])


async def _served(machine: bareguest.Machine, link: Link, script: str) -> Guest:
    guest = await machine.dial()
    await guest.configure(machine.identity(links=(link,)))
    await bareguest.run(guest, bareguest.container(script))
    return guest


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
