# SPDX-License-Identifier: Apache-2.0
"""Published ports that follow a sandbox from one of its networks to another."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hyperd.errors import ExistsError
from hyperd.model.network import PortRequest
from hyperd.model.vm import SandboxId
from hyperd.network.bridge_network import BridgeNetwork

_log = logging.getLogger(__name__)


async def lead(
    sandbox_id: SandboxId,
    there: BridgeNetwork,
    others: Iterable[BridgeNetwork],
    holder: str,
    wanted: Sequence[PortRequest],
) -> None:
    """What it publishes on ``others``, and ``wanted``, there; on an internal one nothing. Raises as ``publish``."""
    requests, has_ipv6 = list(wanted), there.settings.subnet6 is not None
    for other in others:
        moved = other.published(sandbox_id)
        if moved and other is not there:
            requests += other.requests_again(sandbox_id, has_ipv6=has_ipv6)
            await other.unpublish(sandbox_id, moved)
    if not requests or there.settings.internal:
        return
    try:
        await there.publish(sandbox_id, requests, holder)
    except ExistsError as error:  # somebody has one of them in the family that is new
        _log.warning("ports stay in IPv4", extra={"holder": holder, "error": str(error)})
        default = str(there.settings.publish_address)
        at_ipv4 = [replace(one, host_ip=one.host_ip or default) for one in requests]
        await there.publish(sandbox_id, [one for one in at_ipv4 if ":" not in one.host_ip], holder)
