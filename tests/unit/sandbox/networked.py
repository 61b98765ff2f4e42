# SPDX-License-Identifier: Apache-2.0
"""Containers on several networks, as their tests look at them."""

from hyperd.model.network import NetworkSpec
from hyperd.sandbox import NetworkDesk


async def desk_of(world, fleet):
    """With two networks to join."""
    made = NetworkDesk(world.network, fleet.views, fleet.records)
    await made.create(NetworkSpec("back"))
    await made.create(NetworkSpec("zone"))
    return made


def links(world, handle):
    return [(link.name, bool(link.routes)) for link in world.agent(handle).wiring.links]


def names(handle):
    return [attachment.network for attachment in handle.view().attachments]
