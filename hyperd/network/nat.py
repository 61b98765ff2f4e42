# SPDX-License-Identifier: Apache-2.0
"""The way out, and what guests may not reach: two nftables tables of our own, replaced as a whole.

What the rules promise is in docs/network.md. Nothing outside our tables is touched.
"""

import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from hyperd.errors import DeniedError, HyperError, UnavailableError
from hyperd.host import process
from hyperd.network.settings import BridgeSettings
from hyperd.network.speakers import BRIDGE_FAMILY, Speaker, render

_NFT_TIMEOUT_S = 20.0
_ANSWER_S = 1.0
_ANSWER_BYTES = 8192
_NETLINK_NETFILTER = 12
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_NFT_MSG_GETTABLE = 10 << 8 | 1
_NFTA_TABLE_NAME = 1
_INET = 1  # NFPROTO_INET
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def render_rules(
    settings: BridgeSettings, dns_servers: Sequence[str], speakers: Iterable[Speaker] = ()
) -> str:
    """The tables as input for ``nft -f``: atomic, and the same result whatever was there before."""
    return render_routed(settings, dns_servers) + render_bridged(settings, speakers)


def render_routed(settings: BridgeSettings, dns_servers: Sequence[str]) -> str:
    bridge, subnet, table = settings.bridge, settings.subnet, settings.table
    dns = f"ip daddr {{ {', '.join(dns_servers)} }} th dport 53 accept" if dns_servers else ""
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
    comment "made by hyperd; replaced as a whole, so do not edit"
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{bridge}" ip saddr != {subnet} counter drop comment "a guest has no other address"
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname != "{bridge}" accept
        ct state established,related accept
        icmp type echo-request accept
        {dns}
        counter reject with icmpx admin-prohibited comment "the host's own services"
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" oifname "{bridge}" accept
        iifname "{bridge}" meta nfproto ipv6 counter drop
        iifname "{bridge}" ip daddr 169.254.0.0/16 th dport 53 accept comment "some clouds resolve names there"
        iifname "{bridge}" ip daddr 169.254.0.0/16 counter reject comment "cloud metadata: credentials"
        iifname "{bridge}" accept
        oifname "{bridge}" ct state established,related accept
        oifname "{bridge}" counter drop comment "nobody outside begins"
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != "{bridge}" masquerade
    }}
}}
"""


def render_bridged(settings: BridgeSettings, speakers: Iterable[Speaker]) -> str:
    return f"""\
table bridge {settings.table}
delete table bridge {settings.table}
table bridge {settings.table} {{
    comment "made by hyperd; replaced as a whole, so do not edit"
{render(speakers)}}}
"""


async def apply_rules(
    settings: BridgeSettings, dns_servers: Sequence[str], speakers: Iterable[Speaker]
) -> bool:
    """Raises UnavailableError when nft is missing or refuses, DeniedError.

    False: all but the rules for each tap, where the host's kernel has no such thing for bridges.
    """
    refusal = await _load(settings, render_rules(settings, dns_servers, speakers))
    if "not supported" in refusal and not await _load(settings, render_routed(settings, dns_servers)):
        return False
    if not refusal:
        return True
    kind: type[HyperError] = DeniedError if "not permitted" in refusal else UnavailableError
    raise kind(
        "the rules for the network of sandboxes were refused",
        subject=f"table inet {settings.table}",
        evidence=refusal,
    )


async def _load(settings: BridgeSettings, rules: str) -> str:
    """What nft has against it; "" when they are in force."""
    try:
        finished = await process.run(["nft", "-f", "-"], timeout_s=_NFT_TIMEOUT_S, stdin=rules.encode())
    except UnavailableError as error:
        raise UnavailableError(
            "nftables is needed for the network of sandboxes",
            subject=settings.bridge,
            evidence=str(error),
            hint="install the package nftables",
        ) from error
    return "" if finished.returncode == 0 else finished.stderr_tail or "no reason given"


def has_rules(settings: BridgeSettings, *, bridged: bool = True) -> bool:
    """Whether our tables are still there; cheap enough for every start: the kernel answers while it is asked."""
    families = (_INET, BRIDGE_FAMILY) if bridged else (_INET,)
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        ) as kernel:
            kernel.settimeout(_ANSWER_S)
            return all(_has_table(kernel, family, settings.table) for family in families)
    except OSError:  # TimeoutError is one: what cannot be seen is made again
        return False


def _has_table(kernel: socket.socket, family: int, table: str) -> bool:
    """NFT_MSG_GETTABLE by hand; see linux/netfilter/nf_tables.h."""
    name = table.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), _NFTA_TABLE_NAME) + name + b"\0" * (-len(name) % 4)
    body = struct.pack("=BBH", family, 0, 0) + attribute
    kernel.send(struct.pack("=IHHII", 16 + len(body), _NFT_MSG_GETTABLE, _NLM_F_REQUEST, 0, 0) + body)
    (kind,) = struct.unpack_from("=H", kernel.recv(_ANSWER_BYTES), 4)
    return bool(kind != _NLMSG_ERROR)


def enable_forwarding() -> bool:
    """Let the host forward IPv4; return whether this changed it. Raises DeniedError."""
    try:
        if _FORWARDING.read_text().strip() != "0":
            return False
        _FORWARDING.write_text("1")
    except OSError as error:
        raise DeniedError(
            "the host does not forward packets, and it may not be changed",
            subject="net.ipv4.ip_forward",
            evidence=str(error),
            hint="set net.ipv4.ip_forward=1, or run sandboxes with --network none",
        ) from error
    return True
