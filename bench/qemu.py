# SPDX-License-Identifier: Apache-2.0
"""A bare QEMU command line: no libvirt, no daemon. Our kernel and agent on the machine that hyperd makes.

Its sockets listen before it starts and are handed to it, so that nothing has to be polled for.
"""

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperd.errors import HyperError
from hyperd.guest import AgentDialer, Guest
from hyperd.model.vm import HOT_PLUG_DEVICES
from hyperd.settings import GUEST_CMDLINE

ASSETS = Path(__file__).resolve().parent.parent / "build/assets"
PLACE = "/var/tmp"  # where the benchmarks' hyperd keeps its files too
DEADLINE_S = 60.0
UNLIMITED_BYTES_S = 1 << 40
SOCKETS = ("control", "stream", "monitor")


@dataclass(frozen=True, slots=True)
class Machine:
    """What hyperd/vm/libvirt/xml.py renders, with disks that have nothing on them and a NIC on nothing."""

    accelerator: str
    memory_mib: int = 256
    ram: Path | None = None  # the guest's RAM as a file
    ram_shared: bool = False  # written to, as a template's while it is made
    incoming: bool = False  # waits for a saved state
    free_page_reporting: bool = True
    contents: Path | None = None  # what is in the RAM from CONTENTS_AT on, whatever the guest does

    def argv(self, directory: Path, fds: dict[str, int]) -> list[str]:
        cpu = "host" if self.accelerator == "kvm" else "max"
        reporting = ",free-page-reporting=on" if self.free_page_reporting else ""
        backend = f"memory-backend-ram,id=ram,size={self.memory_mib}M"
        if self.ram is not None:
            sharing = "share=on" if self.ram_shared else "share=off,readonly=on,rom=off"
            backend = f"memory-backend-file,id=ram,size={self.memory_mib}M,mem-path={self.ram},{sharing}"
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-object", backend, "-machine", f"q35,accel={self.accelerator},memory-backend=ram,hpet=off", "-cpu", cpu,
            "-m", str(self.memory_mib), "-smp", "1", "-bios", "/usr/share/qemu/qboot.rom",
            "-kernel", str(ASSETS / "vmlinux"), "-initrd", str(ASSETS / "initramfs.cpio"),
            "-append", GUEST_CMDLINE + (" tsc=unstable" if self.accelerator == "tcg" else ""),
            *(word for port in range(HOT_PLUG_DEVICES) for word in ("-device", _root_port(port))),
            "-blockdev", f"file,node-name=image,read-only=on,filename={directory / 'image'}",
            "-device", "virtio-blk-pci-non-transitional,drive=image",
            "-blockdev", f"file,node-name=writable,read-only=off,filename={directory / 'writable'}",
            "-device", "virtio-blk-pci-non-transitional,drive=writable",
            "-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci-non-transitional,netdev=net,romfile=",
            "-device", f"virtio-balloon-pci-non-transitional,deflate-on-oom=on{reporting}",
            "-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci-non-transitional,rng=rng",
            "-device", "pvpanic-pci", "-device", "virtio-serial-pci-non-transitional", "-serial", "null",
            *(word for name in SOCKETS for word in (
                "-chardev", f"socket,id={name},fd={fds[name]},server=on,wait=off")),
            "-device", "virtserialport,chardev=control,name=hyper.control",
            "-device", "virtserialport,chardev=stream,name=hyper.stream",
            "-mon", "chardev=monitor,mode=control",
        ]  # fmt: skip
        if self.contents is not None:
            argv += ["-device", f"loader,file={self.contents},addr={CONTENTS_AT:#x},force-raw=on"]
        return [*argv, "-incoming", "defer"] if self.incoming else argv


def _root_port(number: int) -> str:
    return (
        f"pcie-root-port,id=p{number},chassis={number + 1},slot={number + 1},addr=1.{number},multifunction=on"
    )


CONTENTS_AT = 96 << 20  # above the kernel, below the initramfs: free pages, which stay as they are


class Monitor:
    """As much QMP as the floors need."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def command(self, name: str, **arguments: Any) -> Any:
        self._writer.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = await self._answer(name)
            if "error" in answer:
                raise RuntimeError(f"QEMU refuses {name}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    async def enable(self, *capabilities: str) -> None:
        wanted = [{"capability": name, "state": True} for name in capabilities]
        await self.command("migrate-set-capabilities", capabilities=wanted)

    async def save(self, state: Path) -> None:
        """Into a file as fast as that takes it (QEMU's default is 128 MiB/s), and answer when it is there."""
        await self.command("migrate-set-parameters", **{"max-bandwidth": UNLIMITED_BYTES_S})
        await self.command("migrate", uri=f"file:{state}")
        while (answer := await self.command("query-migrate"))["status"] != "completed":
            if answer["status"] == "failed":
                raise RuntimeError(f"QEMU cannot save: {answer}")
            await asyncio.sleep(0.001)

    async def _answer(self, name: str) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line:
            raise RuntimeError(f"QEMU ended at {name}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._writer.close()


class BareVm:
    def __init__(self, process: "subprocess.Popen[bytes]", directory: Path, began: float) -> None:
        self.process = process
        self.directory = directory
        self._began = began

    @property
    def age_ms(self) -> float:
        """Since before QEMU's fork."""
        return (time.monotonic() - self._began) * 1000

    @asynccontextmanager
    async def monitor(self) -> AsyncIterator[Monitor]:
        async with asyncio.timeout(DEADLINE_S):
            monitor = Monitor(*await asyncio.open_unix_connection(self.directory / "monitor"))
            try:
                await monitor._answer("its greeting")  # noqa: SLF001
                await monitor.command("qmp_capabilities")
                yield monitor
            finally:
                monitor.close()

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[Guest]:
        """Once the agent has said hello on both ports."""
        guest = await AgentDialer().connect(
            self.directory / "control",
            self.directory / "stream",
            timeout_s=DEADLINE_S,
            subject="the floor's guest",
        )
        try:
            yield guest
        finally:
            await guest.close()

    async def restore(self, state: Path, capability: str) -> None:
        """Let it go on where ``state`` was saved."""
        async with self.monitor() as monitor:
            await monitor.enable(capability)
            await monitor.command("migrate-incoming", uri=f"file:{state}")
            while (await monitor.command("query-status"))["status"] == "inmigrate":
                await asyncio.sleep(0.001)
            await monitor.command("cont")  # it was saved as paused

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> None:
        self.process.wait(DEADLINE_S)


@contextmanager
def bare_vm(machine: Machine) -> Iterator[BareVm]:
    """One that has just been started; gone afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyper-b-", dir=PLACE)))
        for name in ("image", "writable"):
            with (directory / name).open("wb") as disk:
                disk.truncate(1 << 30)
        began = time.monotonic()
        listening = {name: _listen(directory / name, stack) for name in SOCKETS}
        fds = {name: listener.fileno() for name, listener in listening.items()}
        log = stack.enter_context((directory / "log").open("wb"))
        process = subprocess.Popen(
            machine.argv(directory, fds),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=tuple(fds.values()),
        )
        for listener in listening.values():
            listener.close()  # QEMU's alone: who connects is refused when it has ended
        try:
            yield BareVm(process, directory, began)
        except (OSError, RuntimeError, HyperError) as error:
            raise RuntimeError(f"{error}; QEMU says: {(directory / 'log').read_text()[-500:]!r}") from error
        finally:
            process.kill()
            process.wait(DEADLINE_S)


def _listen(path: Path, stack: ExitStack) -> socket.socket:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(os.fspath(path))
    listener.listen(4)
    return listener
