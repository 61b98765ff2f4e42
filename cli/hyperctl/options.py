# SPDX-License-Identifier: Apache-2.0
"""Text of flags -> values, with Docker's grammar. Pure but for the env files that it is told to read."""

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperctl.errors import InvalidError

RLIMITS = "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
MAX_ENV_FILE_BYTES = 16 * 1024 * 1024
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class UlimitValue:
    name: str
    soft: int  # -1 = unlimited
    hard: int


@dataclass(frozen=True, slots=True)
class SecurityOptions:
    no_new_privileges: bool = False
    seccomp_unconfined: bool = False


def _invalid(flag: str, text: str, why: str) -> InvalidError:
    return InvalidError(f"invalid argument {text!r}: {why}", subject=flag)


def parse_size(flag: str, text: str) -> int:
    """`512m`, `1.5g`, `1024` -> bytes; suffixes are binary, as Docker has them."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise _invalid(flag, text, "a size is a number with b, k, m, g, t or p behind it")
    number, unit = match.groups()
    exponent = " kmgtp".index(unit.lower() or " ")
    scale = 1024**exponent
    size = int(number) * scale if number.isdecimal() else int(float(number) * scale)
    if size >= 2**63:
        raise _invalid(flag, text, "too large")
    return size


def parse_integer(flag: str, text: str, *, minimum: int = 0, maximum: int = 2**32 - 1) -> int:
    if _INTEGER.fullmatch(text.strip()) is None:
        raise _invalid(flag, text, "not a whole number")
    value = int(text)
    if not minimum <= value <= maximum:
        raise _invalid(flag, text, f"not between {minimum} and {maximum}")
    return value


def parse_stop_timeout(flag: str, text: str) -> int:
    """Seconds; -1, Docker's "wait for ever", becomes the largest number that fits the wire."""
    value = parse_integer(flag, text, minimum=-1)
    return 2**32 - 1 if value < 0 else value


def parse_cpus(text: str) -> float:
    try:
        cpus = float(text)
    except ValueError:
        cpus = math.nan
    if not (math.isfinite(cpus) and cpus >= 0):
        raise _invalid("--cpus", text, "not a number of CPUs")
    return cpus


def parse_ulimit(text: str) -> UlimitValue:
    """`nofile=1024:2048`, `core=-1`."""
    name, separator, limits = text.partition("=")
    if not separator or name not in RLIMITS.split(" "):
        raise _invalid("--ulimit", text, f"write NAME=SOFT[:HARD], NAME one of {RLIMITS}")
    soft_text, colon, hard_text = limits.partition(":")
    soft = parse_integer("--ulimit", soft_text, minimum=-1, maximum=2**63 - 1)
    hard = parse_integer("--ulimit", hard_text, minimum=-1, maximum=2**63 - 1) if colon else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise _invalid("--ulimit", text, "the soft limit is above the hard one")
    return UlimitValue(name, soft, hard)


def parse_security_options(texts: Iterable[str]) -> SecurityOptions:
    options = SecurityOptions()
    for text in texts:
        match re.split(r"[=:]", text, maxsplit=1):
            case ["no-new-privileges"] | ["no-new-privileges", "true"]:
                options = SecurityOptions(
                    no_new_privileges=True, seccomp_unconfined=options.seccomp_unconfined
                )
            case ["no-new-privileges", "false"]:
                options = SecurityOptions(
                    no_new_privileges=False, seccomp_unconfined=options.seccomp_unconfined
                )
            case ["seccomp", "unconfined"]:
                options = SecurityOptions(
                    no_new_privileges=options.no_new_privileges, seccomp_unconfined=True
                )
            case _:
                raise _invalid(
                    "--security-opt", text, "only no-new-privileges and seccomp=unconfined are supported"
                )
    return options


def parse_pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE`; a bare KEY has an empty value (labels)."""
    pairs = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key.strip():
            raise _invalid(flag, text, "no name before the equals sign")
        pairs[key] = value
    return pairs


def parse_sysctls(texts: Iterable[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise _invalid("--sysctl", text, "write NAME=VALUE")
    return parse_pairs("--sysctl", texts)


def parse_tmpfs(texts: Iterable[str]) -> dict[str, str]:
    """`/run:rw,size=64m` -> destination and options."""
    mounts = {}
    for text in texts:
        destination, _, mount_options = text.partition(":")
        if not destination.startswith("/"):
            raise _invalid("--tmpfs", text, "the destination is not an absolute path")
        mounts[destination] = mount_options
    return mounts


def parse_host(text: str) -> str:
    """`name:address` or `name=address` (IPv6 with or without brackets) -> `name:address`."""
    match = re.match(r"([^:=\s]+)[:=](.+)", text)
    if match is None:
        raise _invalid("--add-host", text, "write NAME:ADDRESS")
    name, address = match.groups()
    try:
        parsed = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise _invalid("--add-host", text, f"{address!r} is not an IP address") from None
    return f"{name}:{parsed}"


def parse_dns_server(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise _invalid("--dns", text, "not an IP address") from None


def parse_env(texts: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """`NAME=value` as it stands; `NAME` with our own value, or not at all when we have none."""
    variables = []
    for text in texts:
        name, separator, _ = text.partition("=")
        if not name:
            raise _invalid("--env", text, "no name before the equals sign")
        if "\0" in text:
            raise _invalid("--env", text, "a NUL byte")
        if separator:
            variables.append(text)
        elif name in environ:
            variables.append(f"{name}={environ[name]}")
    return variables


def parse_env_lines(text: str, *, source: str) -> list[str]:
    """A file of Docker's form: one variable a line, `#` comments, values verbatim (no quotes, no expansion)."""
    lines = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.removesuffix("\r").lstrip(" \t")
        if not line or line.startswith("#"):
            continue
        name = line.partition("=")[0]
        if not name:
            raise InvalidError(f"line {number}: no variable name", subject=source)
        if re.search(r"\s", name):
            raise InvalidError(f"line {number}: variable {name!r} contains white space", subject=source)
        lines.append(line)
    return lines


def read_env_file(path: str) -> list[str]:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_ENV_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", subject=path) from error
    if len(content) > MAX_ENV_FILE_BYTES:
        raise InvalidError(f"larger than {MAX_ENV_FILE_BYTES >> 20} MiB", subject=path)
    try:
        return parse_env_lines(content.decode(), source=path)
    except UnicodeDecodeError as error:
        raise InvalidError("not UTF-8 text", subject=path) from error


def collect_env(files: Sequence[str], texts: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Files first, so that a flag of the same name wins; the last one of a name is the one that counts."""
    chosen: dict[str, str] = {}
    for variable in parse_env([line for file in files for line in read_env_file(file)], environ):
        chosen[variable.partition("=")[0]] = variable
    for variable in parse_env(texts, environ):
        chosen[variable.partition("=")[0]] = variable
    return list(chosen.values())


def collect_labels(files: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    lines = [line for file in files for line in read_env_file(file)]
    return parse_pairs("--label-file", lines) | parse_pairs("--label", texts)


def parse_filters(texts: Iterable[str], allowed: Iterable[str]) -> list[tuple[str, str]]:
    """`-f KEY=VALUE`."""
    filters = []
    for text in texts:
        key, separator, value = text.partition("=")
        key = key.strip().lower()
        if not separator:
            raise _invalid("--filter", text, "write KEY=VALUE")
        if key not in allowed:
            raise _invalid("--filter", text, f"known filters are {', '.join(allowed)}")
        filters.append((key, value.strip()))
    return filters


def parse_bool(flag: str, text: str) -> bool:
    if text.lower() in {"1", "t", "true"}:
        return True
    if text.lower() in {"0", "f", "false"}:
        return False
    raise _invalid(flag, text, "true or false")
