# SPDX-License-Identifier: Apache-2.0
"""The way out, and what guests may not reach: two nftables tables of our own, replaced as a whole.

What the rules promise is in docs/network.md. Nothing outside our tables is touched.
"""

import contextlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from hyperd.errors import DeniedError, HyperError, UnavailableError
from hyperd.host import process
from hyperd.network import forwards
from hyperd.network.bridge import is_loopback6_led
from hyperd.network.elements import BRIDGE_FAMILY, INET_FAMILY
from hyperd.network.forwards import Forward
from hyperd.network.settings import BridgeSettings
from hyperd.network.speakers import Speaker, render
from hyperd.network.standing import count_rules
from hyperd.network.tap import JUDGED, PREFIX

_log = logging.getLogger(__name__)
_NFT_TIMEOUT_S = 20.0
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_INTERFACES6 = Path("/proc/sys/net/ipv6/conf")
_INTERFACES = Path("/proc/sys/net/ipv4/conf")
_NO_WAYS = """\
        iifname "{bridge}" counter reject with icmpx admin-prohibited comment "an internal network"
"""
_WAYS = """\
        iifname "{bridge}" ip daddr 169.254.0.0/16 th dport 53 accept comment "some clouds resolve names there"
        iifname "{bridge}" ip daddr 169.254.0.0/16 counter reject comment "cloud metadata: credentials"
        iifname "{bridge}" ip6 daddr fd00:ec2::/32 counter reject comment "as above"
        iifname "{bridge}" accept
        oifname "{bridge}" ct state established,related accept
        oifname "{bridge}" ct status dnat accept comment "published ports"
"""


def render_rules(
    settings: BridgeSettings,
    dns_servers: Sequence[str],
    speakers: Iterable[Speaker] = (),
    published: Iterable[Forward] = (),
) -> str:
    """The tables as input for ``nft -f``: atomic, and the same result whatever was there before."""
    return render_routed(settings, dns_servers, published) + render_bridged(settings, speakers)


def render_routed(
    settings: BridgeSettings, dns_servers: Sequence[str], published: Iterable[Forward] = ()
) -> str:
    published = tuple(published)
    bridge, subnet, table = settings.bridge, settings.subnet, settings.table
    asked = () if settings.internal else dns_servers
    allowed = [*asked, *([str(settings.gateway)] if settings.has_names else [])]
    dns = f"ip daddr {{ {', '.join(allowed)} }} th dport 53 accept" if allowed else ""
    others = (
        f'iifname != {{ "{bridge}", "lo" }} iifname != "{PREFIX}*" ip daddr {settings.gateway} th dport 53 counter drop'
        ' comment "names are for the guests"'
        if settings.has_names
        else ""
    )
    own6, within6, nat6 = _render_ipv6(settings, published)
    routed = f'iifname "{PREFIX}*"'  # a tap with a policy, which has judged this already
    unjudged = f'{routed} meta mark & {JUDGED:#x} == 0 counter drop comment "its policy is not there"'
    ways = _NO_WAYS if settings.internal else _WAYS
    beyond = ways.format(bridge=bridge)
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
    comment "made by hyperd; replaced as a whole, so do not edit"
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{bridge}" ip saddr != {subnet} counter drop comment "a guest has no other address"
{own6}        iifname != "lo" ip daddr 127.0.0.0/8 counter drop comment "the host's loopback is the host's"
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        {unjudged}
        {others}
        iifname != "{bridge}" accept
        ct state established,related accept
        icmp type echo-request accept
{within6}        {dns}
        counter reject with icmpx admin-prohibited comment "the host's own services"
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        {unjudged}
        iifname "{bridge}" oifname "{bridge}" accept
        {routed} ip saddr {subnet} oifname "{bridge}" accept
        iifname "{bridge}" oifname "{PREFIX}*" ip daddr {subnet} accept
{beyond}\
        oifname "{bridge}" counter drop comment "nobody outside begins"
    }}
{forwards.render(bridge, str(subnet), str(settings.gateway), published)}{nat6}}}
"""


def _render_ipv6(settings: BridgeSettings, published: Iterable[Forward]) -> tuple[str, str, str]:
    """What a guest may send at all, what the host itself hears of it, and under whose address the rest leaves."""
    bridge, subnet = settings.bridge, settings.subnet6
    if subnet is None:
        return (
            f'        iifname "{bridge}" meta nfproto ipv6 counter drop comment "guests have IPv4 only"\n',
            "",
            "",
        )
    own = (
        f'        iifname "{bridge}" ip6 saddr != {{ {subnet}, fe80::/10 }} counter drop\n'
        f'        iifname != {{ "{bridge}", "lo" }} ip6 saddr {subnet} counter drop comment "nobody else has these"\n'
    )
    within = "        icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept\n"
    if settings.internal:
        return own, within, ""
    gateway = str(settings.gateway6)
    nat = forwards.render6(bridge, str(subnet), gateway, published, loopback=is_loopback6_led())
    return own, within, nat


def render_bridged(settings: BridgeSettings, speakers: Iterable[Speaker]) -> str:
    return f"""\
table bridge {settings.table}
delete table bridge {settings.table}
table bridge {settings.table} {{
    comment "made by hyperd; replaced as a whole, so do not edit"
{render(speakers, has_ipv6=settings.subnet6 is not None)}}}
"""


async def apply_rules(
    settings: BridgeSettings,
    dns_servers: Sequence[str],
    speakers: Iterable[Speaker],
    published: Iterable[Forward] = (),
) -> bool:
    """Raises UnavailableError when nft is missing or refuses, DeniedError.

    False: all but the rules for each tap, where the host's kernel has no such thing for bridges.
    """
    published = tuple(published)
    refusal = await _load(settings, render_rules(settings, dns_servers, speakers, published))
    routed = render_routed(settings, dns_servers, published)
    if "not supported" in refusal and not await _load(settings, routed):
        return False
    if not refusal:
        return True
    kind: type[HyperError] = DeniedError if "not permitted" in refusal else UnavailableError
    raise kind(
        "the rules for the network of sandboxes were refused",
        subject=f"table inet {settings.table}",
        evidence=refusal,
    )


async def remove_rules(settings: BridgeSettings) -> None:
    """Idempotent. Raises UnavailableError."""
    names = [f"{family} {settings.table}" for family in ("inet", "bridge")]
    gone = "".join(f"table {name}\ndelete table {name}\n" for name in names)
    refusal = await _load(settings, gone)
    if "not supported" in refusal:
        refusal = await _load(settings, f"table {names[0]}\ndelete table {names[0]}\n")
    if refusal:
        raise UnavailableError("its rules were not removed", subject=names[0], evidence=refusal)


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


def rules_standing(settings: BridgeSettings, *, bridged: bool = True) -> tuple[int, ...]:
    """How many rules each of our tables has; () when that cannot be seen. Cheap enough for every start."""
    families = (INET_FAMILY, BRIDGE_FAMILY) if bridged else (INET_FAMILY,)
    try:
        return tuple(count_rules(family, settings.table) for family in families)
    except OSError:  # TimeoutError is one
        return ()


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


def enable_forwarding6() -> bool:
    """Let the host forward IPv6; return whether this changed it. Raises DeniedError.

    A host that forwards hears no router any more unless it is told to: those that do now, do so on.
    """
    switch = _INTERFACES6 / "all" / "forwarding"
    try:
        if switch.read_text().strip() != "0":
            return False
        for interface in _INTERFACES6.iterdir():
            heeds = interface / "accept_ra"
            with contextlib.suppress(FileNotFoundError):  # taps come and go
                if heeds.read_text().strip() == "1":
                    heeds.write_text("2")
        switch.write_text("1")
    except OSError as error:
        raise DeniedError(
            "the host does not forward IPv6, and it may not be changed",
            subject="net.ipv6.conf.all.forwarding",
            evidence=str(error),
            hint="set it to 1, or make the network without --ipv6",
        ) from error
    return True


def let_loopback_in(interface: str, *, wanted: bool = True) -> None:
    """Let the host's own connections to 127.0.0.1 be led to a guest, and their answers back; or no longer.

    Only with our rules in force: they keep everybody else from sending to 127.0.0.0/8. Where it may not be changed,
    published ports are not reached at 127.0.0.1, and at the host's other addresses all the same.
    """
    switch, value = _INTERFACES / interface / "route_localnet", "1" if wanted else "0"
    try:
        if switch.read_text().strip() != value:
            switch.write_text(value)
    except FileNotFoundError:
        return  # so is the interface
    except OSError as error:
        _log.warning(
            "route_localnet is not as it should be", extra={"interface": interface, "error": str(error)}
        )
