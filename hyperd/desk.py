# SPDX-License-Identifier: Apache-2.0
"""Answers questions about the daemon itself: its version, what it stands on, what it found on this host."""

import logging
import os
import platform as python_platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hyper.v1 import system_pb2
from hyperd.config import Config
from hyperd.doctor import cache_check, check_host, network_check, template_check
from hyperd.errors import HyperError, NotFoundError
from hyperd.guest import PROTOCOL_VERSION
from hyperd.host.files import free_bytes
from hyperd.host.workers import Workers
from hyperd.image.base import ImageStore
from hyperd.model.container import ContainerState, Sizing
from hyperd.model.host import HostCheck
from hyperd.model.snapshot import Snapshot, SnapshotKind
from hyperd.model.vm import SandboxId
from hyperd.network import Network
from hyperd.sandbox import AcceleratorChooser, Fleet, Shape, Spares, Templates, is_running
from hyperd.snapshot import SnapshotStore
from hyperd.storage import Storage
from hyperd.vm.libvirt import HypervisorCapabilities

log = logging.getLogger(__name__)

VERSION = "0.1.0"
API_VERSION = "1"
BLOCK_BYTES = 512  # st_blocks counts these, whatever the file system has


@dataclass(frozen=True, slots=True)
class Desk:
    config: Config
    capabilities: HypervisorCapabilities
    hypervisor_uri: str
    chooser: AcceleratorChooser
    fleet: Fleet
    images: ImageStore
    network: Network
    templates: Templates
    spares: Spares
    storage: Storage
    snapshots: SnapshotStore
    files: Workers
    guest_kernel: str = ""  # its release

    @property
    def default_sizing(self) -> Sizing:
        return Sizing(self.config.vm.default_vcpus, self.config.vm.default_memory_mib)

    async def warm_up(self) -> None:
        """Choose the accelerator, build the template that most start from, keep spares: before the first user comes."""
        try:
            accelerator = await self.chooser.choose()
        except HyperError as error:
            log.error("no accelerator", extra={"error": str(error)})  # noqa: TRY400 - each start says it again
            return
        shape = Shape(self.default_sizing, has_nic=True, accelerator=accelerator)
        offer = await self.templates.offer(shape)
        if offer.snapshot is None:
            log.info("template", extra={"note": offer.note})
        self.spares.begin(shape)

    async def build_templates(self, vcpus: int, memory_mib: int) -> list[Snapshot]:
        """With a network and without. 0: the default. Raises as ``Templates.build``."""
        default = self.default_sizing
        sizing = Sizing(vcpus or default.vcpus, memory_mib or default.memory_mib)
        accelerator = await self.chooser.choose()
        return [await self.templates.build(Shape(sizing, has_nic, accelerator)) for has_nic in (True, False)]

    def version(self) -> system_pb2.GetVersionResponse:
        return system_pb2.GetVersionResponse(
            version=VERSION,
            api_version=API_VERSION,
            agent_protocol_version=PROTOCOL_VERSION,
            python_version=python_platform.python_version(),
            qemu_version=self.capabilities.qemu_version,
            libvirt_version=self.capabilities.libvirt_version,
            guest_kernel=self.guest_kernel,
            host_kernel=python_platform.release(),
            architecture=python_platform.machine(),
        )

    async def info(self) -> system_pb2.GetInfoResponse:
        config = self.config
        views = self.fleet.list_views((), everything=True)
        paused = sum(view.state is ContainerState.PAUSED for view in views)
        running = sum(is_running(view) for view in views) - paused
        choice = self.chooser.choice
        usage = await self.files.call(os.statvfs, config.daemon.state_dir)
        return system_pb2.GetInfoResponse(
            version=VERSION,
            accelerator=choice.accelerator.value if choice else "",
            accelerator_reason=choice.reason if choice else "the probe has not ended yet",
            containers=len(views),
            containers_running=running,
            containers_paused=paused,
            containers_stopped=len(views) - running - paused,
            images=len(await self.images.list_images()),
            state_dir=str(config.daemon.state_dir),
            run_dir=str(config.daemon.run_dir),
            hypervisor_uri=self.hypervisor_uri,
            kernel_path=str(config.vm.kernel.resolve()),
            initramfs_path=str(config.vm.initramfs.resolve()),
            qemu_user=config.vm.qemu_user,
            cpus=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            host_kernel=python_platform.release(),
            operating_system=_operating_system(),
            state_free_bytes=usage.f_bavail * usage.f_frsize,
            pid=os.getpid(),
            default_memory_mib=config.vm.default_memory_mib,
            default_vcpus=config.vm.default_vcpus,
            bridge=config.network.bridge,
            subnet=config.network.subnet,
            network_trouble=str(self.network.trouble or ""),
            spares=self.config.template.spares,
            spares_ready=len(self.spares.ready),
        )

    async def disk_usage(self) -> system_pb2.GetDiskUsageResponse:
        """What takes room on the disk, in allocated blocks: a guest's disk is sparse, a clone's shares what it can."""
        views = self.fleet.list_views((), everything=True)
        users = Counter(view.record.image_id for view in views)
        images = await self.images.usage()
        answer = system_pb2.GetDiskUsageResponse(
            images=[
                system_pb2.ImageUsage(
                    id=usage.image_id,
                    tags=usage.tags,
                    shared_bytes=usage.shared_bytes,
                    unique_bytes=usage.unique_bytes,
                    containers=users[usage.image_id],
                )
                for usage in images.images
            ],
            layers_bytes=images.layers_bytes,
            unowned_bytes=images.unowned_bytes,
            free_bytes=await self.files.call(free_bytes, self.config.daemon.state_dir),
            snapshots=[
                system_pb2.SnapshotUsage(
                    id=saved.manifest.snapshot_id,
                    kind=kind.value,
                    name=saved.manifest.name,
                    bytes=saved.allocated_bytes,
                )
                for kind in SnapshotKind
                for saved in self.snapshots.list(kind)
            ],
        )
        if images.budget.high_bytes:
            answer.image_budget.CopyFrom(
                system_pb2.ImageBudget(
                    high_bytes=images.budget.high_bytes,
                    low_bytes=images.budget.low_bytes,
                    removed=images.budget.removed,
                    removed_bytes=images.budget.removed_bytes,
                )
            )
        for volume in await self.fleet.volumes.list():
            answer.volumes.add(
                name=volume.volume.name,
                bytes=volume.allocated_bytes,
                containers=len(volume.users),
                attached=sum(user.attached for user in volume.users),
                size_bytes=0 if volume.volume.server else volume.volume.size_bytes,
            )
        for copy in await self.fleet.volumes.snapshots.list():
            answer.snapshots.add(
                id=copy.snapshot_id, kind="volume", name=copy.name, bytes=copy.allocated_bytes
            )
        for view in views:
            size_bytes, writable_bytes = await self._writable_disk(view.record.sandbox_id)
            answer.containers.add(
                id=view.record.sandbox_id,
                name=view.record.name,
                writable_bytes=writable_bytes,
                writable_size_bytes=size_bytes,
                log_bytes=await self._log_bytes(view.log_path),
                running=is_running(view),
            )
        return answer

    async def _writable_disk(self, sandbox_id: SandboxId) -> tuple[int, int]:
        """How large it is, and what of that is there."""
        try:
            path = await self.storage.writable_path(sandbox_id)
        except NotFoundError:  # not started yet, or removed meanwhile
            return 0, 0
        return await self.files.call(_sizes, path)

    async def _log_bytes(self, log_path: str) -> int:
        return await self.files.call(_files_bytes, Path(log_path).parent) if log_path else 0

    async def checks(self) -> list[HostCheck]:
        return [
            *await check_host(self.config, self.chooser.choice),
            cache_check(asked_anew=self.capabilities.asked_anew),
            network_check(self.network),
            template_check(self.config, self.templates),
        ]


def _sizes(path: Path) -> tuple[int, int]:
    """How long, and how much of it is allocated; 0 for what is not there."""
    try:
        about = path.stat(follow_symlinks=False)
    except OSError:
        return 0, 0
    return about.st_size, about.st_blocks * BLOCK_BYTES


def _files_bytes(directory: Path) -> int:
    try:
        return sum(_sizes(path)[1] for path in directory.iterdir())
    except OSError:
        return 0


def _operating_system() -> str:
    try:
        return python_platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
