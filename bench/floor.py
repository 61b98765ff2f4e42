# SPDX-License-Identifier: Apache-2.0
"""The floors: what the same machine does without hyper in between."""

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hyperd.daemon import GUEST_CMDLINE
from hyperd.guest import AgentDialer, Guest

ASSETS = Path(__file__).resolve().parent.parent / "build/assets"


@dataclass(frozen=True, slots=True)
class BareVm:
    hello_ms: float  # from QEMU's fork to the agent's hello on both ports
    qemu_pid: int
    guest: Guest


@asynccontextmanager
async def bare_vm(accelerator: str, memory_mib: int = 256) -> AsyncIterator[BareVm]:
    """Our kernel and agent on the same machine, started by a bare QEMU command line: no libvirt and no daemon.

    The machine is hyperd's (hyperd/vm/libvirt/xml.py): the same devices, with empty disks and a NIC on nothing.
    """
    with tempfile.TemporaryDirectory(prefix="hyper-b-", dir="/var/tmp") as directory:
        control, stream = Path(directory) / "c", Path(directory) / "s"
        image, writable = Path(directory) / "image", Path(directory) / "writable"
        for disk in (image, writable):
            disk.touch()
            os.truncate(disk, 1 << 30)
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", f"q35,accel={accelerator}", "-cpu", "host" if accelerator == "kvm" else "max",
            "-m", str(memory_mib), "-smp", "1", "-bios", "/usr/share/qemu/qboot.rom",
            "-kernel", str(ASSETS / "vmlinux"), "-initrd", str(ASSETS / "initramfs.cpio"),
            "-append", GUEST_CMDLINE + (" tsc=unstable" if accelerator == "tcg" else ""),
            "-device", "pcie-root-port,id=p1,chassis=1,slot=1", "-device", "pcie-root-port,id=p2,chassis=2,slot=2",
            "-blockdev", f"file,node-name=image,read-only=on,filename={image}",
            "-device", "virtio-blk-pci-non-transitional,drive=image",
            "-blockdev", f"file,node-name=writable,read-only=off,filename={writable}",
            "-device", "virtio-blk-pci-non-transitional,drive=writable",
            "-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci-non-transitional,netdev=net,romfile=",
            "-device", "virtio-balloon-pci-non-transitional,deflate-on-oom=on,free-page-reporting=on",
            "-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci-non-transitional,rng=rng",
            "-device", "pvpanic-pci", "-device", "virtio-serial-pci-non-transitional", "-serial", "null",
            "-chardev", f"socket,id=c,path={control},server=on,wait=off",
            "-device", "virtserialport,chardev=c,name=hyper.control",
            "-chardev", f"socket,id=s,path={stream},server=on,wait=off",
            "-device", "virtserialport,chardev=s,name=hyper.stream",
        ]  # fmt: skip
        began = time.monotonic()
        qemu = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while not (control.exists() and stream.exists()):
                if qemu.poll() is not None or time.monotonic() - began > 20:
                    raise SystemExit(
                        f"bench: QEMU did not start: {qemu.stderr.read() if qemu.stderr else b''!r}"
                    )
                await asyncio.sleep(0.001)
            guest = await AgentDialer().connect(control, stream, timeout_s=120, subject="the floor's guest")
            try:
                yield BareVm((time.monotonic() - began) * 1000, qemu.pid, guest)
            finally:
                await guest.close()
        finally:
            qemu.kill()
            qemu.wait()
            if qemu.stderr:
                qemu.stderr.close()


def boot_ms(accelerator: str) -> float:
    async def once() -> float:
        async with bare_vm(accelerator) as vm:
            return vm.hello_ms

    return asyncio.run(once())


def agent_rss_mib(accelerator: str) -> float:
    async def once() -> float:
        async with bare_vm(accelerator) as vm:
            return (await vm.guest.stats()).agent_rss_bytes / (1 << 20)

    return asyncio.run(once())


def qemu_rss_beyond_memory_mib(pid: int, memory_mib: int) -> float:
    """Resident memory of a QEMU process outside the mapping that is the guest's RAM (the one of exactly its size)."""
    rss_kib, ram_kib, size_kib = 0, 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size_kib = int(line.split()[1])
        elif line.startswith("Rss:"):
            rss_kib += int(line.split()[1])
            if size_kib == memory_mib * 1024:
                ram_kib += int(line.split()[1])
    return (rss_kib - ram_kib) / 1024


def process_ms(argv: list[str]) -> float:
    """A whole process, from fork to reaped."""
    began = time.monotonic()
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=os.environ)
    return (time.monotonic() - began) * 1000
