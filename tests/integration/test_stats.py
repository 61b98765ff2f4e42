# SPDX-License-Identifier: Apache-2.0
"""`hyper stats` of real guests."""

import json
import socket

from tests.harness import Hyper, wait_until

BUSYBOX = "test.local/busybox"
SCRIPT = (
    "dd if=/dev/urandom of=/big bs=1M count=4 2>/dev/null; sync; echo written;"
    " while true; do echo hello | nc -l -p 80; done & while true; do :; done"
)


def stats(host: Hyper, *args: str) -> dict[str, dict[str, str]]:
    """By name."""
    lines = host.ok("stats", "--no-stream", "--format", "json", *args).splitlines()
    return {row["Name"]: row for row in map(json.loads, lines)}


def percent(text: str) -> float:
    return float(text.removesuffix("%"))


def test_a_busy_container_is_seen_as_one_and_a_paused_one_stands_still(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, "-m", "256m", "-p", "8080:80", BUSYBOX, "sh", "-c", SCRIPT)
    wait_until(lambda: "written" in host.ok("logs", name), "it has written")

    def is_asked() -> bool:
        with socket.socket() as client:
            client.settimeout(5)
            return client.connect_ex(("127.0.0.1", 8080)) == 0 and client.recv(10) == b"hello\n"

    wait_until(is_asked, "it answers")
    busy = stats(host, name)[name]
    assert percent(busy["CPUPerc"]) > 5, busy
    assert int(busy["PIDs"]) >= 2, busy
    assert 0 < percent(busy["MemPerc"]) < 100, busy
    assert busy["MemUsage"].endswith(" / 256MiB"), busy
    assert not busy["NetIO"].startswith("0B"), busy
    assert busy["BlockIO"].partition(" / ")[2].endswith("MB"), busy
    assert busy["HostMem"].endswith("MiB"), busy
    assert (busy["RateDroppedIn"], busy["RateDroppedOut"]) == ("0", "0"), busy
    host.ok("pause", name)
    still = stats(host)[name]
    assert percent(still["CPUPerc"]) < 5, still
    assert (still["PIDs"], still["MemUsage"]) == ("--", "-- / 256MiB"), still
    host.ok("unpause", name)
    assert int(stats(host, name)[name]["PIDs"]) >= 2
    host.ok("kill", name)
    host.ok("wait", name)
    assert name not in stats(host)
    assert stats(host, "-a")[name]["CPUPerc"] == "0.00%"
    host.ok("rm", name)
