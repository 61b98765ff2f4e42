# SPDX-License-Identifier: Apache-2.0
"""The agent as the host sees it: dial it, get a ``Guest``."""

from hyperd.guest.base import Guest, GuestDialer, InputWriter, OutputReader, ProcessRun
from hyperd.guest.client import PROTOCOL_VERSION
from hyperd.guest.dialer import AgentDialer

__all__ = [
    "PROTOCOL_VERSION",
    "AgentDialer",
    "Guest",
    "GuestDialer",
    "InputWriter",
    "OutputReader",
    "ProcessRun",
]
