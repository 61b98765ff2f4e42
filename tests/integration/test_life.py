# SPDX-License-Identifier: Apache-2.0
"""Detached containers: exec, logs, stop, start again, remove."""

import json
import subprocess
import time
from pathlib import Path

from tests.harness import Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
TICKS = "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.2; done"


def test_a_detached_container_lives_through_its_whole_life(host: Hyper, name: str):
    container_id = host.ok("run", "-d", "--name", name, BUSYBOX, "sh", "-c", TICKS)
    assert len(container_id) == 64
    assert name in host.ok("ps")
    wait_until(lambda: "tick 3" in host.ok("logs", name), "three ticks in the log")
    assert host.ok("exec", name, "hostname") == container_id[:12]
    assert host.run("exec", name, "sh", "-c", "exit 9").returncode == 9
    refused = host.run("exec", "-w", "/absent", name, "pwd")
    assert (refused.returncode, b'chdir to cwd ("/absent")' in refused.stderr) == (127, True)
    assert host.run("exec", name, "ls", "-d", "/absent").returncode == 1
    host.ok("stop", "-t", "1", name)
    shown = json.loads(host.ok("inspect", name))[0]
    state, start = shown["State"], shown["Start"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("exited", 137, False)
    assert start["Path"] in ("spare", "template")
    assert start["Note"] == ""
    assert [phase["Name"] for phase in start["Phases"]][-1] == "start"
    assert name not in host.ok("ps")
    assert name in host.ok("ps", "-a")
    host.ok("rm", name)
    assert name not in host.ok("ps", "-a")


def test_what_a_container_wrote_is_there_when_it_starts_again(host: Hyper, name: str):
    host.ok("run", "--name", name, BUSYBOX, "sh", "-c", "cat /kept; echo once >> /kept")
    host.ok("start", name)
    assert host.ok("wait", name) == "0"
    assert host.ok("start", "-a", name) == "once\nonce"
    assert host.ok("logs", name).splitlines()[-2:] == ["once", "once"]


def test_stop_sends_the_signal_that_was_asked_for(host: Hyper, name: str):
    script = "trap 'echo caught; exit 3' USR1; echo ready; while true; do sleep 0.1; done"
    host.ok("run", "-d", "--name", name, "--stop-signal", "USR1", BUSYBOX, "sh", "-c", script)
    wait_until(lambda: "ready" in host.ok("logs", name), "the trap is set")
    host.ok("stop", name)
    assert host.ok("wait", name) == "3"
    assert "caught" in host.ok("logs", name)


def test_files_stream_through_exec_both_ways(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    data = bytes(range(256)) * 8192
    host.ok("exec", "-i", name, "sh", "-c", "cat > /data", stdin=data)
    assert host.run("exec", name, "cat", "/data").stdout == data


def test_logs_follow_until_the_end(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sh", "-c", "echo a; sleep 1; echo b >&2; sleep 1; echo c")
    finished = host.run("logs", "-f", name)
    assert (finished.stdout, finished.stderr) == (b"a\nc\n", b"b\n")
    assert host.ok("logs", "--tail", "1", name) == "c"


def test_attach_joins_a_running_container(host: Hyper, name: str):
    host.ok("run", "-d", "-i", "--name", name, BUSYBOX, "sh", "-c", "read line; echo heard $line")
    finished = host.run("attach", name, stdin=b"hello\n")
    assert finished.stdout == b"heard hello\n"


def test_a_hundred_megabytes_of_output_arrive_whole(host: Hyper):
    finished = host.run("run", "--rm", BUSYBOX, "head", "-c", "100000000", "/dev/zero", timeout_s=240)
    assert len(finished.stdout) == 100_000_000
    assert not finished.stdout.strip(b"\0")


def test_an_exec_ends_with_its_process_and_leaves_its_child_running(host: Hyper, name: str):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    began = time.monotonic()
    assert host.ok("exec", name, "sh", "-c", "sleep 600 & echo started; exit 0") == "started"
    assert host.run("exec", name, "sh", "-c", "sleep 601 & exit 7").returncode == 7
    assert time.monotonic() - began < 30
    assert host.ok("exec", name, "sh", "-c", "ps | grep -c '[s]leep 60'") == "2"


def test_without_a_network_hyperd_starts_and_says_so(layouts: Path):
    subprocess.run(["ip", "link", "add", "vpn0", "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", "vpn0", "up"], check=True)
        subprocess.run(["ip", "route", "add", "10.99.7.0/24", "dev", "vpn0"], check=True)
        with hyper(settings={"network.subnet": "10.99.0.0/16", "network.bridge": "hyper9"}) as own:
            own.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
            assert own.ok("run", "--rm", "--network", "none", BUSYBOX, "echo", "alone") == "alone"
            refused = own.run("run", "--rm", BUSYBOX, "true")
            assert refused.returncode == 125
            assert b"vpn0" in refused.stderr
            assert "vpn0" in own.ok("info")
            assert "vpn0" in own.run("doctor").stdout.decode()
            subprocess.run(["ip", "link", "del", "vpn0"], check=True)
            assert own.ok("run", "--rm", BUSYBOX, "echo", "again") == "again"
            assert "vpn0" not in own.ok("info")
            own.require_no_leaks()
    finally:
        subprocess.run(["ip", "link", "del", "vpn0"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", "hyper9"], check=False, capture_output=True)
