# SPDX-License-Identifier: Apache-2.0
"""Builds over a world of fakes: an engine that is a script, whose files are on every builder's disk."""

import asyncio
import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from hyperd.build import BuilderSizing, Builds, BuildSettings, Event
from hyperd.host.workers import Workers
from hyperd.model.build import AgentMessage, BuildFailed, BuildSpec, Built, Output
from hyperd.model.guest import ProcessExit, Stream
from hyperd.model.image import Credentials, ImageConfig, ImageId
from hyperd.sandbox import Fleet
from tests.fakes.guest_process import FakeProcess, Script
from tests.fakes.image import image_named
from tests.fakes.world import World

BUILDER = "docker.io/hyper/builder:1"
HOLD = ImageConfig(cmd=("/usr/libexec/hyper/hold",))
NEW_LAYER = "sha256:" + "e" * 64
CONFIG = json.dumps({"rootfs": {"diff_ids": [*image_named("alpine").diff_ids, NEW_LAYER]}}).encode()
BUILT_ID = ImageId("sha256:" + hashlib.sha256(CONFIG).hexdigest())
DONE = ProcessExit(0)


def one_file(content: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        info = tarfile.TarInfo("f")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


@dataclass
class Shop:
    """Builds, and what its callers hear."""

    world: World
    fleet: Fleet
    builds: Builds
    heard: list[Event] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    agent_asked: list[AgentMessage] = field(default_factory=list)
    files: dict[bytes, bytes] = field(default_factory=dict)

    async def build(self, **fields: object) -> Built | BuildFailed:
        spec = BuildSpec(**{"dockerfile": b"FROM alpine", **fields})  # type: ignore[arg-type]
        return await self.builds.build(spec, self._context(), self.hear, self.credentials, self.ask_agent)

    async def hear(self, event: Event) -> None:
        self.heard.append(event)

    async def credentials(self, reference: str) -> Credentials | None:
        self.asked.append(reference)
        return Credentials("me", "secret")

    async def ask_agent(self, message: AgentMessage) -> bytes:
        self.agent_asked.append(message)
        return message.message[::-1]

    async def _context(self) -> AsyncIterator[bytes]:
        yield b"the context"

    @property
    def said(self) -> str:
        return b"".join(event.data for event in self.heard if isinstance(event, Output)).decode()

    def script(self, name: str, exit_: ProcessExit | None = DONE, *said: bytes) -> None:
        self.world.script(name, Script([(Stream.STDOUT, data) for data in said], exit=exit_))

    def answer(self, path: str, content: bytes) -> None:
        """Of every builder."""
        self.files[path.encode()] = one_file(content)

    def running(self, program: str) -> list[FakeProcess]:
        return [
            process
            for agent in self.world.hypervisor.agents.values()
            for container in agent.containers.values()
            for process in container.processes.values()
            if process.plan.args[0] == program and process.exit is None
        ]

    def require_nothing_left(self) -> None:
        assert not self.fleet.views()
        assert not self.world.hypervisor.running
        assert not self.world.network.taps


def write_archive(archive: Path) -> None:
    """The builder's, but for its layers."""
    manifest = json.dumps({"config": {"digest": image_named(BUILDER).image_id}}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    described = {"digest": f"sha256:{digest}", "annotations": {"io.containerd.image.name": BUILDER}}
    members = {
        "index.json": json.dumps({"manifests": [described]}).encode(),
        f"blobs/sha256/{digest}": manifest,
    }
    with tarfile.open(archive, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@contextlib.asynccontextmanager
async def working(world: World, fleet: Fleet, place: Path) -> AsyncIterator[Shop]:
    archive = place / "builder.tar"
    write_archive(archive)
    files = Workers("files", 1)
    settings = BuildSettings(archive, BuilderSizing(1.0, 256 << 20, 1 << 30), world.platform)
    builds = Builds(settings, fleet, world.images, files)
    shop = Shop(world, fleet, builds)
    for name in ("/usr/libexec/hyper/prepare", "mkdir", "sh", "cp", "buildah"):
        shop.script(name)
    shop.answer("/build/id", BUILT_ID.encode())
    shop.answer("/build/out/manifest.json", json.dumps({"config": {"digest": "sha256:" + "c" * 64}}).encode())
    shop.answer("/build/out/" + "c" * 64, CONFIG)
    shop.answer("/build/out/" + "e" * 64, b"layer")
    world.images.add(BUILDER, HOLD)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(builds.run())
            filling = tasks.create_task(_fill(shop))
            try:
                yield shop
            finally:
                running.cancel()
                filling.cancel()
    finally:
        files.close()


async def _fill(shop: Shop) -> None:
    """The files that an engine would write are on every builder's disk."""
    while True:
        for each in shop.world.hypervisor.files.values():
            for path, content in shop.files.items():
                each.unsynced.setdefault(path, content)
        await asyncio.sleep(0)
