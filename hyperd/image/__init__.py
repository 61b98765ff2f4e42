# SPDX-License-Identifier: Apache-2.0
"""The image room: OCI images, from a registry to a disk that a guest mounts."""

from hyperd.image.base import ImageStore, PullEvent
from hyperd.image.budget import LOW_SHARE, Marks
from hyperd.image.pax import read_records
from hyperd.image.platform import host_platform, parse_platform
from hyperd.image.reference import Transport, parse_digest, parse_source, parse_target
from hyperd.image.settings import ImageSettings
from hyperd.image.store import OciImageStore
from hyperd.image.waiting import Pace, paced
from hyperd.image.words import split_words

__all__ = [
    "LOW_SHARE",
    "ImageSettings",
    "ImageStore",
    "Marks",
    "OciImageStore",
    "Pace",
    "PullEvent",
    "Transport",
    "host_platform",
    "paced",
    "parse_digest",
    "parse_platform",
    "parse_source",
    "parse_target",
    "read_records",
    "split_words",
]
