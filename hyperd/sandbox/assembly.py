# SPDX-License-Identifier: Apache-2.0
"""From what was asked for and what the image says to what the agent is told. Pure."""

import hashlib
import ipaddress
import math
import re
import signal
import uuid
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from hyperd.errors import InvalidError
from hyperd.model.container import ContainerRecord, ContainerSpec, ExecSpec, Sizing
from hyperd.model.guest import (
    ContainerId,
    ContainerPlan,
    GuestIdentity,
    GuestMount,
    GuestWiring,
    HostEntry,
    LayerSource,
    Link,
    ProcessPlan,
    Rlimit,
    Route,
    WritableSource,
)
from hyperd.model.image import ImageConfig, RootDisk
from hyperd.model.network import Attachment, way_out
from hyperd.model.share import Share
from hyperd.model.vm import Disk, SandboxId
from hyperd.sandbox import capabilities, endpoints, mount_sources, ports
from hyperd.sandbox.definition import ROOT_SERIAL, WRITABLE_SERIAL

# moby oci/defaults.go
MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_UNLIMITED = 2**64 - 1
MAX_SERVERS = 3  # resolv.conf(5): MAXNS
_CPU_PERIOD_US = 100_000
MIN_CPUS = 0.01  # the least that a cgroup takes: 1 ms in a period
_RLIMITS = {
    name: f"RLIMIT_{name.upper()}"
    for name in (
        "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
    ).split()
}
_SYSCTL = re.compile(r"[a-z0-9_]+([./][a-zA-Z0-9_-]+)+")
_HOSTNAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9_])?")


def require_valid(spec: ContainerSpec) -> None:
    """All that can be said of a spec without its image. Raises InvalidError or UnsupportedError."""
    capabilities.resolve(spec.cap_add, spec.cap_drop, privileged=spec.privileged)
    parse_signal(spec.stop_signal or "TERM")
    _require_plain_text(spec)
    for entry in spec.env:
        if not entry or entry.startswith("=") or "\0" in entry:
            raise InvalidError(
                "is not KEY=VALUE", subject=f"environment variable {entry.partition('=')[0]!r}"
            )
    for ulimit in spec.ulimits:
        _rlimit(ulimit.name, ulimit.soft, ulimit.hard)
    for key in spec.sysctls:
        if not _SYSCTL.fullmatch(key):
            raise InvalidError("is not a sysctl", subject=repr(key))
    _require_paths(spec)
    endpoints.require_valid(spec)
    if spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise InvalidError("is not a host name", subject=repr(spec.hostname))
    if not math.isfinite(spec.cpus) or spec.cpus < 0 or 0 < spec.cpus < MIN_CPUS:
        raise InvalidError(f"{spec.cpus} CPUs make no sense", hint=f"--cpus takes {MIN_CPUS} or more")
    ports.require_valid(spec)
    _host_entries(spec.extra_hosts)
    for server in spec.dns_servers:
        _require_address(server)


def _require_plain_text(spec: ContainerSpec) -> None:
    for text in (*spec.args, *(spec.entrypoint or ()), spec.user, *spec.additional_groups):
        if "\0" in text:
            raise InvalidError("holds a NUL character", subject=repr(text[:100]))


def _require_paths(spec: ContainerSpec) -> None:
    for destination in (*spec.tmpfs, *([spec.working_directory] if spec.working_directory else [])):
        if not PurePosixPath(destination).is_absolute() or "\0" in destination:
            raise InvalidError("is not an absolute path", subject=repr(destination))
    for destination in spec.tmpfs:
        parts = PurePosixPath(destination).parts
        if len(parts) == 1 or ".." in parts:
            raise InvalidError("cannot be a tmpfs", subject=repr(destination))


def with_image_defaults(spec: ContainerSpec, image: ImageConfig) -> tuple[ContainerSpec, list[str]]:
    """The spec with what the image settles once and for all, and warnings for the user."""
    warnings = []
    if spec.network == "none" and (spec.dns_servers or spec.dns_searches):
        warnings.append("--dns has no effect with --network none")
    if spec.network == "none" and (spec.ports or spec.publish_all):
        warnings.append("published ports have no effect with --network none")
    if spec.network == "none" and (spec.network_rate_in or spec.network_rate_out):
        warnings.append("rates have no effect with --network none")
    if spec.network == "none" and (spec.egress or spec.security_groups):
        warnings.append("--egress and --security-group have no effect with --network none")
    spec = ports.with_exposed(spec, image)
    if image.stop_signal and not spec.stop_signal:
        try:
            parse_signal(image.stop_signal)
        except InvalidError:
            warnings.append(
                f"the image's stop signal {image.stop_signal!r} is not one: it is stopped with TERM"
            )
        else:
            spec = replace(spec, stop_signal=image.stop_signal)
    return spec, warnings


def sizing_of(spec: ContainerSpec, default: Sizing) -> Sizing:
    vcpus = math.ceil(spec.cpus) if spec.cpus else default.vcpus
    return Sizing(vcpus, spec.memory_bytes >> 20 if spec.memory_bytes else default.memory_mib)


def command_of(spec: ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """Entrypoint and arguments as Docker combines them. Raises InvalidError when there is nothing to run."""
    if spec.entrypoint is not None:
        # `--entrypoint ""` takes the image's away (moby daemon/create.go)
        command = (*(spec.entrypoint if spec.entrypoint != ("",) else ()), *spec.args)
    else:
        command = (*image.entrypoint, *(spec.args or image.cmd))
    if not command:  # an empty first word is a program that is not found
        raise InvalidError("no command was given and the image has none", subject=f"image {spec.image}")
    return command


def hostname_of(record: ContainerRecord) -> str:
    return record.spec.hostname or record.sandbox_id[:12]


def names_of(record: ContainerRecord, network: str) -> tuple[str, ...]:
    """What others on a network of its may call it."""
    return (record.name, record.sandbox_id[:12], *endpoints.aliases_on(record.spec, network))


def machine_id_of(sandbox_id: SandboxId) -> str:
    """The same for the same sandbox, and told by nothing of it (machine-id(5): it should be kept confidential)."""
    return hashlib.sha256(b"hyper machine-id " + sandbox_id.encode()).hexdigest()[:32]


def identity(
    record: ContainerRecord, attachments: tuple[Attachment, ...], entropy: bytes, boot_id: uuid.UUID
) -> GuestIdentity:
    wiring = wiring_of(record, attachments)
    return GuestIdentity(
        hostname=hostname_of(record),
        entropy=entropy,
        links=wiring.links,
        dns_servers=wiring.dns_servers,
        dns_searches=wiring.dns_searches,
        dns_options=wiring.dns_options,
        hosts=wiring.hosts,
        machine_id=machine_id_of(record.sandbox_id),
        boot_id=str(boot_id),
    )


def wiring_of(record: ContainerRecord, attachments: tuple[Attachment, ...]) -> GuestWiring:
    """Links, and who is asked for names: what the way out says, unless the container says so itself."""
    spec, out = record.spec, way_out(attachments)
    return GuestWiring(
        links=tuple(_link(attachment, has_default_route=attachment is out) for attachment in attachments),
        dns_servers=spec.dns_servers or _servers(attachments, out),
        dns_searches=spec.dns_searches or (out.dns_searches if out else ()),
        dns_options=spec.dns_options or (out.dns_options if out else ()),
        hosts=tuple(_host_entries(spec.extra_hosts)),  # the agent adds the guest's own name
    )


def _link(attachment: Attachment, *, has_default_route: bool) -> Link:
    return Link(
        mac=attachment.mac,
        name=f"eth{attachment.slot}",
        addresses=(f"{attachment.address}/{attachment.prefix_length}", *_addresses6(attachment)),
        routes=tuple(_routes(attachment)) if has_default_route else (),
        mtu=attachment.mtu,
    )


def _addresses6(attachment: Attachment) -> tuple[str, ...]:
    return (f"{attachment.address6}/{attachment.prefix_length6}",) if attachment.address6 else ()


def _routes(attachment: Attachment) -> Iterator[Route]:
    yield Route("0.0.0.0/0", attachment.gateway)
    if attachment.address6:
        yield Route("::/0", attachment.gateway6)


def _servers(attachments: tuple[Attachment, ...], out: Attachment | None) -> tuple[str, ...]:
    """Those of networks that have names, where there are any: each knows all names that its asker may know."""
    named = [at for at in attachments if at.dns_servers == (at.gateway,)]
    chosen = named or ([out] if out else [])
    chosen.sort(key=lambda at: at is not out)
    return tuple(dict.fromkeys(server for at in chosen for server in at.dns_servers))[:MAX_SERVERS]


def container_plan(
    record: ContainerRecord,
    image: ImageConfig,
    root: RootDisk,
    shares: Collection[Share] = (),
    volumes: Collection[Disk] = (),
    *,
    emulated: bool = False,
) -> ContainerPlan:
    spec = record.spec
    fraction = spec.cpus and spec.cpus != math.ceil(spec.cpus)
    return ContainerPlan(
        container_id=container_id_of(record),
        layers=tuple(LayerSource(ROOT_SERIAL, number + 1) for number in range(root.layers)),
        writable=WritableSource(WRITABLE_SERIAL, "container"),
        readonly_root=spec.readonly_root,
        process=_process(record, image),
        hostname=hostname_of(record),
        mounts=(
            *(_tmpfs(destination, options) for destination, options in spec.tmpfs.items()),
            *mount_sources.guest_mounts(spec.mounts, shares, volumes, emulated=emulated),
        ),
        init=spec.init,
        masked_paths=() if spec.privileged else MASKED_PATHS,
        readonly_paths=() if spec.privileged else READONLY_PATHS,
        sysctls=spec.sysctls,
        privileged=spec.privileged,
        shm_size_bytes=spec.shm_size_bytes,
        cpu_quota_us=round(spec.cpus * _CPU_PERIOD_US) if fraction else 0,
        cpu_period_us=_CPU_PERIOD_US if fraction else 0,
        pids_limit=spec.pids_limit,
    )


def container_id_of(record: ContainerRecord) -> ContainerId:
    """A sandbox holds one container, of the same id; a clone's keeps the id that it was born with."""
    return record.container_id or ContainerId(record.sandbox_id)


def exec_plan(record: ContainerRecord, image: ImageConfig, spec: ExecSpec) -> ProcessPlan:
    """An exec'd process inherits the container's environment, user, directory and confinement (docker exec)."""
    if not spec.args:
        raise InvalidError("no command was given", subject=f"exec in {record.name}")
    first = _process(record, image)
    env = merged_env(first.env, (*(("TERM=xterm",) if spec.tty else ()), *spec.env))
    privileged = spec.privileged or record.spec.privileged
    return ProcessPlan(
        args=spec.args,
        env=env,
        working_directory=spec.working_directory or first.working_directory,
        user=spec.user or first.user,
        additional_groups=first.additional_groups,
        terminal=spec.tty,
        terminal_size=spec.terminal_size,
        stdin=spec.stdin,
        no_new_privileges=first.no_new_privileges,
        rlimits=first.rlimits,
        capabilities=capabilities.ALL if privileged else first.capabilities,
        seccomp_unconfined=privileged or first.seccomp_unconfined,
    )


def parse_signal(name: str) -> int:
    """A signal's number from TERM, SIGTERM, sigterm, 15 or RTMIN+3. Raises InvalidError."""
    upper = name.upper().removeprefix("SIG")
    if upper.isdecimal() and 1 <= int(upper) <= 64:
        return int(upper)
    realtime = re.fullmatch(r"RTMIN(\+(\d{1,2}))?|RTMAX(-(\d{1,2}))?", upper)
    if realtime:
        number = 34 + int(realtime[2] or 0) if upper.startswith("RTMIN") else 64 - int(realtime[4] or 0)
        if 34 <= number <= 64:
            return number
    found = signal.Signals.__members__.get(f"SIG{upper}")
    if found is None or "_" in upper:
        raise InvalidError("is not a signal", subject=repr(name))
    return int(found)


def _process(record: ContainerRecord, image: ImageConfig) -> ProcessPlan:
    spec = record.spec
    own = (f"HOSTNAME={hostname_of(record)}", *(("TERM=xterm",) if spec.tty else ()))
    return ProcessPlan(
        args=record.command,
        env=merged_env(own, (*image.env, *spec.env)),
        working_directory=spec.working_directory or image.working_directory,
        user=spec.user or image.user,
        additional_groups=spec.additional_groups,
        terminal=spec.tty,
        terminal_size=spec.terminal_size,
        stdin=spec.stdin,
        no_new_privileges=spec.no_new_privileges,
        rlimits=tuple(_rlimit(limit.name, limit.soft, limit.hard) for limit in spec.ulimits),
        capabilities=capabilities.resolve(spec.cap_add, spec.cap_drop, privileged=spec.privileged),
        seccomp_unconfined=spec.seccomp_unconfined or spec.privileged,
    )


def merged_env(base: tuple[str, ...], over: tuple[str, ...]) -> tuple[str, ...]:
    """Later values win; a bare KEY (no '=') removes the variable."""
    values: dict[str, str] = {}
    for entry in (*base, *over):
        key, equals, value = entry.partition("=")
        if equals:
            values[key] = value
        else:
            values.pop(key, None)
    return tuple(f"{key}={value}" for key, value in values.items())


def _tmpfs(destination: str, options: str) -> GuestMount:
    given = tuple(option for option in options.split(",") if option)
    # Docker's defaults, each but where its opposite is given.
    defaults = tuple(
        option for option in ("nosuid", "nodev", "noexec") if option.removeprefix("no") not in given
    )
    return GuestMount(destination, "tmpfs", options=(*defaults, *given))


def _rlimit(name: str, soft: int, hard: int) -> Rlimit:
    full = _RLIMITS.get(name.lower())
    if full is None:
        raise InvalidError(
            "is not a resource limit", subject=repr(name), hint=f"known: {', '.join(_RLIMITS)}"
        )
    if soft < -1 or hard < -1:
        raise InvalidError("limits are numbers, or -1 for none", subject=f"ulimit {name}")
    soft, hard = (_UNLIMITED if value == -1 else value for value in (soft, hard))
    if soft > hard:
        raise InvalidError(f"the soft limit {soft} is above the hard limit {hard}", subject=f"ulimit {name}")
    return Rlimit(full, soft, hard)


def _host_entries(extra_hosts: tuple[str, ...]) -> list[HostEntry]:
    entries = []
    for entry in extra_hosts:
        name, colon, address = entry.replace("=", ":", 1).partition(":")
        if not colon or not _HOSTNAME.fullmatch(name):
            raise InvalidError("is not NAME:ADDRESS", subject=repr(entry))
        entries.append(HostEntry(_require_address(address), (name,)))
    return entries


def _require_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError as error:
        raise InvalidError("is not an IP address", subject=repr(text)) from error
