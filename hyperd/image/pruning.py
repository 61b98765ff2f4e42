# SPDX-License-Identifier: Apache-2.0
"""Which images `image prune` takes: Docker's rules and filters (moby's daemon/images/image_prune.go)."""

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hyperd.errors import InvalidError
from hyperd.image import records, removal
from hyperd.model.image import Image, ImageId, Removal

RESTS_AGE_S = 3600.0  # of pulls that broke: younger ones may be continued, or under way
MAX_FILTERS = 100
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|\u00b5s|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_SECONDS = re.compile(r"\d{1,11}(?:\.\d{1,9})?", re.ASCII)
_HINT = "as in 10m, 1h30m, 2026-01-02, 2026-01-02T03:04:05Z, or seconds since 1970"


@dataclass(frozen=True, slots=True)
class Choice:
    """``labels``: (key, value), where None is any value. Labels all match; one that has all of ``not_labels`` stays."""

    everything: bool = False
    until: datetime | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    not_labels: tuple[tuple[str, str | None], ...] = ()

    @property
    def is_filtered(self) -> bool:
        return self.until is not None or bool(self.labels or self.not_labels)

    def takes(self, image: Image) -> bool:
        if image.tags and not self.everything:
            return False
        if self.until is not None and image.created_at is not None and image.created_at > self.until:
            return False
        labels = image.config.labels
        if not all(_matches(labels, *label) for label in self.labels):
            return False
        return not self.not_labels or not all(_matches(labels, *label) for label in self.not_labels)


def parse_choice(filters: Sequence[tuple[str, str]], *, everything: bool, now: datetime) -> Choice:
    """``until``, ``label`` and ``label!``. Raises InvalidError."""
    if len(filters) > MAX_FILTERS:
        raise InvalidError(f"there are more than {MAX_FILTERS} filters")
    untils: list[datetime] = []
    labels: list[tuple[str, str | None]] = []
    not_labels: list[tuple[str, str | None]] = []
    for key, value in filters:
        if key == "until":
            untils.append(parse_until(value, now))
        elif key in ("label", "label!") and value and not value.startswith("="):
            name, equals, wanted = value.partition("=")
            (labels if key == "label" else not_labels).append((name, wanted if equals else None))
        else:
            raise InvalidError(
                "no such filter",
                subject=f"{key}={value}"[:300],
                hint="until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]",
            )
    if len(untils) > 1:
        raise InvalidError("until can be given once")
    return Choice(everything, untils[0] if untils else None, tuple(labels), tuple(not_labels))


def parse_until(text: str, now: datetime) -> datetime:
    """A time, or how long ago; without a zone it is the daemon's. Raises InvalidError."""
    try:
        if _DURATION.fullmatch(text):
            return now - timedelta(
                seconds=sum(float(count) * _UNITS_S[unit] for count, unit in _PART.findall(text))
            )
        if _SECONDS.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidError("this is not a time", subject=f"until={text}"[:300], hint=_HINT) from error


def prune(connection: sqlite3.Connection, choice: Choice, in_use: Mapping[ImageId, str]) -> removal.Removed:
    """All that the choice takes and nobody uses, in one transaction."""
    images = [
        image
        for image_id in records.list_ids(connection)
        if image_id not in in_use and choice.takes(image := records.get_image(connection, image_id))
    ]
    untagged = tuple(name for image in images for name in (*image.tags, *image.digests))
    deleted = removal.delete_all(connection, images)
    return removal.Removed(Removal(untagged, deleted), tuple(image.image_id for image in images))


def _matches(labels: Mapping[str, str], key: str, value: str | None) -> bool:
    return key in labels and value in (None, labels[key])
