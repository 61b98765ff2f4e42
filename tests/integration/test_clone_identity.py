# SPDX-License-Identifier: Apache-2.0
"""Clones of one template, and spares, share nothing that should be one's own, and what cannot be given is not run
without.

HYPER_CLONES=200 asks for more of them than a suite has time for: 8 are what every run does, in waves of 8.
"""

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
CLONES = int(os.environ.get("HYPER_CLONES", "8"))
WAVE = 8
pytestmark = pytest.mark.timeout(300 + 15 * (CLONES - 8))  # the fixture makes them all
TOLERANCE_S = 0.05
TICK_S = 0.004  # a file's time is that of the guest's last tick
MEMORY = "128m"

# `date` of busybox knows seconds only: a file's time is finer.
SCRIPT = r"""
echo uptime $(cut -d' ' -f1 /proc/uptime)
echo random $(head -c 32 /dev/urandom | hexdump -ve '1/1 "%02x"')
echo uuid $(cat /proc/sys/kernel/random/uuid)
echo boot_id $(cat /proc/sys/kernel/random/boot_id)
echo machine_id $(cat /etc/machine-id)
echo hostname $(hostname)
echo mac $(cat /sys/class/net/eth0/address)
echo addresses $(ip -o addr | sed -E 's/.* inet6? ([^ ]+) .*/\1/')
echo routes $(ip route | tr '\n' ';')
echo later $(cut -d' ' -f1 /proc/uptime)
echo end
exec sleep 1000
"""
CLOCK = "touch /tick && stat -c %y /tick"


@pytest.fixture(scope="module")
def born(layouts: Path) -> Iterator[Hyper]:
    """A daemon with a template for what the tests here start."""
    with hyper(accel="auto") as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        host.ok("template", "build", "-m", MEMORY, timeout_s=200)
        yield host
        host.clear()
        host.require_no_leaks()


@pytest.fixture(scope="module")
def sparing(layouts: Path) -> Iterator[Hyper]:
    """A daemon with as many spares as are started at once."""
    with hyper(accel="auto", settings={"template.spares": str(WAVE), "vm.memory_overcommit": "4"}) as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        host.ok("template", "build", "-m", MEMORY, timeout_s=200)
        for _ in range(2):  # asked for twice in a row: from now on they are of this size
            host.ok("rm", host.ok("create", "-m", MEMORY, BUSYBOX))
        yield host
        host.require_no_leaks()


@dataclass(frozen=True)
class Clone:
    facts: dict[str, str]
    start: dict[str, object]
    address: str
    mac: str


def start_of(host: Hyper, name: str) -> dict[str, object]:
    start: dict[str, object] = json.loads(host.ok("inspect", name))[0]["Start"]
    return start


def make(host: Hyper) -> Clone:
    name = f"clone-{secrets.token_hex(6)}"
    host.ok("run", "-d", "--name", name, "-m", MEMORY, BUSYBOX, "sh", "-c", SCRIPT, timeout_s=200)
    try:
        wait_until(lambda: "\nend" in host.ok("logs", name), "the clone has told what it is", timeout_s=200)
        lines = host.ok("logs", name).splitlines()
        shown = json.loads(host.ok("inspect", name))[0]
    finally:
        host.ok("rm", "-f", name)
    facts = dict(line.split(" ", 1) for line in lines if " " in line)
    settings = shown["NetworkSettings"]
    return Clone(facts, shown["Start"], settings["IPAddress"], settings["MacAddress"])


@pytest.fixture(scope="module", params=["template", "spare"])
def clones(request: pytest.FixtureRequest) -> list[Clone]:
    host: Hyper = request.getfixturevalue("born" if request.param == "template" else "sparing")
    made: list[Clone] = []
    with ThreadPoolExecutor(WAVE) as pool:
        while len(made) < CLONES:
            wave = min(WAVE, CLONES - len(made))
            if request.param == "spare":
                host.wait_for_spare(wave)
            made += pool.map(lambda _: make(host), range(wave))
    assert [(clone.start["Path"], clone.start["Note"]) for clone in made] == [(request.param, "")] * CLONES
    return made


@pytest.mark.parametrize("what", ["random", "uuid", "boot_id", "machine_id", "hostname"])
def test_no_two_have_the_same(clones: list[Clone], what: str):
    values = [clone.facts[what] for clone in clones]
    assert all(values)
    assert len(set(values)) == CLONES
    if what == "random":
        assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in values)


def test_those_that_run_at_once_have_addresses_of_their_own_and_no_other(clones: list[Clone]):
    for at in range(0, CLONES, WAVE):
        wave = clones[at : at + WAVE]
        assert len({clone.mac for clone in wave}) == len({clone.address for clone in wave}) == len(wave)
    for clone in clones:
        assert clone.facts["mac"] == clone.mac
        addresses = clone.facts["addresses"].split()
        own = {f"{clone.address}/24", "127.0.0.1/8", "::1/128", link_local(clone.mac)}
        assert {f"{clone.address}/24", "127.0.0.1/8"} <= set(addresses) <= own
        assert "default via" in clone.facts["routes"]


def link_local(mac: str) -> str:
    """RFC 4291, appendix A: of this MAC and no other."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2
    numbers = [*octets[:3], 0xFF, 0xFE, *octets[3:]]
    groups = [f"{numbers[at] << 8 | numbers[at + 1]:x}" for at in range(0, 8, 2)]
    return f"fe80::{':'.join(groups)}/64"


def test_monotonic_time_goes_on_and_forwards(clones: list[Clone]):
    for clone in clones:
        assert 0 < float(clone.facts["uptime"]) <= float(clone.facts["later"]) < 600


@pytest.mark.parametrize("path", ["template", "spare"])
def test_the_wall_clock_is_the_host_s(request: pytest.FixtureRequest, path: str):
    born: Hyper = request.getfixturevalue("born" if path == "template" else "sparing")
    name = f"clock-{secrets.token_hex(4)}"
    if path == "spare":
        born.wait_for_spare()
    born.ok("run", "-d", "--name", name, "-m", MEMORY, BUSYBOX, "sleep", "1000", timeout_s=200)
    try:
        assert start_of(born, name)["Path"] == path
        before = time.time()
        told = born.ok("exec", "-e", "TZ=UTC0", name, "sh", "-c", CLOCK)
        after = time.time()
    finally:
        born.ok("rm", "-f", name)
    found = re.fullmatch(r"(\S+ \S+?)(\.\d+)( \+0000)?", told)
    assert found, told
    seconds = subprocess.run(["date", "-ud", found[1], "+%s"], capture_output=True, check=True).stdout
    assert before - TOLERANCE_S - TICK_S <= int(seconds) + float(found[2]) <= after + TOLERANCE_S


@pytest.mark.parametrize("damage", ["truncated", "edited", "removed"])
def test_a_damaged_template_is_not_used_and_the_start_boots(born: Hyper, damage: str):
    born.ok("template", "build", "-m", MEMORY, timeout_s=200)
    for state in (born.state_dir / "snapshots").glob("*/*/state"):
        if damage == "removed":
            state.unlink()
            continue
        state.chmod(0o600)
        with state.open("r+b") as file:
            if damage == "truncated":
                file.truncate(state.stat().st_size // 2)
            else:
                file.seek(state.stat().st_size // 2)
                file.write(b"\xff" * 512)
    name = f"damaged-{damage}-{secrets.token_hex(4)}"
    born.ok("run", "-d", "--name", name, "-m", MEMORY, BUSYBOX, "sleep", "1000", timeout_s=200)
    start = start_of(born, name)
    assert start["Path"] == "cold"
    assert "damaged and is removed" in str(start["Note"])
    assert "state" in str(start["Note"])
    born.ok("rm", "-f", name)
    born.ok("template", "build", "-m", MEMORY, timeout_s=200)  # made anew, by that start or by this
    born.ok("run", "-d", "--name", name, "-m", MEMORY, BUSYBOX, "sleep", "1000", timeout_s=200)
    assert start_of(born, name)["Path"] == "template"
    born.ok("rm", "-f", name)
