# SPDX-License-Identifier: Apache-2.0
"""Containers as Docker shapes them: the rows of `ps` and the documents of `inspect`."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from hyper.v1 import container_pb2 as pb
from hyper.v1 import image_pb2
from hyperctl.mount_shape import local_volumes, mount_documents, mount_names
from hyperctl.names import SHORT_ID, familiar_name
from hyperctl.ports import exposed_ports, port_bindings, port_settings, render_ports
from hyperctl.render import ellipsis, quote, render_duration, render_pairs, render_rfc3339, render_time
from hyperctl.template import OpenMap

COMMAND_CELLS = 20
STATES = {
    pb.CONTAINER_STATE_CREATED: "created",
    pb.CONTAINER_STATE_STARTING: "starting",
    pb.CONTAINER_STATE_RUNNING: "running",
    pb.CONTAINER_STATE_STOPPING: "stopping",
    pb.CONTAINER_STATE_EXITED: "exited",
    pb.CONTAINER_STATE_REMOVING: "removing",
    pb.CONTAINER_STATE_FAILED: "failed",
    pb.CONTAINER_STATE_PAUSED: "paused",
    pb.CONTAINER_STATE_HIBERNATED: "hibernated",
}
UP = frozenset(
    {pb.CONTAINER_STATE_RUNNING, pb.CONTAINER_STATE_STOPPING, pb.CONTAINER_STATE_PAUSED}
)  # as in Docker, one that is paused is running too
WHY_FAILED = {
    pb.EXIT_REASON_GUEST_PANIC: "guest panic",
    pb.EXIT_REASON_VM_LOST: "VM lost",
    pb.EXIT_REASON_START_FAILED: "start failed",
    pb.EXIT_REASON_AGENT_LOST: "agent lost",
    pb.EXIT_REASON_OOM: "OOM",
    pb.EXIT_REASON_CARRIER_ENDED: "joined container ended",
}
CONTAINER_HEADERS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "State": "STATE",
    "Ports": "PORTS",
    "Names": "NAMES",
    "Networks": "NETWORKS",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Size": "SIZE",
    "Platform": "PLATFORM",
}
CONTAINER_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


def render_ago(moment: Timestamp, now_s: float) -> str:
    if not moment.seconds:
        return ""
    return f"{render_duration(now_s - moment.seconds - moment.nanos / 1e9)} ago"


def describe_status(container: pb.Container, now_s: float) -> str:
    """`Up 3 seconds`, `Up 3 minutes (Paused)`, `Exited (0) 2 minutes ago`, `Failed (guest panic) 2 minutes ago`."""
    ended = render_ago(container.finished_at, now_s)
    match container.state:
        case pb.CONTAINER_STATE_RUNNING | pb.CONTAINER_STATE_STOPPING | pb.CONTAINER_STATE_PAUSED:
            up = f"Up {render_ago(container.started_at, now_s).removesuffix(' ago')}".rstrip()
            if container.state == pb.CONTAINER_STATE_PAUSED:
                return f"{up} (Paused)"
            if container.state == pb.CONTAINER_STATE_STOPPING:
                return f"{up} (stopping)"
            return f"{up} (in trouble)" if container.trouble else up
        case pb.CONTAINER_STATE_HIBERNATED:
            return f"Hibernated {render_ago(container.finished_at, now_s)}".rstrip()
        case pb.CONTAINER_STATE_EXITED:
            why = WHY_FAILED.get(container.exit.reason)
            text = f"Exited ({container.exit.code}) {ended}".rstrip()
            return f"{text} ({why})" if why else text
        case pb.CONTAINER_STATE_FAILED:
            why = WHY_FAILED.get(container.exit.reason, f"exit {container.exit.code}")
            return f"Failed ({why}) {ended}".rstrip()
        case pb.CONTAINER_STATE_REMOVING:
            return "Removal In Progress"
        case _:
            return STATES.get(container.state, "unknown").capitalize()


def container_row(container: pb.Container, *, now_s: float, truncate: bool) -> Mapping[str, Any]:
    command = " ".join(container.command)
    return {
        "ID": container.id[:SHORT_ID] if truncate else container.id,
        "Image": familiar_name(container.image),
        "Command": quote(ellipsis(command, COMMAND_CELLS) if truncate else command),
        "CreatedAt": render_time(datetime.fromtimestamp(container.created_at.seconds, UTC)),
        "RunningFor": render_ago(container.created_at, now_s),
        "Status": describe_status(container, now_s),
        "State": STATES.get(container.state, "unknown"),
        "Ports": render_ports(container) if container.state in UP else "",
        "Names": container.name,
        "Networks": ",".join(attachment.network for attachment in container.networks),
        "Labels": render_pairs(container.spec.labels),
        "Mounts": mount_names(container.spec, truncate=truncate),
        "LocalVolumes": str(local_volumes(container.spec)),
        "Size": "",
        "Platform": container.spec.platform,
        "Label": lambda key: container.spec.labels.get(key, ""),
    }


def container_document(container: pb.Container, image: image_pb2.Image | None = None) -> dict[str, Any]:
    """What `docker inspect` prints of a container, plus `.Sandbox` for its virtual machine.

    `.Config` holds what the image adds to what was asked for, unless the image is gone.
    """
    command = list(container.command)
    return {
        "Id": container.id,
        "Created": _time(container.created_at),
        "Path": command[0] if command else "",
        "Args": command[1:],
        "State": _state(container),
        "Image": container.image_id,
        "LogPath": container.log_path,
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Platform": container.spec.platform.partition("/")[0] or "linux",
        "HostConfig": _host_config(container),
        "Config": _config(container, (image or image_pb2.Image()).config),
        "Mounts": mount_documents(container.spec),
        "NetworkSettings": _network_settings(container),
        "Sandbox": {
            "Accelerator": container.accelerator,
            "VcpuCount": container.vcpus,
            "MemoryMiB": container.memory_mib,
            "VmPid": container.vm_pid,
            "GuestKernel": container.guest_kernel,
            "StartMs": container.start_ms,
        },
        "Start": _start(container.start),
    }


def _time(moment: Timestamp) -> str:
    return render_rfc3339(moment.seconds, moment.nanos)


def _state(container: pb.Container) -> dict[str, Any]:
    failed = container.exit.reason in WHY_FAILED
    return {
        "Status": STATES.get(container.state, "unknown"),
        "Running": container.state in UP,
        "Paused": container.state == pb.CONTAINER_STATE_PAUSED,
        "Restarting": False,
        "OOMKilled": container.exit.reason == pb.EXIT_REASON_OOM,
        "Dead": container.state == pb.CONTAINER_STATE_FAILED,
        "Pid": container.vm_pid,
        "GuestPid": container.guest_pid,
        "ExitCode": container.exit.code,
        "Error": (container.exit.message or WHY_FAILED[container.exit.reason])
        if failed
        else container.trouble,
        "StartedAt": _time(container.started_at),
        "FinishedAt": _time(container.finished_at),
    }


def _start(report: pb.StartReport) -> dict[str, Any]:
    """How the last machine came to run; all empty when there was none."""
    return {
        "Path": report.path,
        "Note": report.note,
        "Phases": [{"Name": phase.name, "DurationMs": phase.duration_ms} for phase in report.phases],
    }


def _config(container: pb.Container, image: image_pb2.ImageConfig) -> dict[str, Any]:
    """Merged as Docker merges (moby daemon/container.go: an entrypoint of one's own drops the image's command)."""
    spec = container.spec
    entrypoint, command = list(spec.entrypoint), list(spec.args)
    if not spec.override_entrypoint:
        entrypoint = list(image.entrypoint)
        command = command or list(image.cmd)
    return {
        "Hostname": spec.hostname or container.id[:SHORT_ID],
        "User": spec.user or image.user,
        "ExposedPorts": OpenMap(sorted(exposed_ports(spec).items())),
        "Tty": spec.tty,
        "OpenStdin": spec.stdin,
        "Env": _merged_env(image.env, spec.env),
        "Cmd": command or None,
        "Image": container.image,
        "WorkingDir": spec.working_directory or image.working_directory,
        "Entrypoint": entrypoint or None,
        "Labels": OpenMap(sorted({**image.labels, **spec.labels}.items())),
        "StopSignal": spec.stop_signal or image.stop_signal,
        "Healthcheck": parse_healthcheck(image.healthcheck_json),
        "StopTimeout": spec.stop_timeout_s if spec.HasField("stop_timeout_s") else None,
    }


def parse_healthcheck(text: str) -> dict[str, Any] | None:
    """As it is in the image's config; None when there is none, or it is no JSON object."""
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _merged_env(image: Iterable[str], own: Iterable[str]) -> list[str]:
    """What was asked for first, then what the image adds; a name without a value takes the image's away."""
    own = list(own)
    names = {entry.partition("=")[0] for entry in own}
    added = [entry for entry in image if entry.partition("=")[0] not in names]
    return [entry for entry in own if "=" in entry] + added


def _host_config(container: pb.Container) -> dict[str, Any]:
    spec = container.spec
    security = ["no-new-privileges"] * spec.no_new_privileges + [
        "seccomp=unconfined"
    ] * spec.seccomp_unconfined
    return {
        "NetworkMode": spec.network or "bridge",
        "PortBindings": OpenMap(sorted(port_bindings(spec.ports).items())),
        "PublishAllPorts": spec.publish_all,
        "Links": [_link(container.name, text) for text in spec.links] or None,
        "AutoRemove": spec.auto_remove,
        "NanoCpus": round(spec.cpus * 1e9),
        "Memory": spec.memory_bytes,
        "PidsLimit": spec.pids_limit or None,
        "Privileged": spec.privileged,
        "ReadonlyRootfs": spec.readonly_root,
        "VolumesFrom": list(spec.volumes_from) or None,
        "StorageOpt": OpenMap({"size": str(spec.writable_size_bytes)} if spec.writable_size_bytes else {}),
        "Init": spec.init,
        "CapAdd": list(spec.cap_add) or None,
        "CapDrop": list(spec.cap_drop) or None,
        "GroupAdd": list(spec.additional_groups) or None,
        "SecurityOpt": security or None,
        "Ulimits": [{"Name": u.name, "Hard": u.hard, "Soft": u.soft} for u in spec.ulimits],
        "Sysctls": OpenMap(sorted(spec.sysctls.items())),
        "Tmpfs": OpenMap(sorted(spec.tmpfs.items())),
        "ShmSize": spec.shm_size_bytes,
        "ExtraHosts": list(spec.extra_hosts) or None,
        "Dns": list(spec.dns_servers),
        "DnsSearch": list(spec.dns_searches),
        "DnsOptions": list(spec.dns_options),
    }


def _link(name: str, text: str) -> str:
    target, _, alias = text.partition(":")
    return f"/{target}:/{name}/{alias}"


def _network_settings(container: pb.Container) -> dict[str, Any]:
    networks = OpenMap(
        (
            attachment.network,
            {
                "MacAddress": attachment.mac,
                "Gateway": attachment.gateway,
                "IPAddress": attachment.address,
                "IPPrefixLen": attachment.prefix_length,
                "IPv6Gateway": attachment.gateway6,
                "GlobalIPv6Address": attachment.address6,
                "GlobalIPv6PrefixLen": attachment.prefix_length6,
            },
        )
        for attachment in container.networks
    )
    nothing = {"MacAddress": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0}
    nothing6 = {"IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0}
    first = next(iter(networks.values()), nothing | nothing6)
    ports = OpenMap(sorted(port_settings(container, is_up=container.state in UP).items()))
    return {**first, "Ports": ports, "Networks": networks}
