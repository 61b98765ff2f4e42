# SPDX-License-Identifier: Apache-2.0
"""Questions that a name server cannot answer itself, asked of the host's servers; answers are kept for their time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from hyperd.network.zone import refusal

PAYLOAD_BYTES = 1232  # of UDP, as dnsflagday.net has it
ALL_S = 5.0  # for all servers together
EACH_S = 2.0
_MAX_KEPT = 2048
_MAX_KEPT_S, _MAX_DENIED_S = 300, 30
_MAX_BYTES = 4096  # of an answer that is kept
_AT_ONCE = 256
_Key = tuple[str, int, bool]


class Forwarder:
    """``servers``: addresses, as the host has them now."""

    def __init__(self, servers: Callable[[], Sequence[str]]) -> None:
        self._servers = servers
        self._kept: OrderedDict[_Key, tuple[float, float, bytes]] = OrderedDict()  # until, since
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, query: dns.message.Message) -> dns.message.Message:
        """SERVFAIL when nobody answers in time, or too much is being asked at this moment."""
        question = query.question[0]
        key = (question.name.to_text().lower(), int(question.rdtype), bool(query.ednsflags & dns.flags.DO))
        kept = self._find(key)
        if kept is None:
            if self._places.locked():
                return refusal(query, dns.rcode.SERVFAIL)
            async with self._places:
                kept = await self._ask(query)
            if kept is None:
                return refusal(query, dns.rcode.SERVFAIL)
            self._keep(key, kept)
        made = dns.message.make_response(query, recursion_available=True)
        made.set_rcode(kept.rcode())
        made.answer, made.authority, made.additional = kept.answer, kept.authority, kept.additional
        return made

    async def _ask(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        ours = dns.message.make_query(question.name, question.rdtype, question.rdclass)
        ours.use_edns(0, query.ednsflags & dns.flags.DO, PAYLOAD_BYTES)
        try:
            async with asyncio.timeout(ALL_S):
                for server in self._servers():
                    try:
                        answer, _ = await dns.asyncquery.udp_with_fallback(ours, server, timeout=EACH_S)
                    except (OSError, EOFError, dns.exception.DNSException):
                        continue
                    if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                        return answer
        except TimeoutError:
            pass
        return None

    def _find(self, key: _Key) -> dns.message.Message | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        until, since, wire = entry
        now = time.monotonic()
        if now >= until:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        found = dns.message.from_wire(wire)
        for rrset in (*found.answer, *found.authority, *found.additional):
            rrset.ttl = max(0, rrset.ttl - int(now - since))
        return found

    def _keep(self, key: _Key, answer: dns.message.Message) -> None:
        ttls = [rrset.ttl for rrset in (*answer.answer, *answer.authority)]
        most = _MAX_KEPT_S if answer.answer else _MAX_DENIED_S
        lasts_s = min([*ttls, most]) if ttls else 0
        wire = answer.to_wire(max_size=65535)
        if lasts_s <= 0 or len(wire) > _MAX_BYTES:
            return
        now = time.monotonic()
        self._kept[key] = (now + lasts_s, now, wire)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
