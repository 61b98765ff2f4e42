# SPDX-License-Identifier: Apache-2.0
"""Networks as Docker shapes them: the rows of `network ls` and the documents of `network inspect`."""

from collections.abc import Mapping
from typing import Any

from hyper.v1 import network_pb2 as pb
from hyperctl.names import SHORT_ID
from hyperctl.render import render_pairs, render_rfc3339
from hyperctl.template import OpenMap

NETWORK_HEADERS = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Subnet": "SUBNET",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
}
NETWORK_COLUMNS = ("ID", "Name", "Driver", "Subnet")


def network_row(network: pb.Network, *, truncate: bool) -> Mapping[str, Any]:
    spec = network.spec
    return {
        "ID": network.id[:SHORT_ID] if truncate else network.id,
        "Name": spec.name,
        "Driver": "bridge",
        "Scope": "local",
        "Subnet": spec.subnet,
        "Internal": str(spec.internal).lower(),
        "Labels": render_pairs(spec.labels),
        "CreatedAt": _created(network),
        "Label": lambda key: spec.labels.get(key, ""),
    }


def network_document(network: pb.Network) -> dict[str, Any]:
    spec = network.spec
    return {
        "Name": spec.name,
        "Id": network.id,
        "Created": _created(network),
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv6": spec.ipv6,
        "IPAM": {
            "Driver": "default",
            "Config": [
                {"Subnet": spec.subnet, "IPRange": spec.ip_range, "Gateway": spec.gateway},
                *([{"Subnet": spec.subnet6, "Gateway": spec.gateway6}] if spec.ipv6 else []),
            ],
        },
        "Internal": spec.internal,
        "Containers": OpenMap(
            (
                member.container_id,
                {
                    "Name": member.name,
                    "MacAddress": member.attachment.mac,
                    "IPv4Address": f"{member.attachment.address}/{member.attachment.prefix_length}"
                    if member.attachment.address
                    else "",
                    "IPv6Address": f"{member.attachment.address6}/{member.attachment.prefix_length6}"
                    if member.attachment.address6
                    else "",
                },
            )
            for member in network.members
        ),
        "Options": OpenMap({"mtu": str(spec.mtu)} if spec.mtu else {}),
        "Labels": OpenMap(sorted(spec.labels.items())),
        "Bridge": network.bridge,
    }


def _created(network: pb.Network) -> str:
    return render_rfc3339(network.created_at.seconds, network.created_at.nanos)
