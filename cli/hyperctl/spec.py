# SPDX-License-Identifier: Apache-2.0
"""The flags of `run` and `create`, and the ContainerSpec that they mean."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from typer import Option

from hyper.v1 import container_pb2 as pb
from hyperctl import endpoints, mounts, options, policies, ports, terminal
from hyperctl.errors import InvalidError

PULL_POLICIES = ("always", "missing", "never")


def _many(*names: str, help_text: str, metavar: str) -> Any:
    return Option(*names, metavar=metavar, help=help_text, show_default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFlags:
    """One field a flag, with Docker's names."""

    interactive: Annotated[bool, Option("--interactive", "-i", help="Keep standard input open")] = False
    tty: Annotated[bool, Option("--tty", "-t", help="Give the process a terminal")] = False
    rm: Annotated[bool, Option("--rm", help="Remove the container when it ends")] = False
    name: Annotated[
        str, Option("--name", metavar="NAME", help="Name of the container", show_default=False)
    ] = ""
    env: Annotated[
        list[str], _many("--env", "-e", metavar="NAME[=VALUE]", help_text="Set an environment variable")
    ] = field(default_factory=list)
    env_file: Annotated[
        list[str], _many("--env-file", metavar="FILE", help_text="Read environment variables from a file")
    ] = field(default_factory=list)
    workdir: Annotated[
        str, Option("--workdir", "-w", metavar="DIR", help="Working directory", show_default=False)
    ] = ""
    user: Annotated[
        str,
        Option("--user", "-u", metavar="USER[:GROUP]", help="User, by name or id", show_default=False),
    ] = ""
    group_add: Annotated[
        list[str], _many("--group-add", metavar="GROUP", help_text="Further groups of the process")
    ] = field(default_factory=list)
    entrypoint: Annotated[
        str | None, Option("--entrypoint", metavar="COMMAND", help="Instead of the image's entrypoint")
    ] = None
    hostname: Annotated[
        str, Option("--hostname", "-h", metavar="NAME", help="Host name in the guest", show_default=False)
    ] = ""
    label: Annotated[list[str], _many("--label", "-l", metavar="KEY=VALUE", help_text="Set a label")] = field(
        default_factory=list
    )
    label_file: Annotated[
        list[str], _many("--label-file", metavar="FILE", help_text="Read labels from a file")
    ] = field(default_factory=list)
    cpus: Annotated[
        str, Option("--cpus", metavar="NUMBER", help="CPUs, may be a fraction", show_default=False)
    ] = ""
    memory: Annotated[
        str,
        Option("--memory", "-m", metavar="SIZE", help="Memory of the machine: 512m, 2g", show_default=False),
    ] = ""
    shm_size: Annotated[
        str, Option("--shm-size", metavar="SIZE", help="Size of /dev/shm", show_default=False)
    ] = ""
    pids_limit: Annotated[
        str,
        Option("--pids-limit", metavar="NUMBER", help="Most processes (-1: no limit)", show_default=False),
    ] = ""
    ulimit: Annotated[
        list[str], _many("--ulimit", metavar="NAME=SOFT[:HARD]", help_text="Set a resource limit")
    ] = field(default_factory=list)
    sysctl: Annotated[
        list[str], _many("--sysctl", metavar="NAME=VALUE", help_text="Set a kernel parameter")
    ] = field(default_factory=list)
    tmpfs: Annotated[
        list[str], _many("--tmpfs", metavar="DIR[:OPTIONS]", help_text="Mount a file system in memory")
    ] = field(default_factory=list)
    volume: Annotated[
        list[str],
        _many(
            "--volume",
            "-v",
            metavar="[NAME:|/PATH:]DIR[:ro]",
            help_text="Mount a volume, without NAME a new one; or /PATH of this host",
        ),
    ] = field(default_factory=list)
    mount: Annotated[
        list[str],
        _many(
            "--mount",
            metavar="type=...,src=...,dst=...",
            help_text="Mount a volume, a tmpfs, or with type=bind what this host has",
        ),
    ] = field(default_factory=list)
    volumes_from: Annotated[
        list[str],
        _many("--volumes-from", metavar="CONTAINER[:ro]", help_text="Mount what another container mounts"),
    ] = field(default_factory=list)
    storage_opt: Annotated[
        list[str],
        _many("--storage-opt", metavar="size=SIZE", help_text="Size of the container's own disk"),
    ] = field(default_factory=list)
    read_only: Annotated[bool, Option("--read-only", help="Mount the root file system read-only")] = False
    cap_add: Annotated[list[str], _many("--cap-add", metavar="CAP", help_text="Add a capability")] = field(
        default_factory=list
    )
    cap_drop: Annotated[list[str], _many("--cap-drop", metavar="CAP", help_text="Drop a capability")] = field(
        default_factory=list
    )
    privileged: Annotated[bool, Option("--privileged", help="All capabilities and devices of the guest")] = (
        False
    )
    security_opt: Annotated[
        list[str],
        _many("--security-opt", metavar="OPTION", help_text="no-new-privileges, seccomp=unconfined"),
    ] = field(default_factory=list)
    network: Annotated[
        list[str],
        _many(
            "--network",
            "--net",
            metavar="NETWORK[:FIELD=VALUE,...]",
            help_text="bridge (default), none, container:NAME|ID, or the name of one: ip, ip6, alias, mac-address, "
            "gw-priority",
        ),
    ] = field(default_factory=list)
    ip: Annotated[
        str, Option("--ip", metavar="ADDRESS", help="Its IPv4 address in the network", show_default=False)
    ] = ""
    ip6: Annotated[
        str, Option("--ip6", metavar="ADDRESS", help="Its IPv6 address in the network", show_default=False)
    ] = ""
    network_alias: Annotated[
        list[str], _many("--network-alias", metavar="NAME", help_text="A further name on its network")
    ] = field(default_factory=list)
    mac_address: Annotated[
        str, Option("--mac-address", metavar="MAC", help="Of its interface", show_default=False)
    ] = ""
    link: Annotated[
        list[str], _many("--link", metavar="CONTAINER[:ALIAS]", help_text="Know another container by a name")
    ] = field(default_factory=list)
    egress: Annotated[
        str,
        Option(
            "--egress", metavar="none|allow-all|FILE", help="What it may reach outside", show_default=False
        ),
    ] = ""
    security_group: Annotated[
        list[str],
        _many("--security-group", "--sg", metavar="GROUP", help_text="Whom it hears, and speaks to"),
    ] = field(default_factory=list)
    network_rate_in: Annotated[
        str,
        Option(
            "--network-rate-in", metavar="SIZE", help="Bytes a second to it: 500k, 10m", show_default=False
        ),
    ] = ""
    network_rate_out: Annotated[
        str,
        Option("--network-rate-out", metavar="SIZE", help="Bytes a second from it", show_default=False),
    ] = ""
    publish: Annotated[
        list[str],
        _many(
            "--publish",
            "-p",
            metavar="[[IP:]HOST:]PORT[/PROTOCOL]",
            help_text="Reach a port of it at a port of the host",
        ),
    ] = field(default_factory=list)
    publish_all: Annotated[
        bool, Option("--publish-all", "-P", help="Reach every exposed port at a free port of the host")
    ] = False
    expose: Annotated[
        list[str], _many("--expose", metavar="PORT[/PROTOCOL]", help_text="Say that it listens there")
    ] = field(default_factory=list)
    add_host: Annotated[
        list[str], _many("--add-host", metavar="NAME:ADDRESS", help_text="Add a line to /etc/hosts")
    ] = field(default_factory=list)
    dns: Annotated[list[str], _many("--dns", metavar="ADDRESS", help_text="Name server")] = field(
        default_factory=list
    )
    dns_search: Annotated[list[str], _many("--dns-search", metavar="DOMAIN", help_text="Search domain")] = (
        field(default_factory=list)
    )
    dns_option: Annotated[
        list[str], _many("--dns-option", "--dns-opt", metavar="OPTION", help_text="Option of resolv.conf")
    ] = field(default_factory=list)
    init: Annotated[bool, Option("--init", help="Run an init that reaps processes as PID 1")] = False
    stop_signal: Annotated[
        str, Option("--stop-signal", metavar="SIGNAL", help="Signal that stops it", show_default=False)
    ] = ""
    stop_timeout: Annotated[
        str,
        Option("--stop-timeout", metavar="SECONDS", help="Then it is killed [10]", show_default=False),
    ] = ""
    pull: Annotated[str, Option("--pull", metavar="always|missing|never", help="When to pull the image")] = (
        "missing"
    )
    platform: Annotated[
        str, Option("--platform", metavar="OS/ARCH", help="Platform of the image", show_default=False)
    ] = ""
    cidfile: Annotated[
        str,
        Option("--cidfile", metavar="FILE", help="Write the container's id to a file", show_default=False),
    ] = ""


def takes_container_flags(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command every flag of ContainerFlags; it receives them as its parameter ``flags``."""
    names = [flag.name for flag in dataclasses.fields(ContainerFlags)]
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
    added = [
        inspect.Parameter(
            flag.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=[] if flag.default is dataclasses.MISSING else flag.default,
            annotation=flag.type,
        )
        for flag in dataclasses.fields(ContainerFlags)
    ]

    @functools.wraps(command)
    def with_flags(**values: Any) -> int:
        flags = ContainerFlags(**{name: values.pop(name) for name in names})
        return command(flags=flags, **values)

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    with_flags.__signature__ = inspect.Signature(keyword_only + added)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {}
    return with_flags


def given_flags(flags: ContainerFlags) -> dict[str, str]:
    """Fields that are not at their defaults -> the flag as it is written."""
    defaults = ContainerFlags()
    return {
        flag.name: f"--{flag.name.replace('_', '-')}"
        for flag in dataclasses.fields(ContainerFlags)
        if getattr(flags, flag.name) != getattr(defaults, flag.name)
    }


def build_spec(flags: ContainerFlags, image: str, args: list[str]) -> pb.ContainerSpec:
    """Raises InvalidError for a flag that cannot be meant; what only hyperd can know, hyperd refuses."""
    if flags.pull not in PULL_POLICIES:
        raise InvalidError(f"invalid argument {flags.pull!r}: {', '.join(PULL_POLICIES)}", subject="--pull")
    security = options.parse_security_options(flags.security_opt)
    size = terminal.find_size(1, 0) if flags.tty else None
    first, *further = endpoints.parse_networks(
        flags.network, ip=flags.ip, ip6=flags.ip6, aliases=flags.network_alias, mac_address=flags.mac_address
    )
    try:
        return pb.ContainerSpec(
            image=image,
            name=flags.name,
            args=args,
            entrypoint=[flags.entrypoint] if flags.entrypoint else [],
            override_entrypoint=flags.entrypoint is not None,
            env=options.collect_env(flags.env_file, flags.env, os.environ),
            working_directory=flags.workdir,
            user=flags.user,
            hostname=flags.hostname,
            labels=options.collect_labels(flags.label_file, flags.label),
            tty=flags.tty,
            stdin=flags.interactive,
            cpus=options.parse_cpus(flags.cpus) if flags.cpus else 0,
            memory_bytes=options.parse_size("--memory", flags.memory) if flags.memory else 0,
            readonly_root=flags.read_only,
            cap_add=flags.cap_add,
            cap_drop=flags.cap_drop,
            privileged=flags.privileged,
            ulimits=[_encode_ulimit(text) for text in flags.ulimit],
            sysctls=options.parse_sysctls(flags.sysctl),
            tmpfs=options.parse_tmpfs(flags.tmpfs),
            shm_size_bytes=options.parse_size("--shm-size", flags.shm_size) if flags.shm_size else 0,
            stop_signal=flags.stop_signal,
            stop_timeout_s=(
                options.parse_stop_timeout("--stop-timeout", flags.stop_timeout)
                if flags.stop_timeout
                else None
            ),
            init=flags.init,
            platform=flags.platform,
            network=first.network,
            auto_remove=flags.rm,
            no_new_privileges=security.no_new_privileges,
            seccomp_unconfined=security.seccomp_unconfined,
            additional_groups=flags.group_add,
            extra_hosts=[options.parse_host(text) for text in flags.add_host],
            dns_servers=[options.parse_dns_server(text) for text in flags.dns],
            dns_searches=flags.dns_search,
            dns_options=flags.dns_option,
            pids_limit=_parse_pids_limit(flags.pids_limit),
            mounts=[
                *(mounts.parse_volume(text) for text in flags.volume),
                *(mounts.parse_mount(text) for text in flags.mount),
            ],
            volumes_from=flags.volumes_from,
            writable_size_bytes=mounts.parse_storage_options(flags.storage_opt),
            egress=policies.read_egress(flags.egress) if flags.egress else "",
            security_groups=flags.security_group,
            network_rate_in=policies.parse_rate("--network-rate-in", flags.network_rate_in),
            network_rate_out=policies.parse_rate("--network-rate-out", flags.network_rate_out),
            ports=ports.parse_published(flags.publish),
            publish_all=flags.publish_all,
            address=first.address,
            address6=first.address6,
            network_aliases=first.aliases,
            mac_address=first.mac_address,
            gateway_priority=first.gateway_priority,
            networks=further,
            links=flags.link,
            expose=ports.parse_exposed(flags.expose),
            terminal_size=pb.TerminalSize(columns=size[0], rows=size[1]) if size else None,
        )
    except UnicodeEncodeError as error:
        raise InvalidError("not UTF-8 text", subject=ascii(error.object)) from error


def _encode_ulimit(text: str) -> pb.Ulimit:
    limit = options.parse_ulimit(text)
    return pb.Ulimit(name=limit.name, soft=limit.soft, hard=limit.hard)


def _parse_pids_limit(text: str) -> int:
    if not text:
        return 0
    return max(0, options.parse_integer("--pids-limit", text, minimum=-1, maximum=2**31 - 1))
