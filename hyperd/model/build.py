# SPDX-License-Identifier: Apache-2.0
"""A build as asked for, and what is heard of it. Secrets have no place in a repr."""

from dataclasses import dataclass, field

from hyperd.model.image import Image, Platform


@dataclass(frozen=True, slots=True)
class Secret:
    id: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class GitContext:
    url: str = field(repr=False)  # may hold a password
    ref: str = ""  # "" = the remote's HEAD
    directory: str = ""  # below the repository's top


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """See build.proto. Empty means the default."""

    tags: tuple[str, ...] = ()
    dockerfile: bytes = b""  # its text; b"" = the context has it
    dockerfile_path: str = "Dockerfile"  # in the context
    git: GitContext | None = None  # None: the context is sent
    build_args: tuple[str, ...] = ()  # KEY=VALUE
    labels: tuple[str, ...] = ()
    target: str = ""
    no_cache: bool = False
    pull: bool = False
    platform: Platform | None = None
    network: str = ""  # of RUN: "" or none
    extra_hosts: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    cpus: float = 0.0
    memory_bytes: int = 0
    shm_size_bytes: int = 0
    apply_ignore_file: bool = False
    ssh: tuple[str, ...] = ()  # ids of the caller's agents, for RUN --mount=type=ssh


@dataclass(frozen=True, slots=True)
class AgentMessage:
    """One message of ssh-agent's protocol, without its length. Empty: the connection has ended."""

    id: str  # of BuildSpec.ssh
    connection: int
    message: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Output:
    """The engine's words: a stranger's, for nobody but the caller."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Built:
    image: Image
    tags: tuple[str, ...]  # those that this build gave it, in full


@dataclass(frozen=True, slots=True)
class BuildFailed:
    """By the Dockerfile's own doing: a step failed, or it cannot be understood. A result, not an error."""

    code: int
