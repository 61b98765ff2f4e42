# SPDX-License-Identifier: Apache-2.0
"""What a build comes to: the builder's container, and the engine's command line. Pure."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperd.build.address import hide_logins
from hyperd.errors import InvalidError, UnsupportedError
from hyperd.image import parse_target
from hyperd.model.build import BuildSpec
from hyperd.model.container import ContainerSpec
from hyperd.model.image import Platform
from hyperd.model.volume import Mount, MountType

LABEL = "hyper.build"  # of a builder's container: the build's id
NAME_PREFIX = "hyper-build-"
CACHE_VOLUME = "hyper-build-cache"

ROOT = "/build"
CONTEXT = f"{ROOT}/context"
DOCKERFILE = f"{ROOT}/Dockerfile"
ID_FILE = f"{ROOT}/id"
OUT = f"{ROOT}/out"
SECRETS = "/run/hyper-build"  # a tmpfs: below /run, which is one
LOGIN = "/run/hyper-git/login"  # of a repository
SSH = "/run/hyper-ssh"  # a socket for each of the caller's agents

BUILD_TIMEOUT_S = 12 * 3600.0
CLOSE_TIMEOUT_S = 120  # for the cache to be on the disk
MAX_TAGS = 100
MAX_ARGUMENTS = 1000
MAX_ARGUMENT_BYTES = 64 << 10
MAX_ARGUMENTS_BYTES = 512 << 10
MAX_SECRETS = 100
MAX_SECRET_BYTES = 500 << 10  # BuildKit's
MAX_AGENTS = 20
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}[:=][0-9A-Fa-f.:\[\]]{2,45}")


@dataclass(frozen=True, slots=True)
class BuilderSizing:
    cpus: float
    memory_bytes: int
    cache_bytes: int


def require_valid(spec: BuildSpec, ours: Platform) -> None:
    """Raises InvalidError, UnsupportedError."""
    asked = spec.platform or ours
    if (asked.os, asked.architecture) != (ours.os, ours.architecture):
        raise UnsupportedError(f"this host runs {ours}", subject=f"--platform {asked}")
    if spec.network not in ("", "default", "host", "none"):
        raise InvalidError(
            "is not a network that RUN can have", subject=f"--network {spec.network}", hint="default or none"
        )
    if len(spec.tags) > MAX_TAGS:
        raise InvalidError(f"there are more than {MAX_TAGS} tags")
    for tag in spec.tags:
        parse_target(tag)
    arguments = [*spec.build_args, *spec.labels, *spec.extra_hosts, spec.target, spec.dockerfile_path]
    if len(arguments) > MAX_ARGUMENTS or sum(map(len, arguments)) > MAX_ARGUMENTS_BYTES:
        raise InvalidError(
            f"build arguments and labels are more than {MAX_ARGUMENTS}, or than {MAX_ARGUMENTS_BYTES} bytes"
        )
    for text in arguments:
        if "\0" in text or len(text.encode(errors="replace")) > MAX_ARGUMENT_BYTES:
            # The key alone: what a build argument holds may be a secret, though it should not.
            key = text.partition("=")[0][:60]
            raise InvalidError(f"has a zero byte, or more than {MAX_ARGUMENT_BYTES} bytes", subject=key)
    for text in (*spec.build_args, *spec.labels):
        if not text.partition("=")[0] or "=" not in text:
            raise InvalidError("is not KEY=VALUE", subject=text[:300])
    for text in spec.extra_hosts:
        if not _HOST.fullmatch(text):
            raise InvalidError("is not NAME:ADDRESS", subject=f"--add-host {text[:300]}")
    _require_secrets(spec)
    _require_agents(spec)
    inside(spec.dockerfile_path)
    if spec.git is not None:
        _require_git(spec)


def _require_secrets(spec: BuildSpec) -> None:
    if len(spec.secrets) > MAX_SECRETS or len({secret.id for secret in spec.secrets}) != len(spec.secrets):
        raise InvalidError(f"there are more than {MAX_SECRETS} secrets, or two of one id")
    for secret in spec.secrets:
        if not _ID.fullmatch(secret.id):
            raise InvalidError(
                "is not an id of a secret", subject=secret.id[:100], hint="letters, digits, . _ -"
            )
        if len(secret.content) > MAX_SECRET_BYTES:
            raise InvalidError(f"is larger than {MAX_SECRET_BYTES >> 10} KiB", subject=f"secret {secret.id}")


def _require_agents(spec: BuildSpec) -> None:
    if len(spec.ssh) > MAX_AGENTS or len(set(spec.ssh)) != len(spec.ssh):
        raise InvalidError(f"there are more than {MAX_AGENTS} agents, or two of one id", subject="--ssh")
    for agent_id in spec.ssh:
        if not _ID.fullmatch(agent_id):
            raise InvalidError(
                "is not an id of an agent", subject=f"--ssh {agent_id[:100]}", hint="letters, digits, . _ -"
            )


def _require_git(spec: BuildSpec) -> None:
    git = spec.git
    if git is None:
        return
    for text in (git.url, git.ref):
        if text.startswith("-") or "\0" in text or len(text) > MAX_ARGUMENT_BYTES:
            raise InvalidError(
                "is not a repository's address, or a commit in one", subject=hide_logins(text[:300])
            )
    inside(git.directory or ".")


def inside(path: str) -> str:
    """A path in the context, normal. Raises InvalidError for one that leads out of it."""
    normal = posixpath.normpath(path.lstrip("/") or ".")
    if normal == ".." or normal.startswith("../") or "\0" in path:
        raise InvalidError("leads out of the build context", subject=path[:300])
    return normal


def context_of(spec: BuildSpec) -> str:
    directory = inside(spec.git.directory or ".") if spec.git is not None else "."
    return CONTEXT if directory == "." else f"{CONTEXT}/{directory}"


def builder_of(build_id: str, image: str, spec: BuildSpec, sizing: BuilderSizing) -> ContainerSpec:
    """Privileged in its own machine: the engine mounts. What RUN runs is not, see docs/build.md."""
    cache = Mount(
        MountType.VOLUME,
        "/var/lib/containers",
        source=CACHE_VOLUME,
        no_copy=True,
        size_bytes=sizing.cache_bytes,
        labels={LABEL: "cache"},
    )
    return ContainerSpec(
        image=image,
        name=f"{NAME_PREFIX}{build_id}",
        labels={LABEL: build_id},
        cpus=spec.cpus or sizing.cpus,
        memory_bytes=spec.memory_bytes or sizing.memory_bytes,
        privileged=True,
        tmpfs={"/run": "mode=755"},
        mounts=(cache,),
        stop_timeout_s=CLOSE_TIMEOUT_S,
    )


def engine_command(spec: BuildSpec, contexts: Mapping[str, str]) -> tuple[str, ...]:
    """``contexts``: an image's name in the Dockerfile -> its name in the builder, where they differ.

    Docker's format: OCI's has no place for a HEALTHCHECK. All images are there already: nothing is fetched.
    """
    words = [
        *("buildah", "build", "--layers", "--pull=never", "--isolation=oci", "--format=docker"),
        *("--force-rm", "--identity-label=false", f"--iidfile={ID_FILE}", f"--file={DOCKERFILE}"),
        f"--network={'none' if spec.network == 'none' else 'host'}",  # host: the builder's
    ]
    if not spec.apply_ignore_file:
        words.append("--ignorefile=/dev/null")
    if spec.no_cache:
        words.append("--no-cache")
    if spec.target:
        words.append(f"--target={spec.target}")
    if spec.shm_size_bytes:
        words.append(f"--shm-size={spec.shm_size_bytes}b")
    words += [f"--build-arg={text}" for text in spec.build_args]
    words += [f"--label={text}" for text in spec.labels]
    words += [f"--add-host={text.replace('=', ':', 1)}" for text in spec.extra_hosts]
    words += [f"--secret=id={secret.id},src={SECRETS}/{secret.id}" for secret in spec.secrets]
    words += [f"--ssh={agent_id}={SSH}/{agent_id}" for agent_id in spec.ssh]
    words += [f"--build-context={name}=docker-image://{here}" for name, here in contexts.items()]
    return (*words, "--", context_of(spec))


def args_of(build_args: Sequence[str]) -> dict[str, str]:
    return dict(text.partition("=")[::2] for text in build_args)


def platform_args(ours: Platform) -> dict[str, str]:
    """What BuildKit and buildah define for FROM."""
    values = {"": str(ours), "OS": ours.os, "ARCH": ours.architecture, "VARIANT": ours.variant}
    return {
        f"{who}{what or 'PLATFORM'}": value for who in ("BUILD", "TARGET") for what, value in values.items()
    }
