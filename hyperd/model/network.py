# SPDX-License-Identifier: Apache-2.0
"""What a sandbox has of the network."""

from dataclasses import dataclass

from hyperd.model.vm import SandboxId


@dataclass(frozen=True, slots=True)
class Attachment:
    """A sandbox's lease and the tap that leads to it."""

    sandbox_id: SandboxId
    network: str
    tap: str
    mac: str
    address: str  # without prefix
    prefix_length: int
    gateway: str
    mtu: int
    dns_servers: tuple[str, ...]
    dns_searches: tuple[str, ...]
    dns_options: tuple[str, ...]
