# SPDX-License-Identifier: Apache-2.0
"""What the hyperd without machines knows, and how its services refuse."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from hyper.v1 import container_pb2 as pb
from hyper.v1 import image_pb2, network_pb2, snapshot_pb2, system_pb2, volume_pb2
from tests.fakes.programs import FakeProcess

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
HANG_UP_S = 5  # a caller that only forgot its end is told by an error then
UP = frozenset({pb.CONTAINER_STATE_RUNNING, pb.CONTAINER_STATE_PAUSED})


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass
class FakeDaemon:
    """State and services; ``fail`` scripts failures by method name, ``requests`` has what was asked."""

    images: dict[str, image_pb2.Image] = field(default_factory=dict)
    containers: dict[str, pb.Container] = field(default_factory=dict)
    processes: dict[str, FakeProcess] = field(default_factory=dict)
    execs: dict[str, FakeProcess] = field(default_factory=dict)
    snapshots: dict[str, snapshot_pb2.Snapshot] = field(default_factory=dict)
    templates: dict[str, snapshot_pb2.Snapshot] = field(default_factory=dict)
    volumes: dict[str, volume_pb2.Volume] = field(default_factory=dict)
    networks: dict[str, network_pb2.Network] = field(default_factory=dict)
    filled: dict[str, bytes] = field(default_factory=dict)  # by volume: the tar
    contents: dict[str, bytes] = field(default_factory=dict)  # of snapshots, as they are exported
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
    files: Any = None  # of containers: FakeFiles
    engine: Any = None  # of builds: FakeEngine
    usage: system_pb2.GetDiskUsageResponse = field(default_factory=system_pb2.GetDiskUsageResponse)
    archive: bytes = b"an archive of images" * 100_000  # what a save gives, and a load takes
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # of registries

    def __post_init__(self) -> None:
        from tests.fakes.daemon_build import FakeEngine  # noqa: PLC0415 - so does that
        from tests.fakes.daemon_files import FakeFiles  # noqa: PLC0415 - it builds on this module

        self.stdin_gate.set()
        self.engine = FakeEngine()
        self.files = FakeFiles()

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
            created_at=ago(age_s),
            size_bytes=size_bytes,
            stored_bytes=size_bytes // 2,
            architecture="amd64",
            os="linux",
            config=image_pb2.ImageConfig(env=["PATH=/bin"], cmd=["sh"], labels={"maintainer": "us"}),
            manifest_digest=digest("manifest" + reference),
            diff_ids=[digest("layer 1"), digest("layer 2")],
            layer_bytes=[size_bytes - size_bytes // 3, size_bytes // 3],
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
            created_at=ago(0),
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

    def add_snapshot(
        self, container: pb.Container, name: str = "", *, age_s: int = 0
    ) -> snapshot_pb2.Snapshot:
        snapshot_id = hashlib.sha256(f"snapshot {next(self.ids)}".encode()).hexdigest()
        snapshot = snapshot_pb2.Snapshot(
            id=snapshot_id,
            name=name,
            created_at=ago(age_s),
            size_bytes=10_000_000_000,
            allocated_bytes=45_600_000,
            compatibility=compatibility(layout="disk:image:ro,disk:writable:rw,nic"),
            files=[snapshot_pb2.SavedFile(name="state", size_bytes=268_500_000, sha256="5" * 64)],
            source_container_id=container.id,
            source_name=container.name,
            image=container.image,
            image_id=container.image_id,
            pause_ms=41,
        )
        self.snapshots[snapshot_id] = snapshot
        self.contents[snapshot_id] = snapshot_id.encode() * 50_000  # more than one message
        return snapshot

    def add_volume_snapshot(self, volume: str, name: str) -> snapshot_pb2.Snapshot:
        snapshot = snapshot_pb2.Snapshot(
            id=hashlib.sha256(f"snapshot {next(self.ids)}".encode()).hexdigest(),
            name=name,
            created_at=ago(60),
            size_bytes=10 << 30,
            allocated_bytes=1_400_000,
            volume=volume,
            filesystem="ext4",
            consistency="frozen",
        )
        self.snapshots[snapshot.id] = snapshot
        return snapshot

    def add_template(self, vcpus: int, memory_mib: int, layout: str) -> snapshot_pb2.Snapshot:
        about = f"template {vcpus} {memory_mib} {layout}"
        template = snapshot_pb2.Snapshot(
            id=hashlib.sha256(about.encode()).hexdigest(),
            created_at=ago(120),
            size_bytes=(memory_mib << 20) + 400_000,
            allocated_bytes=39_000_000,
            compatibility=compatibility(vcpus=vcpus, memory_mib=memory_mib, layout=layout),
        )
        return self.templates.setdefault(template.id, template)

    def add_clones(self, source: pb.Container, options: pb.CloneOptions) -> list[pb.Clone]:
        clones = []
        for index in range(options.count):
            spec = pb.ContainerSpec()
            spec.CopyFrom(source.spec)
            several = f"{options.name}-{index}" if options.count > 1 else options.name
            spec.name = several if options.name else ""
            spec.auto_remove = options.auto_remove
            spec.labels.update(options.labels)
            clone = self.add_container(spec)
            self.start_process(clone)
            clones.append(pb.Clone(container_id=clone.id, name=clone.name, index=index))
        return clones

    def find_snapshot(
        self, name: str, among: "dict[str, snapshot_pb2.Snapshot]"
    ) -> snapshot_pb2.Snapshot | None:
        return next((s for s in among.values() if name and (name == s.name or s.id.startswith(name))), None)

    def start_process(self, container: pb.Container) -> FakeProcess:
        process = FakeProcess(list(container.command), tty=container.spec.tty)
        size = container.spec.terminal_size
        process.size = (size.columns, size.rows)
        container.state = pb.CONTAINER_STATE_RUNNING
        container.started_at.CopyFrom(ago(0))
        container.vm_pid = 1000 + len(self.containers)
        container.guest_pid = 7
        container.accelerator = "tcg"
        container.guest_kernel = "6.12.1-hyper"
        container.start_ms = 123
        container.start.CopyFrom(
            pb.StartReport(path="template", phases=[pb.Phase(name="restore", duration_ms=20)])
        )
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
        container.finished_at.CopyFrom(ago(0))
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

    async def require_state(
        self, name: str, context: Context, *states: "pb.ContainerState.ValueType"
    ) -> pb.Container:
        container = await self.require_container(name, context)
        if container.state not in states:
            state = pb.ContainerState.Name(container.state).removeprefix("CONTAINER_STATE_").lower()
            detail = system_pb2.ErrorDetail(brief=f"is {state}", subject=name)
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, detail)
        return container

    async def require_snapshot(
        self,
        name: str,
        context: Context,
        *,
        what: str = "snapshot",
        among: "dict[str, snapshot_pb2.Snapshot] | None" = None,
    ) -> snapshot_pb2.Snapshot:
        snapshot = self.find_snapshot(name, self.snapshots if among is None else among)
        if snapshot is None:
            detail = system_pb2.ErrorDetail(brief=f"no such {what}", subject=name, reason=f"{what}-not-found")
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        assert snapshot is not None
        return snapshot

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


def compatibility(*, vcpus: int = 1, memory_mib: int = 256, layout: str) -> snapshot_pb2.Compatibility:
    return snapshot_pb2.Compatibility(
        qemu_version="10.0.2",
        machine="pc-q35-10.0",
        cpu_model="max",
        accelerator="tcg",
        kernel_sha256="1" * 64,
        initramfs_sha256="2" * 64,
        cmdline="quiet",
        vcpus=vcpus,
        memory_mib=memory_mib,
        layout=layout,
        format=1,
    )


def ago(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(time.time_ns() - int(seconds * 1e9))
    return moment


async def whole(requests: AsyncIterator[Any]) -> bytes:
    """An upload that was sent to its end, and said so."""
    sent = [request async for request in requests]
    if not sent or not sent[-1].end:
        # To grpc.aio who hangs up looks like who has said all, and its call is cancelled a moment later. An error of
        # before finds nobody, and gRPC's words of it come between what a test reads of the standard streams.
        async with asyncio.timeout(HANG_UP_S):
            await asyncio.Event().wait()
    return b"".join(request.data for request in sent)
