# SPDX-License-Identifier: Apache-2.0
"""`-v`, `--mount` and `--storage-opt`, in Docker's syntax (docker/cli opts/mount.go, compose-go's volume format)."""

import csv
import os
import re
from collections.abc import Iterable

from hyper.v1 import container_pb2 as pb
from hyperctl.errors import InvalidError
from hyperctl.options import parse_size

_TYPES = {
    "volume": pb.MOUNT_TYPE_VOLUME,
    "bind": pb.MOUNT_TYPE_BIND,
    "tmpfs": pb.MOUNT_TYPE_TMPFS,
}
_IDS = re.compile(r"[0-9]{1,10}-[0-9]{1,10}-[0-9]{1,10}")
_MAX_ID = 0xFFFF_FFFF
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_HAS_NO_EFFECT = frozenset(
    {"z", "Z", "cached", "delegated", "consistent", "rprivate", "private"}
)  # of SELinux, of Docker Desktop, and what is so in any case
_IS_SO_IN_ANY_CASE = {
    *(("bind-propagation", value) for value in ("private", "rprivate")),
    *(("bind-recursive", value) for value in ("enabled", "readonly")),  # what is mounted below is there, too
}
_PROPAGATIONS = frozenset({"shared", "slave", "rshared", "rslave"})


def parse_volume(text: str) -> pb.Mount:
    """`NAME:/path[:OPTIONS]`, `/host/path:/path[:OPTIONS]`, `/path`."""
    parts = text.split(":")
    if not all(parts) or len(parts) > 3:
        raise _invalid("--volume", text, "write [NAME|/HOST/PATH:]/PATH[:ro]")
    if len(parts) == 1:
        _require_absolute("--volume", text, parts[0])
        return pb.Mount(type=pb.MOUNT_TYPE_VOLUME, destination=parts[0])
    source, destination = parts[:2]
    _require_absolute("--volume", text, destination)
    if source.startswith((".", "~")):
        source = os.path.abspath(os.path.expanduser(source))  # noqa: PTH100, PTH111 - `..` goes, links stay
    mount = pb.Mount(type=pb.MOUNT_TYPE_VOLUME, source=source, destination=destination)
    if source.startswith("/"):
        mount.type = pb.MOUNT_TYPE_BIND
        mount.create_source = True
    elif not _NAME.fullmatch(source):
        raise _invalid("--volume", text, f"{source!r} is neither a volume's name nor an absolute path")
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option == "ro":
            mount.readonly = True
        elif option.startswith("idmap=") and mount.type == pb.MOUNT_TYPE_BIND:
            _take_idmap(mount, "--volume", text, option.removeprefix("idmap="))
        elif option == "nocopy" and mount.type == pb.MOUNT_TYPE_VOLUME:
            mount.no_copy = True
        elif option in _PROPAGATIONS:
            raise _invalid("--volume", text, f"mounts of a virtual machine are private: {option!r} cannot be")
        elif option != "rw" and option not in _HAS_NO_EFFECT:
            raise _invalid("--volume", text, f"unknown option {option!r}: ro, rw, nocopy")
    return mount


def parse_mount(text: str) -> pb.Mount:  # noqa: PLR0912 - a key a branch
    """`type=volume,src=NAME,dst=/path,readonly,volume-nocopy`, `type=bind,...`, `type=tmpfs,dst=/path,...`."""
    mount = pb.Mount(type=pb.MOUNT_TYPE_VOLUME)
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise _invalid("--mount", text, str(error)) from None
    for field in fields:
        key, equals, value = field.partition("=")
        key = key.strip().lower()
        match key:
            case "type":
                if value not in _TYPES:
                    raise _invalid("--mount", text, f"unknown type {value!r}: {', '.join(_TYPES)}")
                mount.type = _TYPES[value]
            case "source" | "src":
                mount.source = value
            case "target" | "destination" | "dst":
                mount.destination = value
            case "readonly" | "ro":
                mount.readonly = _flag(text, key, value, given=bool(equals))
            case "volume-nocopy":
                mount.no_copy = _flag(text, key, value, given=bool(equals))
            case "volume-label":
                name, _, label = value.partition("=")
                mount.labels[name] = label
            case "volume-driver":
                mount.driver = value
            case "volume-opt":
                _take_option(mount, value)
            case "tmpfs-size":
                mount.size_bytes = parse_size("--mount", value)
            case "tmpfs-mode":
                mount.mode = _mode(text, value)
            case "idmap":
                _take_idmap(mount, "--mount", text, value)
            case "bind-create-src":
                mount.create_source = _flag(text, key, value, given=bool(equals))
            case _ if (key, value) not in _IS_SO_IN_ANY_CASE and key != "consistency":
                raise _invalid("--mount", text, f"unknown option {field!r}")
    _require_whole(mount, text)
    return mount


def parse_storage_options(texts: Iterable[str]) -> int:
    """`size=20g` -> bytes of the writable disk."""
    size_bytes = 0
    for text in texts:
        key, _, value = text.partition("=")
        if key != "size":
            raise _invalid("--storage-opt", text, "only size=SIZE is known")
        size_bytes = parse_size("--storage-opt", value)
        if not size_bytes:
            raise _invalid("--storage-opt", text, "a disk needs a size")
    return size_bytes


def _require_whole(mount: pb.Mount, text: str) -> None:
    if not mount.destination:
        raise _invalid("--mount", text, "target is required")
    _require_absolute("--mount", text, mount.destination)
    is_volume, is_tmpfs = mount.type == pb.MOUNT_TYPE_VOLUME, mount.type == pb.MOUNT_TYPE_TMPFS
    if mount.type == pb.MOUNT_TYPE_BIND:
        if not mount.source:
            raise _invalid("--mount", text, "source is required")
        if mount.source.startswith((".", "~")):
            mount.source = os.path.abspath(os.path.expanduser(mount.source))  # noqa: PTH100, PTH111
        _require_absolute("--mount", text, mount.source)
    if is_volume and mount.source and not _NAME.fullmatch(mount.source):
        raise _invalid("--mount", text, f"{mount.source!r} is not a volume's name")
    if is_tmpfs and mount.source:
        raise _invalid("--mount", text, "a tmpfs has no source")
    if mount.type != pb.MOUNT_TYPE_BIND and (mount.create_source or mount.uid_map or mount.gid_map):
        raise _invalid("--mount", text, "bind-... and idmap only go with type=bind")
    if mount.options and mount.driver in {"", "local"}:
        option = next(iter(mount.options))
        raise _invalid("--mount", text, f"the driver local has no option {option!r} but size")
    if not is_volume and (mount.no_copy or mount.labels or mount.driver):
        raise _invalid("--mount", text, "volume-... only goes with type=volume")
    if not is_tmpfs and (mount.mode or (mount.size_bytes and not is_volume)):
        raise _invalid("--mount", text, "tmpfs-... only goes with type=tmpfs")


def _take_idmap(mount: pb.Mount, flag: str, text: str, value: str) -> None:
    """`uids=HOST-CONTAINER-COUNT[#...];gids=...`, as podman writes it."""
    for part in value.split(";"):
        kind, _, ranges = part.partition("=")
        if kind not in {"uids", "gids"} or not all(_IDS.fullmatch(ids) for ids in ranges.split("#")):
            raise _invalid(flag, text, "write idmap=uids=HOST-CONTAINER-COUNT[#...];gids=...")
        for ids in ranges.split("#"):
            host, guest, count = map(int, ids.split("-"))
            if max(host, guest, count) > _MAX_ID:
                raise _invalid(flag, text, f"{ids} is more than 32 bits")
            (mount.uid_map if kind == "uids" else mount.gid_map).add(host=host, guest=guest, count=count)


def _take_option(mount: pb.Mount, value: str) -> None:
    key, _, option = value.partition("=")
    if key == "size":
        mount.size_bytes = parse_size("--mount", option)
    else:
        mount.options[key] = option


def _flag(text: str, key: str, value: str, *, given: bool) -> bool:
    if not given or value.lower() in {"1", "t", "true"}:
        return True
    if value.lower() in {"0", "f", "false"}:
        return False
    raise _invalid("--mount", text, f"{key} is true or false")


def _mode(text: str, value: str) -> int:
    if not re.fullmatch(r"[0-7]{1,5}", value) or int(value, 8) > 0o7777:
        raise _invalid("--mount", text, "tmpfs-mode is octal, as in 1777")
    return int(value, 8)


def _require_absolute(flag: str, text: str, path: str) -> None:
    if not path.startswith("/"):
        raise _invalid(flag, text, f"{path!r} is not an absolute path")


def _invalid(flag: str, text: str, why: str) -> InvalidError:
    return InvalidError(f"invalid argument {text!r}: {why}", subject=flag)
