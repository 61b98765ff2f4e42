# SPDX-License-Identifier: Apache-2.0
"""Messages of the agent's contract, read and written as the agent does it."""

from hyper.agent.v1 import agent_pb2 as pb
from hyperd.model.guest import (
    ContainerId,
    ContainerIdentity,
    ContainerPlan,
    ForkIdentity,
    GuestIdentity,
    GuestMount,
    GuestWiring,
    HostEntry,
    LayerSource,
    Link,
    ProcessExit,
    ProcessPlan,
    Rlimit,
    Route,
    TerminalSize,
    WritableSource,
)


def encode_exit(status: ProcessExit) -> pb.ExitStatus:
    return pb.ExitStatus(
        code=status.code, signal=status.signal, oom_killed=status.oom_killed, start_error=status.start_error
    )


def decode_wiring(request: pb.RewireGuestRequest) -> GuestWiring:
    identity = decode_identity(
        pb.ConfigureGuestRequest(links=request.links, dns=request.dns, hosts=request.hosts)
    )
    return GuestWiring(
        identity.links, identity.dns_servers, identity.dns_searches, identity.dns_options, identity.hosts
    )


def decode_identity(request: pb.ConfigureGuestRequest) -> GuestIdentity:
    return GuestIdentity(
        hostname=request.hostname,
        entropy=request.entropy,
        links=tuple(
            Link(
                link.mac,
                link.name,
                tuple(link.addresses),
                tuple(Route(route.destination, route.gateway) for route in link.routes),
                link.mtu,
            )
            for link in request.links
        ),
        dns_servers=tuple(request.dns.servers),
        dns_searches=tuple(request.dns.searches),
        dns_options=tuple(request.dns.options),
        hosts=tuple(HostEntry(entry.address, tuple(entry.names)) for entry in request.hosts),
        sysctls=dict(request.sysctls),
        machine_id=request.machine_id,
        boot_id=request.boot_id,
        containers=tuple(
            ContainerIdentity(ContainerId(container.container_id), container.hostname)
            for container in request.containers
        ),
        fork=ForkIdentity(request.fork.index, request.fork.count, tuple(request.fork.env))
        if request.HasField("fork")
        else None,
    )


def decode_container(request: pb.CreateContainerRequest) -> ContainerPlan:
    root, isolation, resources = request.root, request.isolation, request.resources
    writable = root.writable
    return ContainerPlan(
        container_id=ContainerId(request.container_id),
        layers=tuple(
            LayerSource(layer.disk_serial, layer.partition, layer.filesystem) for layer in root.layers
        ),
        writable=WritableSource(writable.disk_serial, writable.directory, writable.filesystem)
        if root.HasField("writable")
        else None,
        readonly_root=root.readonly,
        share_names_with=ContainerId(isolation.share_names_with) if isolation.share_names_with else None,
        process=decode_process(request.process),
        hostname=request.hostname,
        mounts=tuple(
            GuestMount(mount.destination, mount.type, mount.source, tuple(mount.options))
            for mount in request.mounts
        ),
        init=isolation.init,
        masked_paths=tuple(isolation.masked_paths),
        readonly_paths=tuple(isolation.readonly_paths),
        sysctls=dict(isolation.sysctls),
        privileged=isolation.privileged,
        shm_size_bytes=request.shm_size_bytes,
        memory_bytes=resources.memory_bytes,
        cpu_quota_us=resources.cpu_quota_us,
        cpu_period_us=resources.cpu_period_us,
        pids_limit=resources.pids_limit,
    )


def decode_process(spec: pb.ProcessSpec) -> ProcessPlan:
    size = spec.terminal_size
    return ProcessPlan(
        args=tuple(spec.args),
        env=tuple(spec.env),
        working_directory=spec.working_directory,
        user=spec.user,
        additional_groups=tuple(spec.additional_groups),
        terminal=spec.terminal,
        terminal_size=TerminalSize(size.columns, size.rows) if spec.HasField("terminal_size") else None,
        stdin=spec.stdin,
        no_new_privileges=spec.no_new_privileges,
        rlimits=tuple(Rlimit(limit.name, limit.soft, limit.hard) for limit in spec.rlimits),
        capabilities=tuple(spec.capabilities.names) if spec.HasField("capabilities") else None,
        seccomp_unconfined=spec.seccomp == pb.SECCOMP_MODE_UNCONFINED,
    )
