# SPDX-License-Identifier: Apache-2.0
"""VMs that went through a start before anybody asked: made when nobody starts, taken by who does."""

from hyperd.sandbox.spares.giving_way import attach_before_spares
from hyperd.sandbox.spares.spare import Spare, SpareMaker, unfit
from hyperd.sandbox.spares.spares import Spares, SpareSettings

__all__ = ["Spare", "SpareMaker", "SpareSettings", "Spares", "attach_before_spares", "unfit"]
