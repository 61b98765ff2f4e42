# SPDX-License-Identifier: Apache-2.0
"""A directory of the host: in a container of hyperd's, and in a bare guest with a bare virtiofsd, in turn.

Timed by the guest's own clock, which has hundredths of a second.
"""

import asyncio
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.api import Api, call
from bench.measure import Aim, Result, interleaved, summarize
from bench.stage import Stage
from hyper.v1 import container_pb2 as pb
from hyperd.config import StorageConfig
from hyperd.guest import Guest
from hyperd.model.guest import GuestMount
from tests import bareguest

PLACE = "/dev/shm"  # where the floor's guest has its RAM: a disk would be written to for all of it
DEADLINE_S = 60.0
DATA_MIB, FILES = 64, 200
NOTE = "floor: the same in a bare QEMU with a bare virtiofsd"
TIMED = "read a x < /proc/uptime; {}; read b x < /proc/uptime; echo $a $b"
WRITE = f"dd if=/dev/zero of=/x/NAME bs=1M count={DATA_MIB} conv=fsync 2>/dev/null"
READ = "dd if=/x/NAME of=/dev/null bs=1M 2>/dev/null"
MAKE = f"i=0; while [ $i -lt {FILES} ]; do : > /x/NAME.$i; i=$((i+1)); done"


class Sharing(bareguest.Machine):
    """With a virtio-fs device."""

    socket: Path

    def _devices(self, bench: bareguest.Bench) -> list[str]:
        chardev = ["-chardev", f"socket,id=share,path={self.socket}"]
        device = ["-device", "vhost-user-fs-pci,chardev=share,tag=share,addr=12"]
        return [*super()._devices(bench), *chardev, *device]


class Family(bareguest.Bench):
    def __init__(self, directory: Path, accelerator: str) -> None:
        super().__init__(directory)
        self._accelerator = accelerator

    def machine(self, *, share: bool) -> list[str]:
        words = [
            word.replace("accel=tcg", f"accel={self._accelerator}") for word in super().machine(share=share)
        ]
        return ["host" if word == "max" and self._accelerator == "kvm" else word for word in words]


def virtiofs(stage: Stage) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory(prefix="hyper-b-", dir=PLACE) as scratch:
        ours, floors = (Path(scratch) / name for name in ("ours", "floor"))
        for place in (ours, floors):
            place.mkdir()
        mount = pb.Mount(type=pb.MOUNT_TYPE_BIND, source=str(ours), destination="/x")
        container_id = call(stage.host, lambda api: api.start(mounts=[mount]))
        try:
            with _bare(Path(scratch), floors, stage.accelerator) as bare, asyncio.Runner() as runner:
                guest = runner.run(_container(bare))

                for name, command in (
                    (f"a share: {DATA_MIB} MiB written and synced", WRITE),
                    (f"a share: {DATA_MIB} MiB read for the first time", READ),
                    (f"a share: {FILES} files made", MAKE),
                ):

                    def our_ms(command: str = command) -> float:
                        script = _named(command, ours)
                        return _ms(call(stage.host, lambda api: _output(api, container_id, script)))

                    def floor_ms(command: str = command) -> float:
                        return _ms(runner.run(bareguest.execute(guest, _named(command, floors))))

                    taken, floor = interleaved(stage.runs(5), our_ms, floor_ms)
                    results.append(summarize(name, "ms", taken, floor=floor, aim=Aim(ratio=1.05), note=NOTE))
                runner.run(guest.close())
        finally:
            call(stage.host, lambda api: api.remove(container_id))
    return results


async def _output(api: Api, container_id: str, script: str) -> bytes:
    return await api.output(container_id, ["sh", "-c", script])


async def _container(machine: bareguest.Machine) -> Guest:
    guest = await machine.dial()
    await guest.configure(machine.identity())
    await bareguest.run(
        guest, bareguest.container("sleep 100000", mounts=(GuestMount("/x", "virtiofs", "share"),))
    )
    return guest


def _named(command: str, place: Path) -> str:
    """Each run has files of its own: what was read once is in the guest's memory."""
    name = secrets.token_hex(4)
    if command == READ:
        (place / name).write_bytes(os.urandom(DATA_MIB << 20))
    return TIMED.format(command.replace("NAME", name))


def _ms(told: str | bytes) -> float:
    began, ended = map(float, told.split())
    return (ended - began) * 1000


@contextmanager
def _bare(scratch: Path, shared: Path, accelerator: str) -> Iterator[bareguest.Machine]:
    socket = scratch / "share.sock"
    program = StorageConfig().virtiofsd.resolve()
    argv = [
        str(program),
        "--socket-path",
        str(socket),
        "--shared-dir",
        str(shared),
        "--xattr",
        "--log-level=error",
    ]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the floor's virtiofsd does not come up")
            os.sched_yield()
        (scratch / "guest").mkdir()
        with Family(scratch / "guest", accelerator) as family:
            machine = Sharing(family.directory / "machine", family.writable)
            machine.socket = socket
            try:
                machine.start(family, incoming=False)
                yield machine
            finally:
                machine.end()
    finally:
        server.kill()
        server.wait(DEADLINE_S)
