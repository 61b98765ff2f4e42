# SPDX-License-Identifier: Apache-2.0
"""Addresses of the host's that are lent to sandboxes, one to one, both ways."""

from hyperd.network.floating.floating import Floating
from hyperd.network.floating.pools import parse_pools

__all__ = ["Floating", "parse_pools"]
