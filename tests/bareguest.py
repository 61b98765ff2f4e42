# SPDX-License-Identifier: Apache-2.0
"""A guest in a bare QEMU: our kernel, our agent, two disks, a NIC, no hyperd. What is saved can be cloned.

    with Bench(directory) as bench:
        source = bench.boot()
        ...
        bench.save(source)
        clone = bench.clone()

RAM is a shared file while the source runs; clones map it privately. Each clone has a copy of the writable disk.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hyperd.guest import AgentDialer, Guest
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerPlan,
    GuestIdentity,
    LayerSource,
    Link,
    ProcessId,
    ProcessPlan,
    Route,
    WritableSource,
)

ASSETS = Path(__file__).parents[1] / "build" / "assets"
KERNEL_WORDS = "console=ttyS0 quiet panic=1 reboot=t no_timer_check tsc=unstable"
MEMORY_MIB = 256
DEADLINE_S = 60.0
BOX = ContainerId("b" * 64)
ENV = ("PATH=/bin",)
COMMANDS = (
    "sh",
    "cat",
    "echo",
    "sleep",
    "hostname",
    "id",
    "touch",
    "date",
    "dd",
    "ip",
    "true",
    "yes",
    "head",
    "grep",
)
PASSWD = "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n"
MASKED = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Qmp:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while "event" in (answer := json.loads(self._lines.readline())):
            continue
        assert "return" in answer, f"{command}: {answer}"
        return answer["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@dataclass
class Machine:
    """One QEMU process."""

    directory: Path
    writable: Path
    tap: str = ""  # its NIC's; "" = it leads nowhere
    mac: str = field(
        default_factory=lambda: ":".join(["52", "54", "00", *(secrets.token_hex(1) for _ in "abc")])
    )

    def start(self, bench: "Bench", *, incoming: bool) -> None:
        self.directory.mkdir()
        argv = [*bench.machine(share=not incoming), *self._devices(bench)]
        if incoming:
            argv += ["-incoming", "defer", "-S"]
        with (self.directory / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=stderr)
        sockets = [self.directory / name for name in ("control", "stream", "qmp")]
        self._until(lambda: all(path.exists() for path in sockets))
        self.qmp = Qmp(self.directory / "qmp")

    def _devices(self, bench: "Bench") -> list[str]:
        argv = []
        for name, path, slot, mode in (
            ("image", bench.image, 5, "on"),
            ("writable", self.writable, 6, "off"),
        ):
            argv += ["-blockdev", f"file,node-name={name},filename={path},read-only={mode}"]
            argv += ["-device", f"virtio-blk-pci-non-transitional,drive={name},serial={name},addr={slot}"]
        wire = f"tap,ifname={self.tap},script=no,downscript=no,vhost=off" if self.tap else "hubport,hubid=0"
        argv += ["-netdev", f"{wire},id=net"]
        argv += ["-device", f"virtio-net-pci-non-transitional,netdev=net,romfile=,mac={self.mac},addr=7"]
        argv += ["-device", "virtio-serial-pci-non-transitional,addr=11"]
        argv += ["-serial", f"file:{self.directory}/console"]
        argv += ["-qmp", f"unix:{self.directory}/qmp,server=on,wait=off"]
        for name in ("control", "stream"):
            argv += ["-chardev", f"socket,id={name},path={self.directory}/{name},server=on,wait=off"]
            argv += ["-device", f"virtserialport,chardev={name},name=hyper.{name}"]
        return argv

    def wait_status(self, wanted: str) -> None:
        self._until(lambda: self.qmp("query-status")["status"] == wanted)

    def wait_saved(self) -> None:
        self._until(lambda: self.qmp("query-migrate")["status"] == "completed")

    def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, (self.directory / "stderr").read_text()
            assert time.monotonic() < deadline, "QEMU takes too long"
            os.sched_yield()

    async def dial(self) -> Guest:
        control, stream = self.directory / "control", self.directory / "stream"
        return await AgentDialer().connect(control, stream, timeout_s=DEADLINE_S, subject="clone")

    def identity(self, **given: Any) -> GuestIdentity:
        link = Link(self.mac, "eth0", ("10.9.0.2/24",), (Route("0.0.0.0/0", "10.9.0.1"),))
        given = {"hostname": "box", "entropy": os.urandom(64), "links": (link,), **given}
        return GuestIdentity(**given)

    def end(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()
        if hasattr(self, "qmp"):
            self.qmp.close()


class Bench:
    """The files of one family of guests, and its machines. Leaves nothing."""

    def __init__(
        self, directory: Path, add: Callable[[Path], None] | None = None, *, image: Path | None = None
    ) -> None:
        """``image``: a file system that is there already; None: busybox's is made, ``add`` puts more into its root."""
        self.directory = directory
        self._add = add
        self.image = image or directory / "image"
        self._is_made = image is not None
        self.writable = directory / "writable"
        self._machines: list[Machine] = []

    def __enter__(self) -> Self:
        if not self._is_made:
            make_image(self.directory / "root", self.image, self._add)
        with self.writable.open("wb") as disk:
            disk.truncate(64 << 20)
        make_ext4(self.writable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self._machines:
            machine.end()

    def machine(self, *, share: bool) -> list[str]:
        memory = f"id=ram,size={MEMORY_MIB}M,mem-path={self.directory}/ram"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35,accel=tcg,memory-backend=ram", "-cpu", "max", "-m", str(MEMORY_MIB)),
            *("-bios", "/usr/share/qemu/qboot.rom", "-append", KERNEL_WORDS),
            *("-kernel", str(ASSETS / "vmlinux"), "-initrd", str(ASSETS / "initramfs.cpio")),
            *("-object", f"memory-backend-file,{memory},share={'on' if share else 'off'}"),
        ]

    def boot(self, tap: str = "") -> Machine:
        return self._start("source", self.writable, incoming=False, tap=tap)

    def save(self, source: Machine) -> None:
        """And ends the source: its RAM file is the clones' from now on."""
        source.qmp("stop")
        _ignore_shared(source)
        source.qmp("migrate", uri=f"file:{self.directory}/state")
        source.wait_saved()
        source.end()
        self._machines.remove(source)

    def clone(self) -> Machine:
        name = f"clone{len(self._machines)}"
        disk = self.directory / f"{name}.disk"
        subprocess.run(["cp", "--sparse=always", str(self.writable), str(disk)], check=True)
        machine = self._start(name, disk, incoming=True)
        _ignore_shared(machine)
        machine.qmp("migrate-incoming", uri=f"file:{self.directory}/state")
        machine.wait_status("paused")
        machine.qmp("cont")
        return machine

    def _start(self, name: str, disk: Path, *, incoming: bool, tap: str = "") -> Machine:
        machine = Machine(self.directory / name, disk, tap)
        self._machines.append(machine)
        machine.start(self, incoming=incoming)
        return machine


def _ignore_shared(machine: Machine) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    machine.qmp("migrate-set-capabilities", capabilities=[capability])


def make_ext4(disk: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)


def make_image(root: Path, image: Path, add: Callable[[Path], None] | None = None) -> None:
    add_busybox(root)
    if add is not None:
        add(root)
    subprocess.run(
        [str(ASSETS / "mkfs.erofs"), "--quiet", str(image), str(root)], check=True, stdout=subprocess.DEVNULL
    )


def add_busybox(root: Path) -> None:
    for directory in ("bin", "proc", "sys", "dev", "etc", "tmp", "run"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    busybox = ASSETS / "busybox"
    shutil.copy(busybox, root / "bin" / "busybox")
    listed = subprocess.run(["ldd", str(busybox)], capture_output=True, text=True, check=False)
    for word in listed.stdout.split():
        if word.startswith("/"):
            (root / word[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, root / word[1:])
    for name in COMMANDS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc" / "passwd").write_text(PASSWD)


def container(script: str, *, container_id: ContainerId = BOX, user: str = "", **given: Any) -> ContainerPlan:
    process = ProcessPlan(("sh", "-c", script), ENV, user=user)
    given = {"readonly_root": False, "masked_paths": MASKED, "readonly_paths": READONLY, **given}
    writable = WritableSource("writable", container_id[:8])
    return ContainerPlan(container_id, (LayerSource("image", 0),), writable, process=process, **given)


async def run(guest: Guest, plan: ContainerPlan) -> None:
    await guest.create_container(plan)
    refused = await guest.start_container(plan.container_id)
    assert refused is None, refused


async def read_all(
    guest: Guest, container_id: ContainerId = BOX, process_id: ProcessId = FIRST_PROCESS
) -> str:
    """All output up to the end of the process."""
    found = b""
    reader = guest.read_output(container_id, process_id, 0)
    async for chunk in reader:
        found += chunk.data
        reader.acknowledge(chunk.end_offset)
    return found.decode()


async def read_until(guest: Guest, text: str, container_id: ContainerId = BOX) -> str:
    found = ""
    async for chunk in guest.read_output(container_id, FIRST_PROCESS, 0):
        found += chunk.data.decode()
        if text in found:
            return found
    raise AssertionError(f"{text!r} did not come, but {found!r}")


async def execute(guest: Guest, script: str, *, user: str = "") -> str:
    process_id = ProcessId(f"exec-{secrets.token_hex(4)}")
    await guest.exec_process(BOX, process_id, ProcessPlan(("sh", "-c", script), ENV, user=user))
    output = await read_all(guest, BOX, process_id)
    await guest.wait_process(BOX, process_id)
    return output
