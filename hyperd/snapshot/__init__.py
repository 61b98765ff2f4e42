# SPDX-License-Identifier: Apache-2.0
"""Saved virtual machines on this host's disk."""

from hyperd.snapshot.base import Draft, SnapshotStore
from hyperd.snapshot.local import LocalSnapshots

__all__ = ["Draft", "LocalSnapshots", "SnapshotStore"]
