# SPDX-License-Identifier: Apache-2.0
"""The agent's messages and our nouns. Plans are encoded as they are; answers are hostile until decoded here.

Every ``decode_`` raises NonsenseError for what breaks the protocol; ``agent_errors`` turns that into ours.
"""

import re
import time
from collections.abc import Iterable

from hyper.agent.v1 import agent_pb2 as pb
from hyperd.guest.failures import NonsenseError, printable
from hyperd.model.guest import (
    AgentHello,
    ContainerId,
    ContainerPlan,
    ContainerStatus,
    ForkIdentity,
    GuestContainerState,
    GuestIdentity,
    GuestMount,
    GuestStats,
    GuestWiring,
    Link,
    OutputChunk,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    ProcessStatus,
    Stream,
    TerminalSize,
)

MAX_CHUNK_BYTES = 64 * 1024
MAX_CONTAINERS = 256  # as many as an agent makes
MAX_PROCESSES = 1025  # of one container: its first, and as many further ones as an agent starts
MAX_LISTED = 16_384  # processes of all containers together
MAX_OFFSET = 2**63 - 1  # what SQLite and Python's file offsets hold
_MAX_PID = 2**22
_MAX_SIGNAL = 64
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_PROCESS_ID = re.compile(r"[A-Za-z0-9_.-]{0,128}")

_STATES = {
    pb.CONTAINER_STATE_CREATED: GuestContainerState.CREATED,
    pb.CONTAINER_STATE_RUNNING: GuestContainerState.RUNNING,
    pb.CONTAINER_STATE_EXITED: GuestContainerState.EXITED,
}
_STREAMS = {pb.STREAM_STDOUT: Stream.STDOUT, pb.STREAM_STDERR: Stream.STDERR}


def encode_identity(identity: GuestIdentity) -> pb.ConfigureGuestRequest:
    """With the host's clock as it is now."""
    return pb.ConfigureGuestRequest(
        hostname=identity.hostname,
        wall_clock_unix_ns=time.time_ns(),
        entropy=identity.entropy,
        links=[_encode_link(link) for link in identity.links],
        dns=pb.Dns(
            servers=identity.dns_servers, searches=identity.dns_searches, options=identity.dns_options
        ),
        hosts=[pb.HostEntry(address=entry.address, names=entry.names) for entry in identity.hosts],
        sysctls=identity.sysctls,
        machine_id=identity.machine_id,
        boot_id=identity.boot_id,
        containers=[
            pb.ContainerIdentity(container_id=container.container_id, hostname=container.hostname)
            for container in identity.containers
        ],
        fork=_encode_fork(identity.fork) if identity.fork is not None else None,
    )


def encode_wiring(wiring: GuestWiring) -> pb.RewireGuestRequest:
    return pb.RewireGuestRequest(
        links=[_encode_link(link) for link in wiring.links],
        dns=pb.Dns(servers=wiring.dns_servers, searches=wiring.dns_searches, options=wiring.dns_options),
        hosts=[pb.HostEntry(address=entry.address, names=entry.names) for entry in wiring.hosts],
    )


def _encode_fork(fork: ForkIdentity) -> pb.ForkIdentity:
    return pb.ForkIdentity(index=fork.index, count=fork.count, env=fork.env)


def _encode_link(link: Link) -> pb.Link:
    return pb.Link(
        mac=link.mac,
        name=link.name,
        addresses=link.addresses,
        routes=[pb.Route(destination=route.destination, gateway=route.gateway) for route in link.routes],
        mtu=link.mtu,
    )


def encode_root(plan: ContainerPlan) -> pb.RootFilesystem:
    root = pb.RootFilesystem(
        layers=[
            pb.Layer(disk_serial=layer.disk_serial, partition=layer.partition, filesystem=layer.filesystem)
            for layer in plan.layers
        ],
        readonly=plan.readonly_root,
    )
    if plan.writable is not None:
        root.writable.CopyFrom(
            pb.WritableLayer(
                disk_serial=plan.writable.disk_serial,
                filesystem=plan.writable.filesystem,
                directory=plan.writable.directory,
            )
        )
    return root


def encode_container(plan: ContainerPlan) -> pb.CreateContainerRequest:
    return pb.CreateContainerRequest(
        container_id=plan.container_id,
        root=encode_root(plan),
        mounts=[_encode_mount(mount) for mount in plan.mounts],
        process=encode_process(plan.process),
        isolation=pb.Isolation(
            init=plan.init,
            masked_paths=plan.masked_paths,
            readonly_paths=plan.readonly_paths,
            sysctls=plan.sysctls,
            privileged=plan.privileged,
            share_names_with=plan.share_names_with or "",
        ),
        resources=pb.Resources(
            memory_bytes=plan.memory_bytes,
            cpu_quota_us=plan.cpu_quota_us,
            cpu_period_us=plan.cpu_period_us,
            pids_limit=plan.pids_limit,
        ),
        hostname=plan.hostname,
        shm_size_bytes=plan.shm_size_bytes,
    )


def _encode_mount(mount: GuestMount) -> pb.Mount:
    return pb.Mount(
        source=mount.source,
        destination=mount.destination,
        type=mount.type,
        options=mount.options,
        subdirectory=mount.subdirectory,
        copy_image=mount.copy_image,
    )


def encode_process(plan: ProcessPlan) -> pb.ProcessSpec:
    spec = pb.ProcessSpec(
        args=plan.args,
        env=plan.env,
        working_directory=plan.working_directory,
        user=plan.user,
        additional_groups=plan.additional_groups,
        terminal=plan.terminal,
        stdin=plan.stdin,
        no_new_privileges=plan.no_new_privileges,
        rlimits=[pb.Rlimit(name=limit.name, soft=limit.soft, hard=limit.hard) for limit in plan.rlimits],
        seccomp=pb.SECCOMP_MODE_UNCONFINED if plan.seccomp_unconfined else pb.SECCOMP_MODE_DEFAULT,
    )
    if plan.terminal_size is not None:
        spec.terminal_size.CopyFrom(encode_size(plan.terminal_size))
    if plan.capabilities is not None:
        spec.capabilities.CopyFrom(pb.Capabilities(names=plan.capabilities))
    return spec


def encode_size(size: TerminalSize) -> pb.TerminalSize:
    return pb.TerminalSize(columns=size.columns, rows=size.rows)


def decode_hello(response: pb.HelloResponse) -> AgentHello:
    return AgentHello(
        agent_version=printable(response.agent_version, 64),
        kernel_release=printable(response.kernel_release, 128),
        uptime_ms=_bounded(response.uptime_ms),
    )


def decode_pid(pid: int) -> int:
    if not 0 < pid <= _MAX_PID:
        raise NonsenseError(f"pid {pid}")
    return pid


def decode_exit(status: pb.ExitStatus) -> ProcessExit:
    if not 0 <= status.code <= 255 or not 0 <= status.signal <= _MAX_SIGNAL:
        raise NonsenseError(f"exit code {status.code}, signal {status.signal}")
    return ProcessExit(status.code, status.signal, status.oom_killed, printable(status.start_error))


def decode_containers(response: pb.ListContainersResponse) -> list[ContainerStatus]:
    if len(response.containers) > MAX_CONTAINERS:
        raise NonsenseError(f"{len(response.containers)} containers")
    listed = sum(len(status.processes) for status in response.containers)
    if listed > MAX_LISTED:
        raise NonsenseError(f"{listed} processes")
    containers = [_decode_container(status) for status in response.containers]
    _require_distinct(container.container_id for container in containers)
    return containers


def _decode_container(status: pb.ContainerStatus) -> ContainerStatus:
    if not _CONTAINER_ID.fullmatch(status.container_id):
        raise NonsenseError(f"container id {printable(status.container_id, 80)!r}")
    state = _STATES.get(status.state)
    if state is None:
        raise NonsenseError(f"container state {status.state}")
    if len(status.processes) > MAX_PROCESSES:
        raise NonsenseError(f"{len(status.processes)} processes")
    processes = tuple(_decode_process(process) for process in status.processes)
    _require_distinct(process.process_id for process in processes)
    return ContainerStatus(ContainerId(status.container_id), state, processes)


def _decode_process(status: pb.ProcessStatus) -> ProcessStatus:
    if not _PROCESS_ID.fullmatch(status.process_id):
        raise NonsenseError(f"process id {printable(status.process_id, 80)!r}")
    if status.running == status.HasField("exit"):
        raise NonsenseError("a process that runs and has exited, or neither")
    return ProcessStatus(
        process_id=ProcessId(status.process_id),
        pid=status.pid if status.pid <= _MAX_PID else 0,
        running=status.running,
        exit=decode_exit(status.exit) if status.HasField("exit") else None,
        output_end_offset=decode_offset(status.output_end_offset),
        output_start_offset=_decode_start(status),
    )


def _decode_start(status: pb.ProcessStatus) -> int:
    if status.output_start_offset > status.output_end_offset:
        raise NonsenseError(f"output from {status.output_start_offset} to {status.output_end_offset}")
    return status.output_start_offset


def _require_distinct(ids: Iterable[str]) -> None:
    listed = list(ids)
    if len(listed) != len(set(listed)):
        raise NonsenseError("an id that occurs twice")


def decode_offset(offset: int) -> int:
    if offset > MAX_OFFSET:
        raise NonsenseError(f"offset {offset}")
    return offset


def decode_chunk(response: pb.ReadOutputResponse, expected_offset: int) -> OutputChunk:
    """The chunk that continues at ``expected_offset``: no gap, nothing twice."""
    if response.offset != expected_offset:
        raise NonsenseError(f"output at offset {response.offset} instead of {expected_offset}")
    stream = _STREAMS.get(response.stream)
    if stream is None:
        raise NonsenseError(f"output of stream {response.stream}")
    if not 0 < len(response.data) <= MAX_CHUNK_BYTES:
        raise NonsenseError(f"{len(response.data)} bytes of output at once")
    decode_offset(response.offset + len(response.data))
    return OutputChunk(response.offset, stream, response.data)


def decode_stats(response: pb.GetStatsResponse) -> GuestStats:
    return GuestStats(
        cpu_usage_ns=_bounded(response.cpu_usage_ns),
        memory_usage_bytes=_bounded(response.memory_usage_bytes),
        memory_limit_bytes=_bounded(response.memory_limit_bytes),
        pids=_bounded(response.pids),
        io_read_bytes=_bounded(response.io_read_bytes),
        io_write_bytes=_bounded(response.io_write_bytes),
        agent_rss_bytes=_bounded(response.agent_rss_bytes),
    )


def _bounded(count: int) -> int:
    return min(count, MAX_OFFSET)
