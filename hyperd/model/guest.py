# SPDX-License-Identifier: Apache-2.0
"""What hyperd asks of a guest, and what it hears back. Everything heard is hostile until bounded."""

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import NewType

ContainerId = NewType("ContainerId", str)  # 64 hexadecimal digits
ProcessId = NewType("ProcessId", str)  # "" is a container's first process

FIRST_PROCESS = ProcessId("")


@dataclass(frozen=True, slots=True)
class AgentHello:
    agent_version: str
    kernel_release: str
    uptime_ms: int


@dataclass(frozen=True, slots=True)
class Route:
    destination: str  # CIDR
    gateway: str  # "" for a link-scope route


@dataclass(frozen=True, slots=True)
class Link:
    mac: str
    name: str
    addresses: tuple[str, ...]  # CIDR
    routes: tuple[Route, ...]
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class HostEntry:
    address: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContainerIdentity:
    """A new identity for a container that a clone was born with."""

    container_id: ContainerId
    hostname: str


@dataclass(frozen=True, slots=True)
class ForkIdentity:
    """What /run/hyper/forkpoint returns with in this clone."""

    index: int  # from 0
    count: int
    env: tuple[str, ...] = field(default=(), repr=False)  # KEY=VALUE


@dataclass(frozen=True, slots=True)
class GuestWiring:
    """All links that a guest has, and how it finds names."""

    links: tuple[Link, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    hosts: tuple[HostEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestIdentity:
    hostname: str
    entropy: bytes = field(repr=False)
    links: tuple[Link, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    hosts: tuple[HostEntry, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    machine_id: str = ""  # 32 hexadecimal digits; of containers made from now on, and of those that exist
    boot_id: str = ""  # a UUID, as containers see it
    containers: tuple[
        ContainerIdentity, ...
    ] = ()  # those that a clone was born with; unknown ones are an error
    fork: ForkIdentity | None = None


@dataclass(frozen=True, slots=True)
class TerminalSize:
    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Rlimit:
    name: str  # RLIMIT_NOFILE
    soft: int  # 2**64-1 = unlimited
    hard: int


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    args: tuple[str, ...]
    env: tuple[str, ...] = field(repr=False)
    working_directory: str = ""
    user: str = ""
    additional_groups: tuple[str, ...] = ()
    terminal: bool = False
    terminal_size: TerminalSize | None = None
    stdin: bool = False
    no_new_privileges: bool = False
    rlimits: tuple[Rlimit, ...] = ()
    capabilities: tuple[str, ...] | None = None  # None: Docker's default set
    seccomp_unconfined: bool = False


@dataclass(frozen=True, slots=True)
class LayerSource:
    disk_serial: str
    partition: int
    filesystem: str = "erofs"


@dataclass(frozen=True, slots=True)
class WritableSource:
    disk_serial: str
    directory: str
    filesystem: str = "ext4"


@dataclass(frozen=True, slots=True)
class GuestMount:
    destination: str
    type: str  # tmpfs | bind | block:FSTYPE | virtiofs
    source: str = ""
    options: tuple[str, ...] = ()
    subdirectory: str = ""  # block, virtiofs: what of it is mounted
    copy_image: bool = False  # block: filled with what the image has there when it is empty


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """All the agent needs to make one container; see agent.proto CreateContainerRequest."""

    container_id: ContainerId
    layers: tuple[LayerSource, ...]
    writable: WritableSource | None
    readonly_root: bool
    process: ProcessPlan
    hostname: str = ""
    mounts: tuple[GuestMount, ...] = ()
    init: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    privileged: bool = False
    shm_size_bytes: int = 0
    share_names_with: ContainerId | None = None  # whose hosts, hostname and resolv.conf are this one's, too
    memory_bytes: int = 0
    cpu_quota_us: int = 0
    cpu_period_us: int = 0
    pids_limit: int = 0

    @property
    def may_copy(self) -> bool:
        """What the image has into its volumes, which may be much: known in the guest alone, where the volumes are."""
        return any(mount.copy_image for mount in self.mounts)


@dataclass(frozen=True, slots=True)
class ProcessExit:
    code: int  # 0-255; 128+signal
    signal: int = 0
    oom_killed: bool = False
    start_error: str = ""  # why it never ran; code is then 125, 126 or 127


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    process_id: ProcessId
    pid: int
    running: bool
    exit: ProcessExit | None
    output_end_offset: int
    output_start_offset: int = 0  # of what the agent still keeps: all before was acknowledged


class GuestContainerState(enum.StrEnum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    container_id: ContainerId
    state: GuestContainerState
    processes: tuple[ProcessStatus, ...]


class Stream(enum.IntEnum):
    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """Bytes of one stream; ``offset`` counts both streams of the process together."""

    offset: int
    stream: Stream
    data: bytes = field(repr=False)

    @property
    def end_offset(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class GuestStats:
    cpu_usage_ns: int
    memory_usage_bytes: int
    memory_limit_bytes: int
    pids: int
    io_read_bytes: int
    io_write_bytes: int
    agent_rss_bytes: int


class ChangeKind(enum.StrEnum):
    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """What a container did to a path of its image."""

    kind: ChangeKind
    path: bytes  # absolute; not necessarily UTF-8


@dataclass(frozen=True, slots=True)
class PathStat:
    name: bytes  # the last part; b"/" for the root
    size_bytes: int
    mode: int  # st_mode
    modified_at: datetime
    link_target: bytes = b""


@dataclass(frozen=True, slots=True)
class WriteOptions:
    path: bytes  # a directory that exists
    keep_owner: bool = False  # else root owns what is written
    no_overwrite_dir_non_dir: bool = False
