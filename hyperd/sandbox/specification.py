# SPDX-License-Identifier: Apache-2.0
"""What was asked for: whether it can be, and what the image settles of it. Pure."""

import math
import re
from dataclasses import replace
from pathlib import PurePosixPath

from hyperd.errors import InvalidError
from hyperd.model.container import ContainerSpec, Sizing
from hyperd.model.image import ImageConfig
from hyperd.sandbox import capabilities, endpoints, identity, joined, plans, ports
from hyperd.sandbox.records import dumps
from hyperd.sandbox.signals import parse_signal

MAX_SPEC_BYTES = 1 << 20  # as it is recorded: it is listed with those of all others, and told to the agent
MIN_CPUS = 0.01  # the least that a cgroup takes: 1 ms in a period
_SYSCTL = re.compile(r"[a-z0-9_]+([./][a-zA-Z0-9_-]+)+")


def require_valid(spec: ContainerSpec) -> None:
    """All that can be said of a spec without its image. Raises InvalidError or UnsupportedError."""
    if (size := len(dumps(spec))) > MAX_SPEC_BYTES:
        raise InvalidError(
            f"are {size >> 10} KiB of settings, {MAX_SPEC_BYTES >> 10} KiB are the most",
            subject="command, environment, labels and the rest",
            hint="mount a file with what is so large, or copy it in with `hyper cp`",
        )
    capabilities.resolve(spec.cap_add, spec.cap_drop, privileged=spec.privileged)
    parse_signal(spec.stop_signal or "TERM")
    _require_plain_text(spec)
    for entry in spec.env:
        if not entry or entry.startswith("=") or "\0" in entry:
            raise InvalidError(
                "is not KEY=VALUE", subject=f"environment variable {entry.partition('=')[0]!r}"
            )
    for ulimit in spec.ulimits:
        plans.rlimit(ulimit.name, ulimit.soft, ulimit.hard)
    for key in spec.sysctls:
        if not _SYSCTL.fullmatch(key):
            raise InvalidError("is not a sysctl", subject=repr(key))
    _require_paths(spec)
    joined.require_valid(spec)
    endpoints.require_valid(spec)
    if spec.hostname and not identity.HOSTNAME.fullmatch(spec.hostname):
        raise InvalidError("is not a host name", subject=repr(spec.hostname))
    if not math.isfinite(spec.cpus) or spec.cpus < 0 or 0 < spec.cpus < MIN_CPUS:
        raise InvalidError(f"{spec.cpus} CPUs make no sense", hint=f"--cpus takes {MIN_CPUS} or more")
    ports.require_valid(spec)
    identity.host_entries(spec.extra_hosts)
    for server in spec.dns_servers:
        identity.require_address(server)


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
