# SPDX-License-Identifier: Apache-2.0
"""The image room: OCI images, from a registry to a disk that a guest mounts."""

from hyperd.image.base import ImageStore, PullEvent
from hyperd.image.budget import LOW_SHARE, Marks
from hyperd.image.platform import host_platform, parse_platform
from hyperd.image.settings import ImageSettings
from hyperd.image.store import OciImageStore

__all__ = [
    "LOW_SHARE",
    "ImageSettings",
    "ImageStore",
    "Marks",
    "OciImageStore",
    "PullEvent",
    "host_platform",
    "parse_platform",
]
