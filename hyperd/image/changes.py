# SPDX-License-Identifier: Apache-2.0
"""Dockerfile instructions that change an image's config, as `docker commit --change` takes them. Pure.

Parsing follows BuildKit's frontend/dockerfile, effects follow docker's daemon/commit.go:

* ENTRYPOINT without a CMD beside it takes the base's CMD away, which was meant for another program;
* variables are those of the base and of the lines before; HEALTHCHECK keeps what it does not name.
"""

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.image import healthcheck
from hyperd.image.words import expand, split_words

MAX_CHANGES = 1000
MAX_TEXT_LENGTH = 1 << 18
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/([A-Za-z]+))?", re.ASCII)
_PROTOCOLS = ("tcp", "udp", "sctp")
_SIGNAL = re.compile(r"(?:SIG)?(?:RTMIN(?:\+\d\d?)?|RTMAX(?:-\d\d?)?|[A-Z]{2,6}\d?)|\d{1,2}", re.ASCII)
_ELSEWHERE = ("ADD", "ARG", "COPY", "FROM", "MAINTAINER", "ONBUILD", "RUN", "SHELL")
_HINT = (
    "as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR"
)


@dataclass(slots=True)
class _State:
    config: dict[str, Any]
    is_cmd_set: bool = False
    variables: dict[str, str] = field(default_factory=dict)

    def expanded(self, text: str) -> str:
        return expand(text, self.variables)


def apply_changes(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A new ``config`` object. Raises InvalidError, UnsupportedError, with the line as their subject."""
    if len(changes) > MAX_CHANGES or sum(map(len, changes)) > MAX_TEXT_LENGTH:
        raise InvalidError(
            f"there are more than {MAX_CHANGES} changes, or {MAX_TEXT_LENGTH >> 10} KiB of them"
        )
    state = _State(dict(config))
    for line in _lines(changes):
        state.variables = dict(_split_variable(item) for item in _texts(state.config.get("Env")))
        try:
            _apply(state, line)
        except HyperError as error:
            error.subject = error.subject or line[:300]
            raise
    return state.config


def _lines(changes: Iterable[str]) -> Iterable[str]:
    """Instructions: lines joined where a backslash ends one; without comments."""
    for change in changes:
        if "\x00" in change:
            raise InvalidError("a change has a NUL in it", subject=repr(change)[:300])
        pending = ""
        for line in change.splitlines():
            if line.lstrip().startswith("#") or (pending and not line.strip()):
                continue
            pending += line
            if pending.endswith("\\"):
                pending = pending[:-1]
            elif pending.strip():
                yield pending.strip()
                pending = ""
        if pending.strip():
            yield pending.strip()


def _apply(state: _State, line: str) -> None:
    word, *after = line.split(maxsplit=1)
    name, rest = word.upper(), after[0] if after else ""
    known = _INSTRUCTIONS.get(name)
    if known is None:
        if name in _ELSEWHERE:
            raise UnsupportedError(f"{name} is not a change that a commit makes", hint=_HINT)
        raise InvalidError("this is no instruction", hint=_HINT)
    if name != "HEALTHCHECK" and rest.startswith("--"):
        raise InvalidError(f"{name} has no such option", evidence=rest.split()[0][:100])
    if not rest:
        raise InvalidError(f"{name} says nothing", hint=_HINT)
    known(state, rest)


def _cmd(state: _State, rest: str) -> None:
    state.config["Cmd"] = _command(state, rest)
    state.is_cmd_set = True


def _entrypoint(state: _State, rest: str) -> None:
    state.config["Entrypoint"] = _command(state, rest)
    if state.config["Entrypoint"] and not state.is_cmd_set:
        state.config.pop("Cmd", None)


def _command(state: _State, rest: str) -> list[str]:
    listed = parse_list(rest)
    return [*shell_of(state.config), rest] if listed is None else listed


def _env(state: _State, rest: str) -> None:
    env = _texts(state.config.get("Env"))
    for key, value in _pairs(state, rest, "ENV"):
        places = [at for at, item in enumerate(env) if _split_variable(item)[0] == key]
        if places:
            env[places[0]] = f"{key}={value}"
        else:
            env.append(f"{key}={value}")
    state.config["Env"] = env


def _label(state: _State, rest: str) -> None:
    state.config["Labels"] = {**(state.config.get("Labels") or {}), **dict(_pairs(state, rest, "LABEL"))}


def _pairs(state: _State, rest: str, name: str) -> list[tuple[str, str]]:
    words = split_words(rest)
    if "=" in words[0]:
        for word in words:
            if "=" not in word:
                raise InvalidError(f"{name} takes KEY=VALUE", evidence=word[:100])
        pairs = [(key, value) for key, _, value in (word.partition("=") for word in words)]
    else:  # ENV A the rest of the line
        key, *values = rest.split(maxsplit=1)
        if not values:
            raise InvalidError(f"{name} takes KEY=VALUE", evidence=rest[:100])
        pairs = [(key, values[0])]
    expanded = [(state.expanded(key), state.expanded(value)) for key, value in pairs]
    for key, _ in expanded:
        if not key or (name == "ENV" and "=" in key):
            raise InvalidError(f"{name} has a value without a sensible name")
    return expanded


def _expose(state: _State, rest: str) -> None:
    ports = dict(state.config.get("ExposedPorts") or {})
    for word in rest.split():
        for port in _port_range(state.expanded(word)):
            ports.setdefault(port, {})
    state.config["ExposedPorts"] = ports


def _port_range(text: str) -> list[str]:
    found = _PORT.fullmatch(text)
    protocol = (found[3] or "tcp").lower() if found else ""
    if not found or protocol not in _PROTOCOLS:
        raise InvalidError("EXPOSE takes PORT[-PORT][/tcp|/udp|/sctp]", evidence=text[:100])
    first = int(found[1])
    last = int(found[2] or first)
    if not 1 <= first <= last <= 65535:
        raise InvalidError("EXPOSE takes ports from 1 to 65535, the lower first", evidence=text[:100])
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _volume(state: _State, rest: str) -> None:
    listed = parse_list(rest)
    volumes = dict(state.config.get("Volumes") or {})
    for item in rest.split() if listed is None else listed:
        path = state.expanded(item).strip()
        if not path:
            raise InvalidError("VOLUME has an empty path")
        volumes.setdefault(path, {})
    state.config["Volumes"] = volumes


def _user(state: _State, rest: str) -> None:
    state.config["User"] = state.expanded(rest)


def _workdir(state: _State, rest: str) -> None:
    path = state.expanded(rest)
    if not path:
        raise InvalidError("WORKDIR has an empty path")
    before = str(state.config.get("WorkingDir") or "/")
    state.config["WorkingDir"] = posixpath.normpath(posixpath.join("/", before, path)).replace("//", "/")


def _stop_signal(state: _State, rest: str) -> None:
    signal = state.expanded(rest)
    if not _SIGNAL.fullmatch(signal.upper()) or (signal.isdigit() and not 1 <= int(signal) <= 64):
        raise InvalidError("STOPSIGNAL takes a signal", evidence=signal[:100])
    state.config["StopSignal"] = signal


def _healthcheck(state: _State, rest: str) -> None:
    before = state.config.get("Healthcheck")
    parsed = healthcheck.parse(rest, parse_list)
    is_none = parsed["Test"] == ["NONE"]
    state.config["Healthcheck"] = {**({} if is_none or not isinstance(before, dict) else before), **parsed}


def parse_list(text: str) -> list[str] | None:
    """The exec form; None is the shell form. A JSON list of other things raises InvalidError."""
    if not text.lstrip().startswith("["):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(item, str) for item in items):
        raise InvalidError("the list has something else than texts in it", evidence=text[:100])
    return list(items)


def shell_of(config: Mapping[str, Any]) -> list[str]:
    return _texts(config.get("Shell")) or ["/bin/sh", "-c"]


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _split_variable(item: str) -> tuple[str, str]:
    key, _, value = item.partition("=")
    return key, value


_INSTRUCTIONS: Mapping[str, Callable[[_State, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
