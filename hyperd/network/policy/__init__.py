# SPDX-License-Identifier: Apache-2.0
"""What sandboxes may begin: policies, from the document to the kernel's rules and the report of what was refused."""

from hyperd.network.policy.announcement import announce
from hyperd.network.policy.policies import Policies
from hyperd.network.policy.screen import Screen
from hyperd.network.policy.wire import Ipv6, Wire, route
from hyperd.network.policy.wires import Place

__all__ = ["Ipv6", "Place", "Policies", "Screen", "Wire", "announce", "route"]
