# SPDX-License-Identifier: Apache-2.0
"""The image config: what a runtime acts on, out of bytes that anybody may have written (OCI image-spec config.md)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hyperd.errors import HyperError, InvalidError
from hyperd.image.manifest import MAX_CONFIG_BYTES, MAX_LAYERS, load_object
from hyperd.image.reference import parse_digest
from hyperd.model.image import Digest, HistoryEntry, ImageConfig, Platform

MAX_ITEMS = 10_000
MAX_TEXT_LENGTH = 1 << 20
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)  # RFC 3339


@dataclass(frozen=True, slots=True)
class ParsedConfig:
    platform: Platform
    config: ImageConfig
    diff_ids: tuple[Digest, ...]
    created_at: datetime | None
    author: str
    history: tuple[HistoryEntry, ...]


def parse_config(raw: bytes, subject: str) -> ParsedConfig:
    """Raises InvalidError."""
    body = load_object(raw, MAX_CONFIG_BYTES, "image config", subject)
    try:
        return ParsedConfig(
            platform=Platform(_text(body, "os"), _text(body, "architecture"), _text(body, "variant")),
            config=_parse_runtime(_object(body, "config")),
            diff_ids=_parse_diff_ids(_object(body, "rootfs")),
            created_at=parse_time(_text(body, "created")),
            author=_text(body, "author"),
            history=tuple(_parse_history(item) for item in _items(body, "history")),
        )
    except HyperError as error:
        error.subject = error.subject or subject
        raise


def parse_time(text: str) -> datetime | None:
    """RFC 3339 with up to nanoseconds; nonsense and year 0 are "unknown", not an error: nothing depends on it."""
    found = _TIME.fullmatch(text)
    if not found:
        return None
    date, time, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone
    try:
        when = datetime.fromisoformat(f"{date}T{time}.{(fraction or '0')[:6]:0<6}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return when if when.year > 1 else None


def _parse_runtime(body: Mapping[str, Any]) -> ImageConfig:
    return ImageConfig(
        env=_texts(body, "Env"),
        entrypoint=_texts(body, "Entrypoint"),
        cmd=_texts(body, "Cmd"),
        working_directory=_text(body, "WorkingDir"),
        user=_text(body, "User"),
        labels=_labels(body),
        exposed_ports=tuple(sorted(_object(body, "ExposedPorts"))),
        volumes=tuple(sorted(_object(body, "Volumes"))),
        stop_signal=_text(body, "StopSignal"),
        healthcheck_json=_parse_healthcheck(body),
    )


def _parse_healthcheck(body: Mapping[str, Any]) -> str:
    """Nobody here runs it, so nonsense in it is no reason to refuse the image."""
    found = body.get("Healthcheck")
    return json.dumps(found, separators=(",", ":")) if isinstance(found, dict) and found else ""


def _parse_diff_ids(rootfs: Mapping[str, Any]) -> tuple[Digest, ...]:
    items = _items(rootfs, "diff_ids")
    if len(items) > MAX_LAYERS:
        raise InvalidError(f"the image config lists {len(items)} layers, at most {MAX_LAYERS} can be joined")
    return tuple(parse_digest(item, "diff_id") for item in items)


def _parse_history(item: object) -> HistoryEntry:
    if not isinstance(item, dict):
        raise InvalidError("the image's history has an entry that is not an object")
    return HistoryEntry(
        created_at=parse_time(_text(item, "created")),
        created_by=_text(item, "created_by"),
        comment=_text(item, "comment"),
        empty_layer=item.get("empty_layer") is True,
    )


def _labels(body: Mapping[str, Any]) -> dict[str, str]:
    labels = _object(body, "Labels")
    return {_checked(key, "Labels"): _checked(value, "Labels") for key, value in labels.items()}


def _object(body: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_ITEMS:
        raise InvalidError(f"the image config's {key} is not a sensible object")
    for name in value:
        _checked(name, key)
    return value


def _items(body: Mapping[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise InvalidError(f"the image config's {key} is not a sensible list")
    return value


def _texts(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key)
    if isinstance(value, str):  # what very old builders wrote
        value = [value]
        return tuple(_checked(item, key) for item in value)
    return tuple(_checked(item, key) for item in _items(body, key))


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return "" if value is None else _checked(value, key)


def _checked(value: object, key: str) -> str:
    """Text that can be an argument of execve: no NUL, no lone surrogate, no novel."""
    if not isinstance(value, str) or len(value) > MAX_TEXT_LENGTH or "\x00" in value:
        raise InvalidError(f"the image config's {key} is not a sensible text", evidence=repr(value)[:100])
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidError(f"the image config's {key} is not Unicode", evidence=repr(value)[:100]) from error
    return value
