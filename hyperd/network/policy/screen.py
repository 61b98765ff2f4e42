# SPDX-License-Identifier: Apache-2.0
"""A network's name server, as sandboxes with a policy see it: names that they may not reach there are none of.

What an allowed name stands for is let through before the answer is sent.
"""

from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import dns.message
import dns.rcode
import dns.rdatatype

from hyperd.model.policy import EgressMode
from hyperd.network.policy.policies import Policies
from hyperd.network.policy.screening import is_named, may_look_up, prohibited, services_for, sift, text_of
from hyperd.network.settings import Address
from hyperd.network.zone import refusal

Ask = Callable[[], Awaitable[dns.message.Message]]


class Screen:
    """Of one network, by its table's name."""

    def __init__(self, policies: Policies, base: str) -> None:
        self._policies = policies
        self._base = base

    async def answer(
        self, guest: str, query: dns.message.Message, own: dns.message.Message | None, ask: Ask
    ) -> dns.message.Message | None:
        """None: it may ask what it likes. ``own``: what the network itself knows; ``ask``: the others."""
        found = self._policies.at(self._base, guest)
        if found is None or found[1].mode is EgressMode.ALLOW_ALL:
            return None
        sandbox_id, policy, tally = found
        name, mine = text_of(query), _addresses(own)
        if not may_look_up(policy, name):
            if own is not None and mine and all(is_named(policy, address) for address in mine):
                return own
            tally.refuse(name)
            return prohibited(query)
        answered = own if own is not None else await ask()
        now = self._policies.at(self._base, guest)
        if now is None or now[0] != sandbox_id or not services_for(now[1], name):
            return prohibited(query)  # it was changed meanwhile
        sifted = sift(now[1], answered, mine, has_ipv6=self._policies.has_ipv6(sandbox_id))
        for address in sifted.left_out:
            tally.refuse(name, str(address))
        if sifted.left_out and not sifted.told:
            return prohibited(query)
        if sifted.told and not await self._policies.learn(sandbox_id, name, sifted.told):
            return refusal(query, dns.rcode.SERVFAIL)
        return sifted.message


def _addresses(own: dns.message.Message | None) -> set[Address]:
    if own is None:
        return set()
    return {
        ip_address(rdata.address)
        for rrset in own.answer
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
        for rdata in rrset
    }
