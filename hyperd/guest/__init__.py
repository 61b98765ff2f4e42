# SPDX-License-Identifier: Apache-2.0
"""The agent as the host sees it: dial it, get a ``Guest``."""

from hyperd.guest.base import Guest, GuestDialer, InputWriter, OutputReader
from hyperd.guest.dialer import AgentDialer

__all__ = ["AgentDialer", "Guest", "GuestDialer", "InputWriter", "OutputReader"]
