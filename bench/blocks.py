# SPDX-License-Identifier: Apache-2.0
"""How many blocks of guest code QEMU translates in each phase of a start from a template (`info jit`), without hyperd,
and the CPU time that it takes for it.

    setup/private .venv/bin/python -m bench.blocks 5                a start from the template
    setup/private .venv/bin/python -m bench.blocks 5 spare          from a spare
    setup/private .venv/bin/python -m bench.blocks 5 unrehearsed    from a spare that only said hello

Unlike time, the number hardly depends on what else the machine does, and CPU time less. One layer, disks as hyperd
makes them. The first phase has QEMU's own start in it.
"""

import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cpu import cpu_ms_of
from bench.floor import IGNORE_SHARED
from bench.qemu import PLACE, BareVm, Machine, bare_vm
from hyperd.image.disk import DESCRIPTOR_NAME, HEAD_NAME, TAIL_NAME, Extent, padded, render_disk
from hyperd.model.container import Sizing
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerPlan,
    GuestIdentity,
    LayerSource,
    Link,
    ProcessPlan,
    Route,
    WritableSource,
)
from hyperd.model.image import Digest, ImageId
from hyperd.model.network import Attachment
from hyperd.model.vm import SandboxId
from hyperd.sandbox.plans import MASKED_PATHS, READONLY_PATHS
from hyperd.sandbox.spares.rehearsal import rehearse
from hyperd.sandbox.template_build import PLACEHOLDER_BYTES
from hyperd.storage.local import DEFAULT_SIZE_BYTES, MKFS_OPTIONS
from tests.bareguest import BOX, ENV, make_image

MAC = "52:54:00:00:00:02"
SPARE = SandboxId("5" * 64)
ATTACHMENT = Attachment(SPARE, "bridge", "tap", MAC, "10.9.0.2", 24, "10.9.0.1", 1500, ("10.9.0.1",), (), ())


@dataclass(frozen=True, slots=True)
class DiskMachine(Machine):
    """With files behind its disks."""

    image: str = ""  # all of the block device's options but its name
    writable: Path = Path()

    def argv(self, directory: Path, fds: dict[str, int]) -> list[str]:
        mac = MAC if self.incoming else "52:54:00:00:00:01"
        return [self._with_files(word, mac) for word in Machine.argv(self, directory, fds)]

    def _with_files(self, word: str, mac: str) -> str:
        if word.startswith("file,node-name=image"):
            return f"{self.image},node-name=image,read-only=on"
        if word.startswith("file,node-name=writable"):
            return f"file,node-name=writable,filename={self.writable}"
        if word.startswith("virtio-blk"):
            return f"{word},serial={word.partition('drive=')[2]}"
        return f"{word},mac={mac}" if word.startswith("virtio-net") else word


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    ahead = sys.argv[2] if len(sys.argv) > 2 else ""
    with tempfile.TemporaryDirectory(prefix="hyper-b-", dir=PLACE) as scratch:
        place = Path(scratch)
        _make_disks(place)
        ram, state = place / "ram", place / "state"
        _make_hole(ram, 256 << 20)
        source = DiskMachine(
            "tcg",
            ram=ram,
            ram_shared=True,
            free_page_reporting=False,
            image=f"file,filename={place}/placeholder",
            writable=place / "writable",
        )
        asyncio.run(_save(source, state))
        vmdk = f"vmdk,file.driver=file,file.filename={place}/{DESCRIPTOR_NAME}"
        image = source.image if ahead else vmdk
        clone = replace(source, ram_shared=False, incoming=True, image=image, writable=place / "own")
        starts = [asyncio.run(_start(clone, state, place, ahead)) for _ in range(runs)]
    print(f"{'':10} {'blocks':>7} {'CPU ms':>7}")
    for phase in starts[0]:
        _print(phase, [start[phase] for start in starts])
    _print("all", [_Cost.sum(start.values()) for start in starts])


@dataclass(frozen=True, slots=True)
class _Cost:
    blocks: int
    cpu_ms: float

    @staticmethod
    def sum(costs: Iterable["_Cost"]) -> "_Cost":
        several = list(costs)
        return _Cost(sum(cost.blocks for cost in several), sum(cost.cpu_ms for cost in several))


def _print(phase: str, costs: list[_Cost]) -> None:
    blocks = statistics.median(cost.blocks for cost in costs)
    cpu_ms = statistics.median(cost.cpu_ms for cost in costs)
    print(f"{phase:10} {blocks:7.0f} {cpu_ms:7.1f}")


async def _start(machine: Machine, state: Path, place: Path, ahead: str) -> dict[str, _Cost]:
    subprocess.run(["cp", "--sparse=always", place / "writable", place / "own"], check=True)
    costs: dict[str, _Cost] = {}
    with bare_vm(machine) as vm:

        async def mark(phase: str) -> None:
            before = _Cost.sum(costs.values())
            cpu_ms = cpu_ms_of([vm.process.pid])
            costs[phase] = _Cost(await _translated(vm) - before.blocks, cpu_ms - before.cpu_ms)

        await vm.restore(state, IGNORE_SHARED)
        async with vm.guest() as guest:
            await mark("hello")
            if ahead == "spare":
                await rehearse(guest, SPARE, Sizing(1, machine.memory_mib), (ATTACHMENT,), os.urandom(64))
                await mark("rehearsal")
            if ahead:
                await _put_in(vm, place / DESCRIPTOR_NAME)
                await mark("disk")
            await guest.configure(_identity())
            await mark("configure")
            await guest.create_container(_plan())
            await mark("create")
            await guest.start_container(BOX)
            await mark("start")
            async for _ in guest.read_output(BOX, FIRST_PROCESS, 0):
                break
            await mark("first byte")
    return costs


async def _put_in(vm: BareVm, image: Path) -> None:
    """As hyperd/vm/libvirt/monitor.py does."""
    async with vm.monitor() as monitor:
        await monitor.command("stop")
        file = {"driver": "file", "filename": str(image), "read-only": True}
        await monitor.command(
            "blockdev-add", **{"driver": "vmdk", "node-name": "own", "read-only": True, "file": file}
        )
        devices = await monitor.command("query-block")
        (path,) = [one["qdev"] for one in devices if one.get("inserted", {}).get("node-name") == "image"]
        await monitor.command("qom-set", path=path, property="drive", value="own")
        await monitor.command("cont")


async def _save(machine: Machine, state: Path) -> None:
    with bare_vm(machine) as vm:
        async with vm.guest() as guest:
            await guest.release_devices()
        async with vm.monitor() as monitor:
            await monitor.command("stop")
            await monitor.enable(IGNORE_SHARED)
            await monitor.save(state)


async def _translated(vm: BareVm) -> int:
    async with vm.monitor() as monitor:
        told = await monitor.command("human-monitor-command", **{"command-line": "info jit"})
    found = re.search(r"TB count\s+(\d+)", told)
    if found is None:
        raise RuntimeError(f"QEMU counts no blocks: {told}")
    return int(found[1])


def _make_disks(place: Path) -> None:
    layer = place / "layer.erofs"
    make_image(place / "root", layer)
    size = padded(layer.stat().st_size)
    os.truncate(layer, size)
    files = render_disk(
        ImageId(f"sha256:{'1' * 64}"), [Extent(layer.name, Digest(f"sha256:{'2' * 64}"), size)]
    )
    for name, content in (
        (HEAD_NAME, files.head),
        (TAIL_NAME, files.tail),
        (DESCRIPTOR_NAME, files.descriptor),
    ):
        (place / name).write_bytes(content)
    _make_hole(place / "placeholder", PLACEHOLDER_BYTES)
    _make_hole(place / "writable", DEFAULT_SIZE_BYTES)
    subprocess.run(["mkfs.ext4", *MKFS_OPTIONS, place / "writable"], check=True)


def _make_hole(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)


def _identity() -> GuestIdentity:
    link = Link(MAC, "eth0", ("10.9.0.2/24",), (Route("0.0.0.0/0", "10.9.0.1"),), 1500)
    return GuestIdentity(
        hostname="box",
        entropy=os.urandom(64),
        links=(link,),
        dns_servers=("10.9.0.1",),
        machine_id="0" * 32,
        boot_id=str(uuid.uuid4()),
    )


def _plan() -> ContainerPlan:
    return ContainerPlan(
        BOX,
        (LayerSource("image", 1),),
        WritableSource("writable", "container"),
        readonly_root=False,
        process=ProcessPlan(("echo", "ok"), ENV),
        hostname="box",
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
    )


if __name__ == "__main__":
    main()
