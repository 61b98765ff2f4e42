# SPDX-License-Identifier: Apache-2.0
"""What nftables is told of floating addresses: two maps in a table of their own, replaced as a whole. Pure.

What is sent to one goes to its sandbox, before any published port is looked for; what the sandbox begins beyond the
networks of sandboxes comes from it. A packet's way is one look-up however many there are.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address

from hyperd.network.tap import PREFIX


def table_of(base: str) -> str:
    """``base``: the default network's own table."""
    return f"{base}_floating"


def render(base: str, bridge: str, floating: Mapping[IPv4Address, IPv4Address]) -> str:
    """``floating``: address -> the sandbox's; with none, no table."""
    table = f"inet {table_of(base)}"
    head = f"table {table}\ndelete table {table}\n"
    if not floating:
        return head
    pairs = sorted(floating.items())
    to = ", ".join(f"{address} : {inside}" for address, inside in pairs)
    back = ", ".join(f"{inside} : {address}" for address, inside in pairs)
    within = "\n".join(f'        oifname "{name}" accept' for name in (bridge, "hyb*", f"{PREFIX}*", "lo"))
    return f"""{head}table {table} {{
    comment "made by hyperd; replaced as a whole, so do not edit"
    map to {{
        type ipv4_addr : ipv4_addr
        elements = {{ {to} }}
    }}
    map back {{
        type ipv4_addr : ipv4_addr
        elements = {{ {back} }}
    }}
    chain arriving {{
        type nat hook prerouting priority -102; policy accept;
        dnat ip to ip daddr map @to
    }}
    chain leaving {{
        type nat hook output priority -102; policy accept;
        dnat ip to ip daddr map @to
    }}
    chain sent {{
        type nat hook postrouting priority 98; policy accept;
{within}
        snat ip to ip saddr map @back
    }}
}}
"""
