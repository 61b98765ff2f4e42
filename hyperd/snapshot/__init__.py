# SPDX-License-Identifier: Apache-2.0
"""Saved virtual machines on this host's disk."""

from hyperd.snapshot.base import Draft, SnapshotStore

__all__ = ["Draft", "SnapshotStore"]
