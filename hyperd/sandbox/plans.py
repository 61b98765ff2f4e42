# SPDX-License-Identifier: Apache-2.0
"""What the agent is told to run: a container's first process, and further ones in it. Pure."""

import math
from collections.abc import Collection
from dataclasses import replace

from hyperd.errors import InvalidError
from hyperd.model.container import ContainerRecord, ExecSpec
from hyperd.model.guest import (
    ContainerId,
    ContainerPlan,
    GuestMount,
    LayerSource,
    ProcessPlan,
    Rlimit,
    WritableSource,
)
from hyperd.model.image import ImageConfig, RootDisk
from hyperd.model.share import Share
from hyperd.model.vm import Disk, SandboxId
from hyperd.sandbox import capabilities, mount_sources
from hyperd.sandbox.definition import ROOT_SERIAL, WRITABLE_SERIAL
from hyperd.sandbox.identity import container_id_of, hostname_of

# moby oci/defaults.go
MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


_UNLIMITED = 2**64 - 1
_CPU_PERIOD_US = 100_000
_RLIMITS = {
    name: f"RLIMIT_{name.upper()}"
    for name in (
        "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
    ).split()
}


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


def rider_serials(sandbox_id: SandboxId) -> tuple[str, str]:
    """Of the disks, image's and writable, that it has in another one's VM: the same always, and nobody else's there."""
    return f"{ROOT_SERIAL}-{sandbox_id[:11]}", f"{WRITABLE_SERIAL}-{sandbox_id[:11]}"


def rider_plan(
    record: ContainerRecord, image: ImageConfig, root: RootDisk, carrier: ContainerId
) -> ContainerPlan:
    """In another one's VM: with disks of its own, that one's names, and limits where it would have had a VM's size."""
    root_serial, writable_serial = rider_serials(record.sandbox_id)
    plan, spec = container_plan(record, image, root), record.spec
    return replace(
        plan,
        layers=tuple(replace(layer, disk_serial=root_serial) for layer in plan.layers),
        writable=replace(plan.writable, disk_serial=writable_serial) if plan.writable is not None else None,
        share_names_with=carrier,
        memory_bytes=spec.memory_bytes,
        cpu_quota_us=round(spec.cpus * _CPU_PERIOD_US),
        cpu_period_us=_CPU_PERIOD_US if spec.cpus else 0,
    )


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
        rlimits=tuple(rlimit(limit.name, limit.soft, limit.hard) for limit in spec.ulimits),
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


def rlimit(name: str, soft: int, hard: int) -> Rlimit:
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
