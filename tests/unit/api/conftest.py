# SPDX-License-Identifier: Apache-2.0
"""The servicers over a real UNIX socket, the service over fakes."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest_asyncio

from hyper.v1 import container_pb2_grpc, image_pb2_grpc, snapshot_pb2_grpc, system_pb2, system_pb2_grpc
from hyperd.api import (
    BuildServicer,
    ContainerServicer,
    EgressServicer,
    FloatingServicer,
    ImageServicer,
    NetworkServicer,
    SecurityGroupServicer,
    Servicers,
    SnapshotServicer,
    SystemServicer,
    TemplateServicer,
    VolumeServicer,
    serving,
)
from hyperd.build import BuilderSizing, Builds, BuildSettings
from hyperd.host.workers import Workers
from hyperd.model.host import CheckLevel, HostCheck
from hyperd.sandbox import Fleet, FloatingDesk, NetworkDesk, PolicyDesk, Resetting
from tests.fakes.image_moves import MovingImages
from tests.fakes.memory import tmp_path as tmp_path  # noqa: PLC0414 - a fixture
from tests.fakes.world import World


@dataclass
class Api:
    world: World
    fleet: Fleet
    path: Path
    containers: Any  # stubs: their types know only the blocking calls
    images: Any
    system: Any
    templates: Any
    snapshots: Any
    store: MovingImages = field(default_factory=MovingImages)


async def _info() -> system_pb2.GetInfoResponse:
    return system_pb2.GetInfoResponse(accelerator="tcg")


async def _checks() -> list[HostCheck]:
    return [HostCheck("qemu", CheckLevel.FAILED, "missing", "install it")]


async def _usage() -> system_pb2.GetDiskUsageResponse:
    return system_pb2.GetDiskUsageResponse(layers_bytes=4096)


def servicers(world: World, fleet: Fleet) -> Servicers:
    version = system_pb2.GetVersionResponse(version="0.1.0", api_version="1")
    no_builder = BuildSettings(
        world.root / "builder.tar", BuilderSizing(1.0, 256 << 20, 1 << 30), world.platform
    )
    system = SystemServicer(
        lambda: version,
        _info,
        _checks,
        _usage,
        Resetting(world.network, fleet, world.spares, world.templates),
    )
    policies = PolicyDesk(
        world.network,
        lambda reference: fleet.get(reference).record,
        fleet.records,
        lambda sandbox_id: fleet.get(sandbox_id).reroute(),
    )
    return Servicers(
        ContainerServicer(fleet),
        ImageServicer(world.images, fleet),
        system,
        TemplateServicer(world.templates, world.build_templates),
        SnapshotServicer(fleet),
        VolumeServicer(fleet),
        NetworkServicer(fleet, NetworkDesk(world.network, fleet.views, fleet.records)),
        BuildServicer(Builds(no_builder, fleet, world.images, Workers("builds", 1))),
        EgressServicer(policies),
        SecurityGroupServicer(policies),
        FloatingServicer(FloatingDesk(world.network, fleet)),
    )


@contextlib.asynccontextmanager
async def served(world: World, store: MovingImages | None = None) -> AsyncIterator[Api]:
    """A daemon over fakes, and stubs of its services."""
    path = world.root / "s"
    async with (
        world.daemon() as fleet,
        serving(path, "no-such-group", servicers(world, fleet)),
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        made = Api(
            world,
            fleet,
            path,
            container_pb2_grpc.ContainerServiceStub(channel),
            image_pb2_grpc.ImageServiceStub(channel),
            system_pb2_grpc.SystemServiceStub(channel),
            snapshot_pb2_grpc.TemplateServiceStub(channel),
            snapshot_pb2_grpc.SnapshotServiceStub(channel),
        )
        yield made if store is None else replace(made, store=store)


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    store = MovingImages()
    async with served(World(tmp_path, images=store), store) as made:
        yield made
