# SPDX-License-Identifier: Apache-2.0
"""The way out, and what guests may not reach: one nftables table of our own, replaced as a whole.

What the rules promise is in docs/network.md. Nothing outside our table is touched.
"""

from collections.abc import Sequence
from pathlib import Path

from hyperd.errors import DeniedError, HyperError, UnavailableError
from hyperd.host import process
from hyperd.network.settings import BridgeSettings

_NFT_TIMEOUT_S = 20.0
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def render_rules(settings: BridgeSettings, dns_servers: Sequence[str]) -> str:
    """The table as input for ``nft -f``: atomic, and the same result whatever was there before."""
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


async def apply_rules(settings: BridgeSettings, dns_servers: Sequence[str]) -> None:
    """Raises UnavailableError when nft is missing or refuses, DeniedError."""
    rules = render_rules(settings, dns_servers).encode()
    try:
        finished = await process.run(["nft", "-f", "-"], timeout_s=_NFT_TIMEOUT_S, stdin=rules)
    except UnavailableError as error:
        raise UnavailableError(
            "nftables is needed for the network of sandboxes",
            subject=settings.bridge,
            evidence=str(error),
            hint="install the package nftables",
        ) from error
    if finished.returncode == 0:
        return
    kind: type[HyperError] = DeniedError if "not permitted" in finished.stderr_tail else UnavailableError
    raise kind(
        "the rules for the network of sandboxes were refused",
        subject=f"table inet {settings.table}",
        evidence=finished.stderr_tail,
    )


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
