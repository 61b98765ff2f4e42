# SPDX-License-Identifier: Apache-2.0
"""A hyperd without machines: the v1 services over a real socket, processes that are coroutines.

`python -m tests.fakes.daemon SOCKET` runs one to look at.
"""
# ruff: noqa: N802 - the methods have the names of the contract

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from hyper.v1 import container_pb2 as pb
from hyper.v1 import (
    container_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    snapshot_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)
from tests.fakes.daemon_snapshots import FakeSnapshots, FakeTemplates
from tests.fakes.daemon_state import UP, Context, FakeDaemon, abort, ago, digest
from tests.fakes.programs import FakeProcess, exited

DEADLINE_S = 30


class FakeContainers(container_pb2_grpc.ContainerServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def CreateContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.create(request.spec, context)
        return pb.CreateContainerResponse(container_id=container.id, name=container.name)

    async def StartContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        self._daemon.start_process(container)
        return pb.StartContainerResponse(container=container)

    async def StopContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        if container.state == pb.CONTAINER_STATE_RUNNING:
            self._daemon.processes[container.id].signals.put_nowait(15)
            self._daemon.end_process(container, pb.ExitStatus(code=143, reason=pb.EXIT_REASON_STOPPED))
        return pb.StopContainerResponse(container=container)

    async def KillContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        if container.state != pb.CONTAINER_STATE_RUNNING:
            await abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                system_pb2.ErrorDetail(brief="is not running", subject=request.container),
            )
        number = int(request.signal) if request.signal.isdigit() else 9
        self._daemon.processes[container.id].signals.put_nowait(number)
        return pb.KillContainerResponse()

    async def PauseContainer(self, request, context):
        await self._move(request, context, {pb.CONTAINER_STATE_RUNNING: pb.CONTAINER_STATE_PAUSED})
        return pb.PauseContainerResponse()

    async def UnpauseContainer(self, request, context):
        await self._move(request, context, {pb.CONTAINER_STATE_PAUSED: pb.CONTAINER_STATE_RUNNING})
        return pb.UnpauseContainerResponse()

    async def HibernateContainer(self, request, context):
        down = dict.fromkeys(UP, pb.CONTAINER_STATE_HIBERNATED)
        container = await self._move(request, context, down)
        container.vm_pid = 0
        container.finished_at.CopyFrom(ago(0))
        return pb.HibernateContainerResponse()

    async def WakeContainer(self, request, context):
        await self._move(request, context, {pb.CONTAINER_STATE_HIBERNATED: pb.CONTAINER_STATE_RUNNING})
        return pb.WakeContainerResponse()

    async def _move(self, request, context, moves) -> pb.Container:
        """From one state to another. Idempotent."""
        await self._daemon.check(request, context)
        container = await self._daemon.require_state(request.container, context, *moves, *moves.values())
        container.state = moves.get(container.state, container.state)
        return container

    async def ForkContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_state(request.container, context, *UP)
        clones = self._daemon.add_clones(container, request.options)
        return pb.ForkContainerResponse(clones=reversed(clones), pause_ms=41)

    async def RollbackContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        snapshot = await self._daemon.require_snapshot(request.snapshot, context)
        if snapshot.source_container_id != container.id:
            detail = system_pb2.ErrorDetail(brief="is of another container", subject=request.snapshot)
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, detail)
        container.state = pb.CONTAINER_STATE_RUNNING
        return pb.RollbackContainerResponse()

    async def RemoveContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        if container.state == pb.CONTAINER_STATE_RUNNING and not request.force:
            await abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                system_pb2.ErrorDetail(
                    brief="is running", subject=request.container, hint="stop it first, or `hyper rm -f`"
                ),
            )
        del self._daemon.containers[container.id]
        return pb.RemoveContainerResponse(container_id=container.id)

    async def ListContainers(self, request, context):
        await self._daemon.check(request, context)
        wanted = {filter_.value for filter_ in request.filters if filter_.key == "status"}
        states = {pb.ContainerState.Value(f"CONTAINER_STATE_{status.upper()}") for status in wanted} or UP
        chosen = [
            container
            for container in reversed(self._daemon.containers.values())
            if (request.all and not wanted) or container.state in states
        ]
        return pb.ListContainersResponse(containers=chosen)

    async def InspectContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        return pb.InspectContainerResponse(container=container)

    async def WaitContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        process = self._daemon.processes.get(container.id)
        if container.state == pb.CONTAINER_STATE_RUNNING and process is not None:
            await process.ended.wait()
        return pb.WaitContainerResponse(exit=container.exit)

    async def ReadLogs(self, request, context):
        await self._daemon.check(request, context)
        await self._daemon.require_container(request.container, context)
        for entry in self._daemon.log:
            yield entry

    async def RunContainer(self, requests, context):
        run = (await anext(aiter(requests))).run
        await self._daemon.check(run, context)
        container = await self._daemon.create(run.spec, context)
        process = self._daemon.start_process(container)
        yield pb.SessionResponse(
            started=pb.SessionStarted(container_id=container.id, name=container.name, tty=run.spec.tty)
        )
        if not run.detach:
            async for response in self._session(process, requests, container):
                yield response

    async def AttachContainer(self, requests, context):
        attach = (await anext(aiter(requests))).attach
        await self._daemon.check(attach, context)
        container = await self._daemon.require_container(attach.container, context)
        process = self._daemon.processes.get(container.id)
        if attach.start or process is None:
            process = self._daemon.start_process(container)
        process.size = (attach.terminal_size.columns, attach.terminal_size.rows)
        yield pb.SessionResponse(
            started=pb.SessionStarted(container_id=container.id, name=container.name, tty=container.spec.tty)
        )
        async for response in self._session(process, requests, container):
            yield response

    async def ExecContainer(self, requests, context):
        options = (await anext(aiter(requests))).exec
        await self._daemon.check(options, context)
        container = await self._daemon.require_container(options.container, context)
        process = FakeProcess(list(options.args), tty=options.tty)
        process.size = (options.terminal_size.columns, options.terminal_size.rows)
        yield pb.SessionResponse(
            started=pb.SessionStarted(container_id=container.id, exec_id="e1", tty=options.tty)
        )
        if not options.detach:
            async for response in self._session(process, requests, None):
                yield response

    async def _session(
        self,
        process: FakeProcess,
        requests: AsyncIterator[pb.SessionRequest],
        container: pb.Container | None,
    ) -> AsyncIterator[pb.SessionResponse]:
        if process.args[:1] == ["drop"]:
            return
        assert self._daemon.tasks is not None
        if not process.running:
            process.running = True
            self._daemon.tasks.create_task(process.run())
        taking = self._daemon.tasks.create_task(self._take(process, requests))
        try:
            while (response := await process.output.get()) is not None:
                yield response
            if container is not None:
                self._daemon.end_process(container, process.exit or exited())
            yield pb.SessionResponse(exit=process.exit)
        except (asyncio.CancelledError, GeneratorExit):
            self._daemon.hangups += 1
            raise
        finally:
            taking.cancel()

    async def _take(self, process: FakeProcess, requests: AsyncIterator[pb.SessionRequest]) -> None:
        async for request in requests:
            await self._daemon.stdin_gate.wait()
            match request.WhichOneof("kind"):
                case "stdin":
                    await process.stdin.put(request.stdin)
                case "close_stdin":
                    await process.stdin.put(b"")
                case "resize":
                    process.size = (request.resize.columns, request.resize.rows)
                    process.resized.set()
                case "signal":
                    process.signals.put_nowait(request.signal)


class FakeImages(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def PullImage(self, request, context):
        await self._daemon.check(request, context)
        name = request.reference.partition(":")[0]
        if name not in self._daemon.pullable:
            detail = system_pb2.ErrorDetail(
                brief="not in the registry",
                subject=request.reference,
                evidence="manifest unknown",
                hint="check the spelling",
            )
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        phases = (image_pb2.LAYER_PHASE_DOWNLOADING, image_pb2.LAYER_PHASE_CONVERTING)
        layers = [digest(f"{name} {number}") for number in range(3)]
        tag = request.reference.partition(":")[2] or "latest"
        yield image_pb2.PullImageResponse(notice=f"{tag}: Pulling from library/{name}")
        for layer in layers:
            yield _progress(layer, image_pb2.LAYER_PHASE_WAITING, 0)
        for layer in layers:
            for phase in phases:
                for done in range(0, 101, 10):
                    await asyncio.sleep(self._daemon.pull_pace_s)
                    yield _progress(layer, phase, done * 100_000)
            yield _progress(layer, image_pb2.LAYER_PHASE_DONE, 10_000_000)
        image = self._daemon.add_image(request.reference)
        yield image_pb2.PullImageResponse(notice=f"Digest: {image.manifest_digest}")
        yield image_pb2.PullImageResponse(notice=f"Status: Downloaded newer image for {name}:{tag}")
        yield image_pb2.PullImageResponse(image=image)

    async def ListImages(self, request, context):
        await self._daemon.check(request, context)
        return image_pb2.ListImagesResponse(images=list(reversed(self._daemon.images.values())))

    async def InspectImage(self, request, context):
        await self._daemon.check(request, context)
        return image_pb2.InspectImageResponse(image=await self._require(request.image, context))

    async def RemoveImage(self, request, context):
        await self._daemon.check(request, context)
        image = await self._require(request.image, context)
        self._daemon.images = {k: v for k, v in self._daemon.images.items() if v.id != image.id}
        return image_pb2.RemoveImageResponse(untagged=image.tags, deleted=[image.id])

    async def _require(self, name: str, context: Context) -> image_pb2.Image:
        image = self._daemon.find_image(name)
        if image is None:
            detail = system_pb2.ErrorDetail(brief="no such image", subject=name, reason="image-not-found")
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        assert image is not None
        return image


def _progress(layer: str, phase: "image_pb2.LayerPhase.ValueType", done: int) -> image_pb2.PullImageResponse:
    return image_pb2.PullImageResponse(
        layer=image_pb2.LayerProgress(digest=layer, phase=phase, done_bytes=done, total_bytes=10_000_000)
    )


class FakeSystem(system_pb2_grpc.SystemServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def GetVersion(self, request, context):
        await self._daemon.check(request, context)
        return system_pb2.GetVersionResponse(
            version="0.1.0",
            api_version="1",
            agent_protocol_version=1,
            python_version="3.11.2",
            qemu_version="10.0.2",
            libvirt_version="11.3.0",
            guest_kernel="6.12.1-hyper",
            host_kernel="6.1.0",
            architecture="x86_64",
        )

    async def GetInfo(self, request, context):
        await self._daemon.check(request, context)
        states = [container.state for container in self._daemon.containers.values()]
        running, paused = (
            states.count(state) for state in (pb.CONTAINER_STATE_RUNNING, pb.CONTAINER_STATE_PAUSED)
        )
        return system_pb2.GetInfoResponse(
            version="0.1.0",
            accelerator="tcg",
            accelerator_reason="KVM: no hello from the agent in 5 s",
            containers=len(self._daemon.containers),
            containers_running=running,
            containers_paused=paused,
            containers_stopped=len(self._daemon.containers) - running - paused,
            images=len(self._daemon.images),
            state_dir="/var/lib/hyper",
            run_dir="/run/hyper",
            hypervisor_uri="qemu:///embed?root=/var/lib/hyper/libvirt",
            kernel_path="/usr/lib/hyper/vmlinux",
            initramfs_path="/usr/lib/hyper/initramfs",
            qemu_user="libvirt-qemu",
            cpus=2,
            memory_bytes=8 << 30,
            host_kernel="6.1.0",
            operating_system="Debian GNU/Linux 12 (bookworm)",
            state_free_bytes=100 << 30,
            pid=self._daemon.pid,
            default_memory_mib=256,
            default_vcpus=1,
            bridge="hyper0",
            subnet="10.88.0.0/16",
        )

    async def CheckHost(self, request, context):
        await self._daemon.check(request, context)
        return system_pb2.CheckHostResponse(checks=self._daemon.checks)


@contextlib.asynccontextmanager
async def serving(daemon: FakeDaemon, path: str) -> AsyncIterator[None]:
    server = grpc.aio.server()
    container_pb2_grpc.add_ContainerServiceServicer_to_server(FakeContainers(daemon), server)
    image_pb2_grpc.add_ImageServiceServicer_to_server(FakeImages(daemon), server)
    system_pb2_grpc.add_SystemServiceServicer_to_server(FakeSystem(daemon), server)
    snapshot_pb2_grpc.add_SnapshotServiceServicer_to_server(FakeSnapshots(daemon), server)
    snapshot_pb2_grpc.add_TemplateServiceServicer_to_server(FakeTemplates(daemon), server)
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    try:
        async with asyncio.TaskGroup() as daemon.tasks:
            yield
            raise _Ended  # noqa: TRY301 - the group catches it
    except* _Ended:
        pass
    finally:
        await server.stop(0)


class _Ended(Exception):  # noqa: N818 - takes the processes with it
    pass


@contextlib.contextmanager
def serving_in_thread(daemon: FakeDaemon, path: str):
    """For tests whose main thread belongs to the command line: it wants signals and a loop of its own."""
    ready = threading.Event()

    async def work() -> None:
        daemon.loop = asyncio.get_running_loop()
        async with serving(daemon, path):
            ready.set()
            await daemon.disconnected.wait()

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="fake-daemon")
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield daemon
    finally:
        with contextlib.suppress(RuntimeError):  # disconnected before, and ended
            daemon.disconnect()
        thread.join(DEADLINE_S)


async def main(path: str) -> None:
    daemon = FakeDaemon(pull_pace_s=0.05)
    daemon.add_image("debian:12", size_bytes=120_000_000, age_s=86400 * 20)
    async with serving(daemon, path):
        print(f"serving on {path}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
