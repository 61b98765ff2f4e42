# SPDX-License-Identifier: Apache-2.0
"""The calls of hyperd that are measured, each on a channel that is open before the clock starts."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
import grpc.aio

from bench.measure import CannotMeasureError
from hyper.v1 import container_pb2 as pb
from hyper.v1 import container_pb2_grpc, snapshot_pb2, snapshot_pb2_grpc, system_pb2, system_pb2_grpc
from tests.harness import Hyper

T = TypeVar("T")

IMAGE = "test.local/busybox"
FOREVER = ("sleep", "100000")


class Api:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.containers: container_pb2_grpc.ContainerServiceAsyncStub
        self.containers = container_pb2_grpc.ContainerServiceStub(channel)
        self.templates: snapshot_pb2_grpc.TemplateServiceAsyncStub
        self.templates = snapshot_pb2_grpc.TemplateServiceStub(channel)
        self.system: system_pb2_grpc.SystemServiceAsyncStub = system_pb2_grpc.SystemServiceStub(channel)

    async def first_byte_ms(self, args: Sequence[str]) -> float:
        """From the call to the first byte of output; back when the container is gone."""
        spec = pb.ContainerSpec(image=IMAGE, args=args, auto_remove=True)
        began, first = time.monotonic(), 0.0
        run = pb.SessionRequest(run=pb.RunOptions(spec=spec))
        async for response in self.containers.RunContainer(_requests(run)):
            if response.WhichOneof("kind") == "stdout" and not first:
                first = (time.monotonic() - began) * 1000
        if not first:
            raise RuntimeError(f"{' '.join(args)} wrote nothing")
        return first

    async def start(self, args: Sequence[str] = FOREVER, **spec: object) -> str:
        """In the background; the id, once it runs."""
        wanted = pb.ContainerSpec(image=IMAGE, args=args, **spec)  # type: ignore[arg-type]
        run = pb.SessionRequest(run=pb.RunOptions(spec=wanted, detach=True))
        container_id = ""
        async for response in self.containers.RunContainer(_requests(run)):
            if response.WhichOneof("kind") == "started":
                container_id = response.started.container_id
        return container_id

    async def remove(self, container: str) -> None:
        await self.containers.RemoveContainer(pb.RemoveContainerRequest(container=container, force=True))

    async def inspect(self, container: str) -> pb.Container:
        response = await self.containers.InspectContainer(pb.InspectContainerRequest(container=container))
        return response.container

    async def exec_ms(self, container: str, args: Sequence[str]) -> float:
        """From the call to the exit status."""
        request = pb.SessionRequest(exec=pb.ExecOptions(container=container, args=args))
        began = time.monotonic()
        async for response in self.containers.ExecContainer(_requests(request)):
            if response.WhichOneof("kind") == "exit":
                return (time.monotonic() - began) * 1000
        raise RuntimeError("an exec without an exit status")

    async def output(self, container: str, args: Sequence[str]) -> bytes:
        request = pb.SessionRequest(exec=pb.ExecOptions(container=container, args=args))
        parts = [response.stdout async for response in self.containers.ExecContainer(_requests(request))]
        return b"".join(parts)

    async def fork(self, container: str, count: int) -> pb.ForkContainerResponse:
        options = pb.CloneOptions(count=count)
        return await self.containers.ForkContainer(
            pb.ForkContainerRequest(container=container, options=options)
        )

    async def empty_call_ms(self) -> float:
        began = time.monotonic()
        await self.system.GetVersion(system_pb2.GetVersionRequest())
        return (time.monotonic() - began) * 1000

    async def require_template(self) -> None:
        """Build it, and see that a start takes it. Raises CannotMeasureError with the reason of hyperd's."""
        try:
            await self.templates.BuildTemplate(snapshot_pb2.BuildTemplateRequest(), timeout=300)
        except grpc.aio.AioRpcError as error:
            raise CannotMeasureError(f"no template: {error.code().name}: {error.details()}") from error
        await self.require_start("template")

    async def require_start(self, path: str) -> None:
        """Raises CannotMeasureError with the reason of hyperd's when a start is of another kind."""
        container_id = await self.start()
        report = (await self.inspect(container_id)).start
        await self.remove(container_id)
        if report.path != path:
            raise CannotMeasureError(
                f"starts are {report.path or 'of an unknown kind'}: {report.note or 'no note'}"
            )


def call(host: Hyper, work: Callable[[Api], Awaitable[T]]) -> T:
    """From outside of any loop."""

    async def once() -> T:
        async with connected(host) as api:
            return await work(api)

    return asyncio.run(once())


@asynccontextmanager
async def connected(host: Hyper) -> AsyncIterator[Api]:
    async with grpc.aio.insecure_channel(host.address.replace("unix://", "unix:")) as channel:
        await channel.channel_ready()
        yield Api(channel)


async def _requests(first: pb.SessionRequest) -> AsyncIterator[pb.SessionRequest]:
    yield first
