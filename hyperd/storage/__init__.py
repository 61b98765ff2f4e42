# SPDX-License-Identifier: Apache-2.0
"""The storage room: bytes for guests."""

from hyperd.storage.base import Storage
from hyperd.storage.local import DEFAULT_SIZE_BYTES, MINIMUM_SIZE_BYTES, LocalStorage

__all__ = ["DEFAULT_SIZE_BYTES", "MINIMUM_SIZE_BYTES", "LocalStorage", "Storage"]
