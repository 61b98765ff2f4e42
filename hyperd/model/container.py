# SPDX-License-Identifier: Apache-2.0
"""What a user asks for, and what became of it."""

import enum
from dataclasses import dataclass, field
from datetime import datetime

from hyperd.model.guest import ContainerId, TerminalSize
from hyperd.model.image import ImageId
from hyperd.model.network import Attachment, Endpoint, PortRequest, PublishedPort, way_out
from hyperd.model.vm import SandboxId
from hyperd.model.volume import Mount

DEFAULT_STOP_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Ulimit:
    name: str  # nofile, nproc, ...
    soft: int  # -1 = unlimited
    hard: int


@dataclass(frozen=True, slots=True)
class ContainerLink:
    """Another container that this one is told of."""

    target: str  # of a container that exists: the other's id; until then as it was called
    alias: str = ""  # "" = as it was called


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container as asked for; empty means the image's or the daemon's default. See container.proto."""

    image: str
    name: str = ""
    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = field(default=(), repr=False)
    working_directory: str = ""
    user: str = ""
    hostname: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    tty: bool = False
    stdin: bool = False
    cpus: float = 0.0
    memory_bytes: int = 0
    readonly_root: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    tmpfs: dict[str, str] = field(default_factory=dict)
    shm_size_bytes: int = 0
    stop_signal: str = ""
    stop_timeout_s: int | None = None
    init: bool = False
    platform: str = ""
    network: str = ""
    auto_remove: bool = False
    no_new_privileges: bool = False
    seccomp_unconfined: bool = False
    additional_groups: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    pids_limit: int = 0
    terminal_size: TerminalSize | None = None
    mounts: tuple[Mount, ...] = ()  # of a container that exists: all, those of its image and others' too
    volumes_from: tuple[str, ...] = ()  # CONTAINER[:ro|:rw]
    writable_size_bytes: int = 0  # 0: the daemon's default
    ports: tuple[PortRequest, ...] = ()
    publish_all: bool = False
    expose: tuple[str, ...] = ()  # PORT[-PORT][/PROTOCOL], the image's among them
    address: str = ""  # of the network's subnet
    network_aliases: tuple[str, ...] = ()
    mac_address: str = ""
    gateway_priority: int = 0
    networks: tuple[Endpoint, ...] = ()  # beside the one that ``network`` names
    links: tuple[ContainerLink, ...] = ()
    address6: str = ""
    egress: str = ""  # none, allow-all, or a document; as it was when this was made
    security_groups: tuple[str, ...] = ()  # so, too
    network_rate_in: int = 0  # bytes a second; 0: as many as there are
    network_rate_out: int = 0


@dataclass(frozen=True, slots=True)
class ExecSpec:
    args: tuple[str, ...]
    env: tuple[str, ...] = field(default=(), repr=False)
    working_directory: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    privileged: bool = False
    terminal_size: TerminalSize | None = None


class ExitReason(enum.StrEnum):
    EXITED = "exited"
    STOPPED = "stopped"
    OOM = "oom"
    GUEST_PANIC = "guest_panic"
    VM_LOST = "vm_lost"
    START_FAILED = "start_failed"
    AGENT_LOST = "agent_lost"
    CARRIER_ENDED = "carrier_ended"  # the container in whose VM it ran


@dataclass(frozen=True, slots=True)
class Exit:
    code: int  # 0-255; 128+signal; 125 when hyper itself failed
    reason: ExitReason
    signal: int = 0
    message: str = ""


class ContainerState(enum.StrEnum):
    """The states by name; what exists in each is in sandbox/machine.py."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"
    PAUSED = "paused"
    HIBERNATED = "hibernated"
    REMOVING = "removing"
    FAILED = "failed"


class StartPath(enum.StrEnum):
    """How a VM came to run."""

    SPARE = "spare"  # from a template, before anybody asked for it
    TEMPLATE = "template"
    COLD = "cold"
    SNAPSHOT = "snapshot"
    JOINED = "joined"  # another container's, which ran


@dataclass(frozen=True, slots=True)
class StartReport:
    path: StartPath = StartPath.COLD
    note: str = ""  # why a faster path was not taken
    phases_ms: dict[str, int] = field(default_factory=dict)  # in order; those that ran side by side overlap


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a sandbox takes of the host."""

    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """What is settled when a container is created and never changes."""

    sandbox_id: SandboxId
    name: str
    spec: ContainerSpec
    image_id: ImageId
    command: tuple[str, ...]
    sizing: Sizing
    created_at: datetime
    container_id: ContainerId | None = (
        None  # in the guest, where it is not the sandbox's: a clone keeps its source's
    )


@dataclass(frozen=True, slots=True)
class ContainerView:
    """A container as shown to the outside at one moment."""

    record: ContainerRecord
    state: ContainerState
    generation: int
    exit: Exit | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    vm_pid: int = 0
    guest_pid: int = 0
    accelerator: str = ""
    guest_kernel: str = ""
    start_ms: int = 0
    start: StartReport | None = None
    attachments: tuple[Attachment, ...] = ()
    log_path: str = ""
    trouble: str = ""  # why the agent cannot be reached, while the VM runs
    ports: tuple[PublishedPort, ...] = ()

    @property
    def attachment(self) -> Attachment | None:
        """The one with the default route."""
        return way_out(self.attachments)

    def attachment_of(self, network: str) -> Attachment | None:
        return next((attachment for attachment in self.attachments if attachment.network == network), None)
