# SPDX-License-Identifier: Apache-2.0
"""The storage room: bytes for guests."""

from hyperd.storage.base import DATA_DIRECTORY, Shares, Storage, Volumes, VolumeSnapshots
from hyperd.storage.doors import Doors
from hyperd.storage.local import DEFAULT_SIZE_BYTES, MINIMUM_SIZE_BYTES, LocalStorage
from hyperd.storage.places import Places
from hyperd.storage.shares import LocalShares
from hyperd.storage.space import SpaceWatch
from hyperd.storage.volume_rules import DEFAULT_VOLUME_BYTES
from hyperd.storage.volumes import LocalVolumes

__all__ = [
    "DATA_DIRECTORY",
    "DEFAULT_SIZE_BYTES",
    "DEFAULT_VOLUME_BYTES",
    "MINIMUM_SIZE_BYTES",
    "Doors",
    "LocalShares",
    "LocalStorage",
    "LocalVolumes",
    "Places",
    "Shares",
    "SpaceWatch",
    "Storage",
    "VolumeSnapshots",
    "Volumes",
]
