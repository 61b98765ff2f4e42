# SPDX-License-Identifier: Apache-2.0
"""Between the wire and the model: every message is taken apart and put together here."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from hyper.v1 import container_pb2 as wire
from hyper.v1 import snapshot_pb2, system_pb2
from hyperd.api import ports
from hyperd.api.mounts import decode_mount, encode_mount
from hyperd.errors import InvalidError
from hyperd.model.container import (
    ContainerLink,
    ContainerSpec,
    ContainerState,
    ContainerView,
    ExecSpec,
    Exit,
    ExitReason,
    Ulimit,
)
from hyperd.model.guest import Stream, TerminalSize
from hyperd.model.host import CheckLevel, HostCheck
from hyperd.model.network import DEFAULT_NETWORK, Attachment, Endpoint
from hyperd.model.policy import require_rate
from hyperd.model.snapshot import Snapshot
from hyperd.sandbox import CloneOptions, LogEntry

_STATES = {state: wire.ContainerState.Value(f"CONTAINER_STATE_{state.name}") for state in ContainerState}
_REASONS = {reason: wire.ExitReason.Value(f"EXIT_REASON_{reason.name}") for reason in ExitReason}
_STREAMS = {Stream.STDOUT: wire.STREAM_STDOUT, Stream.STDERR: wire.STREAM_STDERR}
LISTING_BYTES = 1 << 20  # of one message of a listing, and one container more
_LEVELS = {level: system_pb2.CheckLevel.Value(f"CHECK_LEVEL_{level.name}") for level in CheckLevel}


def decode_spec(message: wire.ContainerSpec) -> ContainerSpec:
    """Raises InvalidError for what no container can be made of."""
    if not message.image:
        raise InvalidError("no image was given")
    return ContainerSpec(
        image=message.image,
        name=message.name,
        args=tuple(message.args),
        entrypoint=tuple(message.entrypoint) if message.override_entrypoint else None,
        env=tuple(message.env),
        working_directory=message.working_directory,
        user=message.user,
        hostname=message.hostname,
        labels=dict(message.labels),
        tty=message.tty,
        stdin=message.stdin,
        cpus=message.cpus,
        memory_bytes=message.memory_bytes,
        readonly_root=message.readonly_root,
        cap_add=tuple(message.cap_add),
        cap_drop=tuple(message.cap_drop),
        privileged=message.privileged,
        ulimits=tuple(Ulimit(item.name, item.soft, item.hard) for item in message.ulimits),
        sysctls=dict(message.sysctls),
        tmpfs=dict(message.tmpfs),
        shm_size_bytes=message.shm_size_bytes,
        stop_signal=message.stop_signal,
        stop_timeout_s=message.stop_timeout_s if message.HasField("stop_timeout_s") else None,
        init=message.init,
        platform=message.platform,
        network="" if message.network == "default" else message.network,
        auto_remove=message.auto_remove,
        no_new_privileges=message.no_new_privileges,
        seccomp_unconfined=message.seccomp_unconfined,
        additional_groups=tuple(message.additional_groups),
        extra_hosts=tuple(message.extra_hosts),
        dns_servers=tuple(message.dns_servers),
        dns_searches=tuple(message.dns_searches),
        dns_options=tuple(message.dns_options),
        pids_limit=message.pids_limit,
        terminal_size=decode_size(message.terminal_size) if message.HasField("terminal_size") else None,
        mounts=tuple(decode_mount(item) for item in message.mounts),
        volumes_from=tuple(message.volumes_from),
        writable_size_bytes=message.writable_size_bytes,
        ports=ports.decode_requests(message.ports),
        publish_all=message.publish_all,
        expose=tuple(message.expose),
        address=message.address,
        network_aliases=tuple(message.network_aliases),
        mac_address=message.mac_address,
        gateway_priority=message.gateway_priority,
        networks=tuple(decode_endpoint(item) for item in message.networks),
        links=tuple(_decode_link(item) for item in message.links),
        address6=message.address6,
        egress=message.egress,
        security_groups=tuple(dict.fromkeys(message.security_groups)),
        network_rate_in=require_rate(message.network_rate_in, "--network-rate-in"),
        network_rate_out=require_rate(message.network_rate_out, "--network-rate-out"),
    )


def encode_spec(spec: ContainerSpec) -> wire.ContainerSpec:
    message = wire.ContainerSpec(
        image=spec.image,
        name=spec.name,
        args=spec.args,
        entrypoint=spec.entrypoint or (),
        override_entrypoint=spec.entrypoint is not None,
        env=spec.env,
        working_directory=spec.working_directory,
        user=spec.user,
        hostname=spec.hostname,
        labels=spec.labels,
        tty=spec.tty,
        stdin=spec.stdin,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes,
        readonly_root=spec.readonly_root,
        cap_add=spec.cap_add,
        cap_drop=spec.cap_drop,
        privileged=spec.privileged,
        ulimits=[wire.Ulimit(name=item.name, soft=item.soft, hard=item.hard) for item in spec.ulimits],
        sysctls=spec.sysctls,
        tmpfs=spec.tmpfs,
        shm_size_bytes=spec.shm_size_bytes,
        stop_signal=spec.stop_signal,
        init=spec.init,
        platform=spec.platform,
        network=spec.network,
        auto_remove=spec.auto_remove,
        no_new_privileges=spec.no_new_privileges,
        seccomp_unconfined=spec.seccomp_unconfined,
        additional_groups=spec.additional_groups,
        extra_hosts=spec.extra_hosts,
        dns_servers=spec.dns_servers,
        dns_searches=spec.dns_searches,
        dns_options=spec.dns_options,
        pids_limit=spec.pids_limit,
        mounts=[encode_mount(mount) for mount in spec.mounts],
        volumes_from=spec.volumes_from,
        writable_size_bytes=spec.writable_size_bytes,
        ports=ports.encode_requests(spec.ports),
        publish_all=spec.publish_all,
        expose=spec.expose,
        address=spec.address,
        network_aliases=spec.network_aliases,
        mac_address=spec.mac_address,
        gateway_priority=spec.gateway_priority,
        networks=[_encode_endpoint(endpoint) for endpoint in spec.networks],
        links=[f"{link.target}:{link.alias}" for link in spec.links],
        address6=spec.address6,
        egress=spec.egress,
        security_groups=spec.security_groups,
        network_rate_in=spec.network_rate_in,
        network_rate_out=spec.network_rate_out,
    )
    if spec.stop_timeout_s is not None:
        message.stop_timeout_s = spec.stop_timeout_s
    if spec.terminal_size is not None:
        message.terminal_size.columns = spec.terminal_size.columns
        message.terminal_size.rows = spec.terminal_size.rows
    return message


def decode_exec(message: wire.ExecOptions) -> ExecSpec:
    return ExecSpec(
        args=tuple(message.args),
        env=tuple(message.env),
        working_directory=message.working_directory,
        user=message.user,
        tty=message.tty,
        stdin=message.stdin,
        privileged=message.privileged,
        terminal_size=decode_size(message.terminal_size) if message.HasField("terminal_size") else None,
    )


def decode_size(message: wire.TerminalSize) -> TerminalSize:
    return TerminalSize(min(message.columns, 0xFFFF), min(message.rows, 0xFFFF))


def encode_listing(views: Iterable[ContainerView]) -> Iterator[wire.ListContainersResponse]:
    """In messages far below what one may be, however many there are. At least one: older clients wait for it."""
    message, size = wire.ListContainersResponse(), 0
    for view in views:
        container = encode_container(view)
        message.containers.append(container)
        size += container.ByteSize()
        if size >= LISTING_BYTES:
            yield message
            message, size = wire.ListContainersResponse(), 0
    yield message


def encode_container(view: ContainerView) -> wire.Container:
    record = view.record
    message = wire.Container(
        id=record.sandbox_id,
        name=record.name,
        image=record.spec.image,
        image_id=record.image_id,
        command=record.command,
        spec=encode_spec(record.spec),
        state=_STATES[view.state],
        exit=encode_exit(view.exit) if view.exit else None,
        created_at=encode_time(record.created_at),
        started_at=encode_time(view.started_at),
        finished_at=encode_time(view.finished_at),
        vm_pid=view.vm_pid,
        guest_pid=view.guest_pid,
        accelerator=view.accelerator,
        vcpus=record.sizing.vcpus,
        memory_mib=record.sizing.memory_mib,
        generation=view.generation,
        log_path=view.log_path,
        guest_kernel=view.guest_kernel,
        start_ms=view.start_ms,
        trouble=view.trouble,
        ports=ports.encode_published(view.ports),
    )
    if view.start is not None:
        message.start.path = view.start.path.value
        message.start.note = view.start.note
        for name, duration_ms in view.start.phases_ms.items():
            message.start.phases.add(name=name, duration_ms=duration_ms)
    message.networks.extend(encode_attachment(attachment) for attachment in view.attachments)
    return message


def _decode_link(text: str) -> ContainerLink:
    target, colon, alias = text.partition(":")
    if not target or (colon and not alias):
        raise InvalidError("is not CONTAINER[:ALIAS]", subject=f"--link {text!r}")
    return ContainerLink(target, alias)


def decode_endpoint(message: wire.NetworkEndpoint) -> Endpoint:
    return Endpoint(
        network=DEFAULT_NETWORK if message.network in ("", "default") else message.network,
        address=message.address,
        aliases=tuple(message.aliases),
        mac_address=message.mac_address,
        gateway_priority=message.gateway_priority,
        address6=message.address6,
    )


def _encode_endpoint(endpoint: Endpoint) -> wire.NetworkEndpoint:
    return wire.NetworkEndpoint(
        network=endpoint.network,
        address=endpoint.address,
        aliases=endpoint.aliases,
        mac_address=endpoint.mac_address,
        gateway_priority=endpoint.gateway_priority,
        address6=endpoint.address6,
    )


def encode_attachment(attachment: Attachment) -> wire.NetworkAttachment:
    return wire.NetworkAttachment(
        network=attachment.network,
        mac=attachment.mac,
        address=attachment.address,
        prefix_length=attachment.prefix_length,
        gateway=attachment.gateway,
        address6=attachment.address6,
        prefix_length6=attachment.prefix_length6,
        gateway6=attachment.gateway6,
    )


def decode_clone_options(message: wire.CloneOptions) -> CloneOptions:
    return CloneOptions(
        count=message.count or 1,
        name=message.name,
        env=tuple(message.env),
        labels=dict(message.labels),
        network="" if message.network == "default" else message.network,
        auto_remove=message.auto_remove,
    )


def encode_clones(views: Sequence[ContainerView]) -> list[wire.Clone]:
    """In the order of their index."""
    return [
        wire.Clone(container_id=view.record.sandbox_id, name=view.record.name, index=index)
        for index, view in enumerate(views)
    ]


def encode_exit(exit_: Exit) -> wire.ExitStatus:
    return wire.ExitStatus(
        code=exit_.code, signal=exit_.signal, reason=_REASONS[exit_.reason], message=exit_.message
    )


def encode_log_entry(entry: LogEntry) -> wire.ReadLogsResponse:
    time = Timestamp()
    time.FromNanoseconds(entry.time_ns)
    return wire.ReadLogsResponse(time=time, stream=_STREAMS[entry.stream], data=entry.data)


def encode_snapshot(snapshot: Snapshot) -> snapshot_pb2.Snapshot:
    manifest = snapshot.manifest
    source = manifest.source
    return snapshot_pb2.Snapshot(
        id=manifest.snapshot_id,
        name=manifest.name,
        created_at=encode_time(manifest.created_at),
        size_bytes=sum(file.size_bytes for file in manifest.files),
        allocated_bytes=snapshot.allocated_bytes,
        compatibility=snapshot_pb2.Compatibility(**dataclasses.asdict(manifest.compatibility)),
        files=[
            snapshot_pb2.SavedFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in manifest.files
        ],
        source_container_id=source.get("container_id", ""),
        source_name=source.get("name", ""),
        image=source.get("image", ""),
        image_id=source.get("image_id", ""),
        pause_ms=kept_number(source.get("pause_ms", "")),
        last_used_at=encode_time(snapshot.last_used_at),
    )


def kept_number(text: str, most: int = 0xFFFF_FFFF) -> int:
    """Of a manifest, which may come from anywhere: what is no number that the wire has room for is 0."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return 0
    number = int(text)
    return number if number <= most else 0


def encode_check(check: HostCheck) -> system_pb2.HostCheck:
    return system_pb2.HostCheck(
        name=check.name, level=_LEVELS[check.level], finding=check.finding, advice=check.advice
    )


def encode_time(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment.astimezone(UTC))
    return message
