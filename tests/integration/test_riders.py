# SPDX-License-Identifier: Apache-2.0
"""Real containers in another one's VM: `--network container:ID`."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hyperd.model.vm import HOT_PLUG_DEVICES
from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"
SERVE = "mkdir /www; echo from the carrier > /www/index.html; exec httpd -f -p 80 -h /www"
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


def carrier(host: Hyper, name: str, *flags: str) -> str:
    host.ok("run", "-d", "--name", name, *flags, BUSYBOX, "sh", "-c", SERVE)
    return name


def inspected(host: Hyper, name: str) -> dict[str, Any]:
    (document,) = json.loads(host.ok("inspect", name))
    assert isinstance(document, dict)
    return document


def end_of(host: Hyper, name: str) -> tuple[str, int, str]:
    state = inspected(host, name)["State"]
    return state["Status"], state["ExitCode"], state["Error"]


def has_ended(host: Hyper, name: str, status: str) -> bool:
    return end_of(host, name)[0] == status


def in_guest(host: Hyper, name: str, *command: str) -> str:
    return host.ok("exec", name, *command)


def require_vm_to_itself(host: Hyper, name: str) -> None:
    """Nothing of another is in its VM: else it could not be saved, nor would its copy come up."""
    mounted = in_guest(host, name, "cat", "/proc/partitions")
    assert not [line for line in mounted.splitlines() if line.split()[-1:] and line.split()[-1] >= "vdc"], (
        mounted
    )
    host.ok("pause", name)
    host.ok("unpause", name)


def test_two_containers_have_one_network_and_the_rest_to_themselves(host: Hyper, name: str):
    web, side = carrier(host, name, "--hostname", "www"), f"{name}-side"
    before = len(host.qemu_processes())
    host.ok(
        "run",
        "-d",
        "--network",
        f"container:{web}",
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "--name",
        side,
        BUSYBOX,
        "sleep",
        "600",
    )
    assert len(host.qemu_processes()) == before
    assert in_guest(host, side, "wget", "-q", "-O", "-", "http://localhost/") == "from the carrier"
    for look in (
        ["hostname"],
        ["ip", "-o", "addr"],
        ["cat", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"],
    ):
        assert in_guest(host, side, *look) == in_guest(host, web, *look), look
    in_guest(host, side, "sh", "-c", "echo 192.0.2.1 mine >> /etc/hosts; echo x > /only-here")
    assert "192.0.2.1 mine" in in_guest(host, web, "cat", "/etc/hosts")
    assert host.run("exec", web, "cat", "/only-here").returncode != 0
    assert "httpd" not in in_guest(host, side, "ps")
    assert "sleep" not in in_guest(host, web, "ps")
    assert in_guest(host, side, "cat", "/sys/fs/cgroup/memory.max") == str(64 << 20)
    assert in_guest(host, side, "cat", "/sys/fs/cgroup/cpu.max") == "50000 100000"
    told = inspected(host, side)
    assert told["HostConfig"]["NetworkMode"] == f"container:{inspected(host, web)['Id']}"
    assert told["Config"]["Hostname"] == "www"
    assert told["Start"]["Path"] == "joined"
    assert told["State"]["Pid"] == inspected(host, web)["State"]["Pid"]
    stats = json.loads(host.ok("stats", "--no-stream", "--format", "json", side))
    assert stats["PIDs"] == "1"
    assert stats["MemUsage"].endswith("/ 64MiB")
    assert "64" in host.ok("stats", "--no-stream", "--format", "{{.CPUPerc}} {{.MemUsage}}", side)
    # A network that its carrier joins it has, too.
    host.ok("network", "create", f"{name}-net")
    host.ok("network", "connect", f"{name}-net", web)
    assert in_guest(host, side, "ip", "-o", "addr", "show", "eth1") == in_guest(
        host, web, "ip", "-o", "addr", "show", "eth1"
    )
    assert in_guest(host, side, "cat", "/etc/hosts") == in_guest(host, web, "cat", "/etc/hosts")
    host.ok("network", "disconnect", f"{name}-net", web)
    host.ok("network", "rm", f"{name}-net")
    host.ok("rm", "-f", side)
    require_vm_to_itself(host, web)


def test_a_riders_end_is_its_own_and_its_files_outlast_it(host: Hyper, name: str, tmp_path: Path):
    web, side = carrier(host, name), f"{name}-side"
    ran = host.run(
        "run",
        "--network",
        f"container:{web}",
        "--name",
        side,
        BUSYBOX,
        "sh",
        "-c",
        "echo kept > /f; echo out; exit 7",
    )
    assert (ran.returncode, ran.stdout) == (7, b"out\n")
    assert end_of(host, side) == ("exited", 7, "")
    assert host.ok("logs", side) == "out"
    (tmp_path / "in").write_text("copied\n")
    host.ok("cp", f"{side}:/f", str(tmp_path / "f"))  # in a VM of its own
    assert (tmp_path / "f").read_text() == "kept\n"
    host.ok("cp", str(tmp_path / "in"), f"{side}:/in")
    assert "A /f" in host.ok("diff", side).splitlines()
    assert host.run("start", "-a", side).returncode == 7
    host.ok("rm", side)
    # And while one runs, in its carrier's.
    host.ok("run", "-d", "--network", f"container:{web}", "--name", side, BUSYBOX, "sleep", "600")
    host.ok("cp", str(tmp_path / "in"), f"{side}:/in")
    assert in_guest(host, side, "cat", "/in") == "copied"
    host.ok("commit", side, f"{name}:1")
    assert host.ok("run", "--rm", f"{name}:1", "cat", "/in") == "copied"
    assert (
        host.ok(
            "run",
            "--rm",
            "--network",
            f"container:{side}",
            f"{name}:1",
            "wget",
            "-q",
            "-O",
            "-",
            "http://localhost/",
        )
        == "from the carrier"
    )
    host.ok("stop", "-t", "1", side)
    host.ok("rm", side)
    host.ok("rmi", f"{name}:1")
    require_vm_to_itself(host, web)
    host.ok("snapshot", "create", web, "--name", f"{name}-s", timeout_s=120)
    host.ok("run", "-d", "--from-snapshot", f"{name}-s", "--name", f"{name}-clone", timeout_s=120)
    assert in_guest(host, f"{name}-clone", "wget", "-q", "-O", "-", "http://localhost/") == "from the carrier"
    host.ok("rm", "-f", f"{name}-clone")
    host.ok("snapshot", "rm", f"{name}-s")


@pytest.mark.parametrize("way", ["stop", "exit", "rm", "kill -9"])
def test_riders_end_with_their_carrier_and_say_so(host: Hyper, name: str, way: str):
    web = carrier(host, name)
    sides = [f"{name}-{number}" for number in range(2)]
    for side in sides:
        host.ok(
            "run",
            "-d",
            "--network",
            f"container:{web}",
            "--name",
            side,
            BUSYBOX,
            "sh",
            "-c",
            "trap '' TERM; echo begun; echo x > /f; sleep 600",
        )
    wait_until(lambda: all(host.ok("logs", side) == "begun" for side in sides), "both say so")
    with subprocess.Popen(host.argv("wait", sides[0]), stdout=subprocess.PIPE) as waiting:
        match way:
            case "stop":
                host.ok("stop", "-t", "1", web)
            case "exit":
                host.ok("kill", web)
                host.ok("wait", web)
            case "rm":
                host.ok("rm", "-f", web)
            case _:
                os.kill(inspected(host, web)["State"]["Pid"], signal.SIGKILL)
        told, _ = waiting.communicate(timeout=60)
    lost = way == "kill -9"
    assert told.decode().strip() == ("125" if lost else "137")
    for side in sides:
        wait_until(partial(has_ended, host, side, "failed" if lost else "exited"), "it has ended")
        _, code, why = end_of(host, side)
        assert code == (125 if lost else 137)
        assert f"container {web}" in why
        assert host.ok("logs", side) == "begun"
    refused = host.run("start", sides[0])
    assert refused.returncode != 0
    assert (
        b"No such container" if way == "rm" else b"cannot join network of a non running container"
    ) in refused.stderr
    if way in ("stop", "exit"):
        host.ok("start", web)
        host.ok("start", sides[0])
        assert in_guest(host, sides[0], "cat", "/f") == "x"


def test_what_is_of_the_whole_vm_is_refused_and_a_full_one_says_so(host: Hyper, name: str):
    web = carrier(host, name)
    sides = [f"{name}-{number}" for number in range(HOT_PLUG_DEVICES // 2)]
    for side in sides:
        host.ok("run", "-d", "--network", f"container:{web}", "--name", side, BUSYBOX, "sleep", "600")
    one_more = host.run("run", "--rm", "--network", f"container:{web}", BUSYBOX, "true")
    assert one_more.returncode == 125
    assert b"8 are taken, and it needs 2" in one_more.stderr
    for command in (["pause"], ["hibernate"], ["snapshot", "create"], ["fork"]):
        for target, why in ((web, b"has others in its VM"), (sides[0], b"runs in the VM of container")):
            refused = host.run(*command, target)
            assert refused.returncode != 0
            assert why in refused.stderr, (command, target, refused.stderr)
    joined = host.run("network", "connect", "bridge", sides[0])
    assert b"cannot be connected to any other network" in joined.stderr
    ported = host.run("run", "-p", "80", "--network", f"container:{web}", BUSYBOX, "true")
    assert b"conflicting options: port publishing and the container type network mode" in ported.stderr
    host.ok("rm", "-f", *sides)
    require_vm_to_itself(host, web)


@pytest.fixture
def own(layouts: Path) -> Iterator[Hyper]:
    """A daemon that the test may kill."""
    with hyper(accel="auto") as host:
        host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)
        yield host
        host.clear()
        host.require_no_leaks()


def test_a_killed_daemon_finds_riders_again_and_loses_nothing_of_theirs(own: Hyper):
    web = carrier(own, "web")
    own.ok("run", "-d", "--network", "container:web", "--name", "side", BUSYBOX, "sh", "-c", COUNT)
    own.ok(
        "run",
        "-d",
        "--network",
        "container:web",
        "--name",
        "brief",
        BUSYBOX,
        "sh",
        "-c",
        "sleep 3; echo over; exit 5",
    )
    wait_until(lambda: "10" in own.ok("logs", "side").split(), "output before the kill")
    own.kill_daemon()
    own.start()
    assert in_guest(own, "side", "wget", "-q", "-O", "-", "http://localhost/") == "from the carrier"
    assert own.ok("wait", "brief") == "5"
    assert own.ok("logs", "brief") == "over"
    last = int(own.ok("logs", "--tail", "1", "side"))
    wait_until(lambda: int(own.ok("logs", "--tail", "1", "side")) > last, "output after the restart")
    own.ok("stop", "-t", "1", "side")
    numbers = [int(line) for line in own.ok("logs", "side").split()]
    assert numbers == list(range(1, len(numbers) + 1)), "a line is missing or came twice"
    require_vm_to_itself(own, web)
    # The VM goes while nobody looks.
    own.ok("start", "side")
    own.kill_daemon()
    os.kill(next(iter(own.qemu_processes())), signal.SIGKILL)
    own.start()
    assert own.ok("wait", "side") == "125"
    assert end_of(own, "side")[0] == "failed"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", ["start", "stop"])
def test_hyperd_killed_at_any_moment_of_a_riders_coming_and_going_leaves_nothing(own: Hyper, call: str):
    web, lot = carrier(own, "web"), random.Random(call)
    own.ok("create", "--network", "container:web", "--name", "side", BUSYBOX, "sleep", "600")
    for _ in range(4):
        if call == "stop":
            own.ok("start", "side")
        moment = lot.random() * 2.0
        with subprocess.Popen(
            own.argv(call, *(["-t", "0"] if call == "stop" else []), "side"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as calling:  # fmt: skip
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun >= moment, "the moment")  # noqa: B023
            own.kill_daemon()
            calling.wait(60)
        own.start()
        wait_until(
            lambda: inspected(own, "side")["State"]["Status"] not in ("starting", "stopping"),
            "it is at rest, or runs",
        )
        status = inspected(own, "side")["State"]["Status"]
        assert status in ("created", "running", "failed", "exited")
        if status == "running":
            assert in_guest(own, "side", "hostname") == in_guest(own, web, "hostname")
            own.ok("stop", "-t", "0", "side")
        require_vm_to_itself(own, web)
        assert own.ok("diff", "side") is not None  # its disk is nobody else's


def open_files(pid: int) -> list[Path]:
    return [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


class Monitor:
    """QEMU's own, while no hyperd holds it."""

    def __init__(self, host: Hyper) -> None:
        (path,) = (host.state_dir / "libvirt").rglob("monitor.sock")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> None:
        request = json.dumps({"execute": command, "arguments": arguments})
        self._socket.sendall(request.encode())
        for line in self._lines:
            answer = json.loads(line)
            assert "error" not in answer, answer
            if "return" in answer:
                return

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("at", ["the device", "the file"])
def test_a_disk_of_which_hyperd_was_killed_before_libvirt_knew_it_is_taken_out(own: Hyper, at: str):
    web = carrier(own, "web")
    disk = own.home / "stray.img"
    disk.write_bytes(bytes(1 << 20))
    disk.chmod(0o666)
    own.kill_daemon()
    with contextlib.closing(Monitor(own)) as qemu:
        named = {"node-name": "libvirt-90-storage"}
        qemu.ask("blockdev-add", driver="file", filename=str(disk), **named)
        if at == "the device":
            port = f"pci.{HOT_PLUG_DEVICES}"
            qemu.ask(
                "device_add",
                driver="virtio-blk-pci-non-transitional",
                id="virtio-disk9",
                bus=port,
                drive=named["node-name"],
            )
    (pid,) = own.qemu_processes()
    assert disk in open_files(pid)
    own.start()
    require_vm_to_itself(own, web)
    assert disk not in open_files(pid)
    own.ok("run", "--rm", "--network", "container:web", BUSYBOX, "true")
