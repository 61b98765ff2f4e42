# SPDX-License-Identifier: Apache-2.0
"""Addresses and wires for sandboxes: one bridge, a tap for each sandbox, NAT to the world outside."""

from hyperd.network.base import Network
from hyperd.network.bridge_network import BridgeNetwork
from hyperd.network.floating import parse_pools
from hyperd.network.networks import BridgeNetworks
from hyperd.network.settings import DEFAULT_SUBNET, BridgeSettings

__all__ = ["DEFAULT_SUBNET", "BridgeNetwork", "BridgeNetworks", "BridgeSettings", "Network", "parse_pools"]
