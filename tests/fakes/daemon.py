# SPDX-License-Identifier: Apache-2.0
"""A hyperd without machines: the v1 services over a real socket, processes that are coroutines.

`python -m tests.fakes.daemon SOCKET` runs one to look at.
"""
# ruff: noqa: N802 - the methods have the names of the contract

import asyncio
import contextlib
import hashlib
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from hyper.v1 import container_pb2 as pb
from hyper.v1 import container_pb2_grpc, image_pb2, image_pb2_grpc, system_pb2, system_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
CHUNK = 64 * 1024
DEADLINE_S = 30


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass
class FakeProcess:
    """What a program of ours sees: arguments, input, output, signals, a terminal's size."""

    args: list[str]
    tty: bool = False
    size: tuple[int, int] = (0, 0)
    stdin: "asyncio.Queue[bytes]" = field(default_factory=lambda: asyncio.Queue(4))
    output: "asyncio.Queue[pb.SessionResponse | None]" = field(default_factory=lambda: asyncio.Queue(4))
    signals: "asyncio.Queue[int]" = field(default_factory=asyncio.Queue)
    resized: asyncio.Event = field(default_factory=asyncio.Event)
    exit: pb.ExitStatus | None = None
    running: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, data: bytes) -> None:
        await self.output.put(pb.SessionResponse(stdout=data))

    async def write_error(self, data: bytes) -> None:
        await self.output.put(pb.SessionResponse(stderr=data))

    async def read(self) -> bytes:
        return await self.stdin.get()

    async def run(self) -> None:
        """The program to its end, or until a signal ends it."""
        program = PROGRAMS.get(self.args[0] if self.args else "sh", missing)
        work = asyncio.ensure_future(program(self))
        killed = asyncio.ensure_future(self._killed())
        try:
            await asyncio.wait([work, killed], return_when=asyncio.FIRST_COMPLETED)
            self.exit = work.result() if work.done() else killed.result()
        finally:
            work.cancel()
            killed.cancel()
        self.ended.set()
        await self.output.put(None)

    async def _killed(self) -> pb.ExitStatus:
        if self.args[:1] == ["signals"]:
            await asyncio.Event().wait()
        number = await self.signals.get()
        return pb.ExitStatus(code=128 + number, signal=number, reason=pb.EXIT_REASON_STOPPED)


def exited(code: int = 0) -> pb.ExitStatus:
    return pb.ExitStatus(code=code, reason=pb.EXIT_REASON_EXITED)


async def missing(process: FakeProcess) -> pb.ExitStatus:
    return pb.ExitStatus(
        code=127, reason=pb.EXIT_REASON_START_FAILED, message=f"exec: {process.args[0]!r}: not found in $PATH"
    )


async def echo(process: FakeProcess) -> pb.ExitStatus:
    await process.write((" ".join(process.args[1:]) + "\n").encode())
    return exited()


async def complain(process: FakeProcess) -> pb.ExitStatus:
    await process.write(b"to stdout\n")
    await process.write_error(b"to stderr\n")
    return exited(int(process.args[1]))


async def cat(process: FakeProcess) -> pb.ExitStatus:
    while data := await process.read():
        await process.write(data)
    return exited()


async def sink(process: FakeProcess) -> pb.ExitStatus:
    """Counts and hashes its input."""
    size, hashed = 0, hashlib.sha256()
    while data := await process.read():
        size += len(data)
        hashed.update(data)
    await process.write(f"{size} {hashed.hexdigest()}\n".encode())
    return exited()


async def flood(process: FakeProcess) -> pb.ExitStatus:
    left = int(process.args[1])
    chunk = bytes(range(256)) * (CHUNK // 256)
    while left > 0:
        await process.write(chunk[:left])
        left -= len(chunk[:left])
    return exited()


async def sleep(process: FakeProcess) -> pb.ExitStatus:
    await process.write(b"ready\n")
    await asyncio.Event().wait()
    return exited()


async def signals(process: FakeProcess) -> pb.ExitStatus:
    """Names every signal; ends at SIGTERM."""
    await process.write(b"ready\n")
    while (number := await process.signals.get()) != 15:
        await process.write(f"signal {number}\n".encode())
    return exited(3)


async def sh(process: FakeProcess) -> pb.ExitStatus:
    """A terminal that echoes: `size` waits for a change of size, `exit` ends it."""
    await process.write(f"size {process.size[0]}x{process.size[1]}\r\n$ ".encode())
    line = b""
    while data := await process.read():
        await process.write(data.replace(b"\r", b"\r\n"))
        line += data
        while b"\r" in line:
            word, _, line = line.partition(b"\r")
            if word == b"exit":
                return exited(7)
            if word == b"size":
                await process.resized.wait()
                process.resized.clear()
                await process.write(f"size {process.size[0]}x{process.size[1]}\r\n".encode())
            await process.write(b"$ ")
    return exited()


async def panic(process: FakeProcess) -> pb.ExitStatus:
    return pb.ExitStatus(
        code=255, reason=pb.EXIT_REASON_GUEST_PANIC, message="Kernel panic - not syncing\n\x1b[31mCPU: 0"
    )


async def oom(process: FakeProcess) -> pb.ExitStatus:
    return pb.ExitStatus(code=137, signal=9, reason=pb.EXIT_REASON_OOM)


Program = Callable[[FakeProcess], Coroutine[None, None, pb.ExitStatus]]
PROGRAMS: dict[str, Program] = {
    "echo": echo,
    "complain": complain,
    "cat": cat,
    "sink": sink,
    "flood": flood,
    "sleep": sleep,
    "signals": signals,
    "sh": sh,
    "panic": panic,
    "oom": oom,
}


@dataclass
class FakeDaemon:
    """State and services; ``fail`` scripts failures by method name, ``requests`` has what was asked."""

    images: dict[str, image_pb2.Image] = field(default_factory=dict)
    containers: dict[str, pb.Container] = field(default_factory=dict)
    processes: dict[str, FakeProcess] = field(default_factory=dict)
    pullable: set[str] = field(default_factory=lambda: {"alpine", "busybox"})
    checks: list[system_pb2.HostCheck] = field(default_factory=list)
    requests: list[object] = field(default_factory=list)
    failures: dict[str, tuple[grpc.StatusCode, system_pb2.ErrorDetail]] = field(default_factory=dict)
    log: list[pb.ReadLogsResponse] = field(default_factory=list)
    pid: int = 4242
    pull_pace_s: float = 0.0
    stdin_gate: asyncio.Event = field(default_factory=asyncio.Event)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None
    tasks: asyncio.TaskGroup | None = None  # of processes, which outlive the sessions
    ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    hangups: int = 0

    def __post_init__(self) -> None:
        self.stdin_gate.set()

    def fail_next(self, method: str, code: grpc.StatusCode, brief: str, **detail: str) -> None:
        self.failures[method] = (code, system_pb2.ErrorDetail(brief=brief, **detail))

    def disconnect(self) -> None:
        """From any thread: the daemon goes away, in the middle of whatever it does."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.disconnected.set)

    def add_image(self, name: str, *, size_bytes: int = 7_834_567, age_s: int = 3600) -> image_pb2.Image:
        reference = f"docker.io/library/{name}" if "/" not in name else name
        reference = reference if ":" in name else f"{reference}:latest"
        image = image_pb2.Image(
            id=digest(reference),
            tags=[reference],
            digests=[f"{reference.rpartition(':')[0]}@{digest('manifest' + reference)}"],
            created_at=_ago(age_s),
            size_bytes=size_bytes,
            stored_bytes=size_bytes // 2,
            architecture="amd64",
            os="linux",
            config=image_pb2.ImageConfig(env=["PATH=/bin"], cmd=["sh"], labels={"maintainer": "us"}),
            manifest_digest=digest("manifest" + reference),
            diff_ids=[digest("layer 1"), digest("layer 2")],
        )
        self.images[reference] = image
        return image

    def find_image(self, name: str) -> image_pb2.Image | None:
        for reference, image in self.images.items():
            short = reference.removeprefix("docker.io/library/")
            if name in {reference, short, short.removesuffix(":latest"), image.id}:
                return image
            if len(name) >= 4 and image.id.removeprefix("sha256:").startswith(name.removeprefix("sha256:")):
                return image
        return None

    def add_container(self, spec: pb.ContainerSpec) -> pb.Container:
        number = next(self.ids)
        container_id = hashlib.sha256(f"container {number}".encode()).hexdigest()
        container = pb.Container(
            id=container_id,
            name=spec.name or f"brave_guest{number}",
            image=spec.image,
            image_id=digest(spec.image),
            command=[*spec.entrypoint, *(spec.args or ["sh"])],
            spec=spec,
            state=pb.CONTAINER_STATE_CREATED,
            created_at=_ago(0),
            vcpus=1,
            memory_mib=256,
            log_path=f"/log/{container_id}",
        )
        self.containers[container_id] = container
        return container

    def find_container(self, name: str) -> pb.Container | None:
        for container in self.containers.values():
            if name == container.name or (name and container.id.startswith(name)):
                return container
        return None

    def start_process(self, container: pb.Container) -> FakeProcess:
        process = FakeProcess(list(container.command), tty=container.spec.tty)
        size = container.spec.terminal_size
        process.size = (size.columns, size.rows)
        container.state = pb.CONTAINER_STATE_RUNNING
        container.started_at.CopyFrom(_ago(0))
        container.vm_pid = 1000 + len(self.containers)
        container.guest_pid = 7
        container.accelerator = "tcg"
        container.guest_kernel = "6.12.1-hyper"
        container.start_ms = 123
        network = pb.NetworkAttachment(
            network="bridge",
            mac="52:54:00:00:00:01",
            address="10.88.0.2",
            prefix_length=16,
            gateway="10.88.0.1",
        )
        container.networks.append(network)
        self.processes[container.id] = process
        return process

    def end_process(self, container: pb.Container, status: pb.ExitStatus) -> None:
        failed = {
            pb.EXIT_REASON_GUEST_PANIC,
            pb.EXIT_REASON_START_FAILED,
            pb.EXIT_REASON_VM_LOST,
            pb.EXIT_REASON_AGENT_LOST,
        }
        container.exit.CopyFrom(status)
        container.finished_at.CopyFrom(_ago(0))
        container.state = pb.CONTAINER_STATE_FAILED if status.reason in failed else pb.CONTAINER_STATE_EXITED
        container.vm_pid = 0
        if container.spec.auto_remove:
            self.containers.pop(container.id, None)

    async def check(self, request: object, context: Context) -> None:
        """Record the request; fail it when that was scripted."""
        self.requests.append(request)
        scripted = self.failures.pop(type(request).__name__.removesuffix("Request"), None)
        if scripted is not None:
            await abort(context, *scripted)

    async def require_container(self, name: str, context: Context) -> pb.Container:
        container = self.find_container(name)
        if container is None:
            await abort(
                context,
                grpc.StatusCode.NOT_FOUND,
                system_pb2.ErrorDetail(brief="no such container", subject=name, reason="container-not-found"),
            )
        assert container is not None
        return container

    async def create(self, spec: pb.ContainerSpec, context: Context) -> pb.Container:
        if self.find_image(spec.image) is None:
            detail = system_pb2.ErrorDetail(
                brief="no such image", subject=spec.image, reason="image-not-found"
            )
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        if spec.name and self.find_container(spec.name) is not None:
            detail = system_pb2.ErrorDetail(
                brief="the name is taken", subject=spec.name, hint="remove it, or choose another name"
            )
            await abort(context, grpc.StatusCode.ALREADY_EXISTS, detail)
        return self.add_container(spec)


async def abort(context: Context, code: grpc.StatusCode, detail: system_pb2.ErrorDetail) -> None:
    context.set_trailing_metadata((("hyper-error-bin", detail.SerializeToString()),))
    await context.abort(code, detail.brief)


def _ago(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(time.time_ns() - int(seconds * 1e9))
    return moment


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
        chosen = [
            container
            for container in reversed(self._daemon.containers.values())
            if request.all or container.state == pb.CONTAINER_STATE_RUNNING
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
        running = sum(c.state == pb.CONTAINER_STATE_RUNNING for c in self._daemon.containers.values())
        return system_pb2.GetInfoResponse(
            version="0.1.0",
            accelerator="tcg",
            accelerator_reason="KVM: no hello from the agent in 5 s",
            containers=len(self._daemon.containers),
            containers_running=running,
            containers_stopped=len(self._daemon.containers) - running,
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
