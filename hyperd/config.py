# SPDX-License-Identifier: Apache-2.0
"""The configuration: defaults, then /etc/hyper/hyperd.toml, then HYPERD_SECTION_KEY, then flags.

Every key is a field of the dataclasses below; an unknown one is an error that names file and key.
"""

import dataclasses
import json
import math
import sys
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hyperd.errors import InvalidError

DEFAULT_PATH = Path("/etc/hyper/hyperd.toml")
_MAY_BE_NONE = (("template", "spares"), ("vm", "translation_cache_mib"))  # 0 turns off what is on by default


def _assets_dir() -> Path:
    """Where set-up put kernel, initramfs and mkfs.erofs: beside an installed venv, else in the checkout's build/."""
    installed = Path(sys.prefix).parent / "assets"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "build" / "assets"


def _virtiofsd() -> Path:
    """Debian's, where it has one."""
    system = Path("/usr/libexec/virtiofsd")
    return system if system.exists() else _assets_dir() / "virtiofsd" / "virtiofsd"


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    state_dir: Path = Path("/var/lib/hyper")  # records, images, disks, logs of containers
    run_dir: Path = Path("/run/hyper")  # sockets
    socket: Path | None = None  # default: run_dir/hyperd.sock
    socket_group: str = "hyper"  # may use the socket (mode 0660), when the group exists
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True)
class VmConfig:
    accel: Literal["auto", "kvm", "tcg"] = "auto"  # auto: KVM when a guest boots under it, else TCG
    hypervisor_uri: str = ""  # default: qemu:///embed?root=STATE_DIR/libvirt
    qemu_user: str = "libvirt-qemu"
    qemu_group: str = "kvm"
    qemu_users: Literal["own", "shared"] = "own"  # own: each QEMU under a uid of its own; shared: qemu_user's
    default_vcpus: int = 1
    default_memory_mib: int = 256
    max_sandboxes: int = 1000
    memory_overcommit: float = 1.0  # share of the host's memory that VMs may be promised
    host_reserve_mib: int = 512  # less this, for the host itself, hyperd and what else runs
    boot_timeout_s: float = (
        60.0  # from QEMU's start to the agent's hello, but for time without a CPU of the host
    )
    translation_cache_mib: int = (
        128  # of each QEMU under emulation, beside its guest's memory; 0: up to 1 GiB
    )
    parallel_starts: int = 0  # VMs that come up at a time, others wait; 0: two for each CPU
    kernel: Path = field(default_factory=lambda: _assets_dir() / "vmlinux")
    initramfs: Path = field(default_factory=lambda: _assets_dir() / "initramfs.cpio")
    cmdline: str = ""  # appended to hyper's own


@dataclass(frozen=True, slots=True)
class ImageConfig:
    skopeo: str = "skopeo"
    mkfs_erofs: Path = field(default_factory=lambda: _assets_dir() / "mkfs.erofs")
    budget_mib: int = 0  # past this unused images go; 0: they stay
    budget_low_mib: int = 0  # until the store takes no more than this; 0: four fifths of it


@dataclass(frozen=True, slots=True)
class StorageConfig:
    writable_size_mib: int = 10240  # of a container's writable disk; sparse
    volume_size_mib: int = 10240  # of a volume that is made without a size; sparse
    bind_allow: tuple[
        Path, ...
    ] = ()  # what of the host may be shared with guests, and all below it; none: anything
    virtiofsd: Path = field(default_factory=_virtiofsd)  # serves what is shared


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    bridge: str = "hyper0"
    subnet: str = "10.213.0.0/16"
    mtu: int = 0  # 0: that of the host's default route
    floating: tuple[str, ...] = ()  # ranges of addresses that `hyper fip` lends to containers
    publish_address: str = "0.0.0.0"  # where `-p 8080:80` is reached; 127.0.0.1: on this host alone


@dataclass(frozen=True, slots=True)
class LogsConfig:
    max_mib: int = 64  # of output kept of one container


@dataclass(frozen=True, slots=True)
class TemplateConfig:
    enabled: bool = True  # containers start from a saved VM where they can, instead of booting one
    share_memory: bool = (
        True  # what such VMs never write, they share: less memory, and a side channel (CVE-2015-2877)
    )
    budget_mib: int = 2048  # of disk; beyond it the least recently used go
    spares: int = 1  # VMs kept ready for the next container; 0: none


@dataclass(frozen=True, slots=True)
class BuildConfig:
    image: Path = field(default_factory=lambda: _assets_dir() / "builder.tar")  # whose VM builds run in
    cpus: float = 2.0  # of that VM, unless the build says otherwise; no more than the host has
    memory_mib: int = 1024
    cache_size_mib: int = 20480  # of the volume between builds, when it is made; sparse


@dataclass(frozen=True, slots=True)
class Config:
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    vm: VmConfig = field(default_factory=VmConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    logs: LogsConfig = field(default_factory=LogsConfig)
    build: BuildConfig = field(default_factory=BuildConfig)

    @property
    def socket(self) -> Path:
        return self.daemon.socket or self.daemon.run_dir / "hyperd.sock"


def load(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, str]) -> Config:
    """``path`` None: the default file, which may be absent. ``flags``: section.key -> value.

    Raises InvalidError naming the source and the key.
    """
    config = Config()
    file = path or DEFAULT_PATH
    if path is not None or file.exists():
        config = _with_tables(config, _read(file), str(file))
    for name, value in sorted(environment.items()):
        if name.startswith("HYPERD_"):
            section, _, key = name.removeprefix("HYPERD_").lower().partition("_")
            config = _with_value(config, section, key, value, f"environment variable {name}")
    for name, value in flags.items():
        section, _, key = name.partition(".")
        config = _with_value(config, section, key, value, f"--set {name}")
    return config


def render(config: Config) -> str:
    """The configuration as TOML that ``load`` reads back to the same."""
    lines = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        values = getattr(config, section.name)
        for item in dataclasses.fields(values):
            value = getattr(values, item.name)
            if value is not None:
                lines.append(f"{item.name} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", subject=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidError("is not TOML", subject=str(file), evidence=str(error)) from error


def _with_tables(config: Config, tables: Mapping[str, Any], source: str) -> Config:
    for section, values in tables.items():
        if not isinstance(values, dict):
            raise InvalidError(f"unknown key {section!r}", subject=source, hint="keys stand in a [section]")
        for key, value in values.items():
            config = _with_value(config, section, key, value, source)
    return config


def _with_value(config: Config, section: str, key: str, value: object, source: str) -> Config:
    sections = {item.name for item in dataclasses.fields(config)}
    if section not in sections:
        raise InvalidError(
            f"unknown section [{section}]", subject=source, hint=f"known: {', '.join(sorted(sections))}"
        )
    part = getattr(config, section)
    hints = typing.get_type_hints(type(part))
    if key not in hints:
        raise InvalidError(
            f"unknown key {key!r} in [{section}]", subject=source, hint=f"known: {', '.join(hints)}"
        )
    convert = _texts if hints[key] == tuple[str, ...] else _converted
    converted = convert(hints[key], value, f"[{section}] {key}", source)
    if (
        converted == 0
        and hints[key] is not bool
        and getattr(type(part)(), key) != 0
        and (section, key) not in _MAY_BE_NONE
    ):  # 0 has a meaning only where it is the default
        raise InvalidError(f"[{section}] {key} cannot be 0", subject=source)
    return dataclasses.replace(config, **{section: dataclasses.replace(part, **{key: converted})})


def _converted(kind: Any, value: object, key: str, source: str) -> object:
    wrong = InvalidError(
        f"{key} = {value!r} does not fit", subject=source, hint=f"it takes {_kind_name(kind)}"
    )
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise wrong
        return value
    if isinstance(value, str) and "\0" in value:
        raise wrong
    if kind in (Path, Path | None):
        return _path(value, wrong)
    if kind == tuple[Path, ...]:
        return _paths(value, wrong)
    if kind is str and isinstance(value, str):
        return value
    if kind is bool:
        if isinstance(value, bool):
            return value
        if value not in ("true", "false"):  # a text when it comes from the environment or a flag
            raise wrong
        return value == "true"
    number = kind is not str and isinstance(value, str | int | float) and not isinstance(value, bool)
    if not number or (kind is int and isinstance(value, float)):
        raise wrong
    try:
        converted = kind(value)  # a text when it comes from the environment or a flag
    except (ValueError, OverflowError):
        raise wrong from None
    if not 0 <= converted < math.inf:
        raise wrong
    return converted


def _path(value: object, wrong: InvalidError) -> Path:
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise wrong
    return Path(value)


def _paths(value: object, wrong: InvalidError) -> tuple[Path, ...]:
    """A text, with colons, when it comes from the environment or a flag."""
    parts = [part for part in value.split(":") if part] if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise wrong
    return tuple(_path(part, wrong) for part in parts)


def _texts(_kind: Any, value: object, key: str, source: str) -> tuple[str, ...]:
    """A list; from the environment or a flag, with commas between."""
    given = [part.strip() for part in value.split(",") if part] if isinstance(value, str) else value
    if isinstance(given, list | tuple) and all(isinstance(item, str) and "\0" not in item for item in given):
        return tuple(given)
    raise InvalidError(f"{key} = {value!r} does not fit", subject=source, hint="it takes a list of texts")


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if kind in (Path, Path | None):
        return "an absolute path"
    if kind == tuple[Path, ...]:
        return "a list of absolute paths; in the environment and in flags with `:` between them"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if not isinstance(value, str | Path):
        return str(value)
    # JSON's escapes are TOML's, but for DEL and for what JSON would write as two surrogates.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
