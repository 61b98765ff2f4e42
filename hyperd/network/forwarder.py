# SPDX-License-Identifier: Apache-2.0
"""Questions that a name server cannot answer itself, asked of the host's servers; answers are kept for their time."""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence

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
_AT_ONCE, _AT_ONCE_EACH = 512, 16  # of all guests, of each
_Key = tuple[str, int, bool]


class _Share:
    """A guest's: so many of its questions are asked at one time, the others wait for those."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(_AT_ONCE_EACH)
        self.wanted = 0


class Forwarder:
    """``servers``: addresses, as the host has them now. Guests are hostile: what one asks takes no other's place."""

    def __init__(self, servers: Callable[[], Sequence[str]]) -> None:
        self._servers = servers
        self._kept: OrderedDict[_Key, tuple[float, float, bytes]] = OrderedDict()  # until, since
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._shares: dict[str, _Share] = {}  # by guest
        self._asking: dict[_Key, asyncio.Future[dns.message.Message | None]] = {}

    async def ask(self, query: dns.message.Message, guest: str) -> dns.message.Message:
        """SERVFAIL when nobody answers in time, or too much is being asked at this moment."""
        question = query.question[0]
        key = (question.name.to_text().lower(), int(question.rdtype), bool(query.ednsflags & dns.flags.DO))
        found = self._find(key)
        if found is None:
            try:
                async with asyncio.timeout(ALL_S):
                    found = await self._ask_in_turn(key, query, guest)
            except TimeoutError:
                pass
        if found is None:
            return refusal(query, dns.rcode.SERVFAIL)
        made = dns.message.make_response(query, recursion_available=True)
        made.set_rcode(found.rcode())
        made.answer, made.authority, made.additional = found.answer, found.authority, found.additional
        return made

    async def _ask_in_turn(
        self, key: _Key, query: dns.message.Message, guest: str
    ) -> dns.message.Message | None:
        """One that is being asked is not asked again; None when nobody knows."""
        async with self._share(guest):
            under_way = self._asking.get(key)
            if under_way is not None:
                return await asyncio.shield(under_way)
            found = self._find(key)
            if found is not None or self._places.locked():
                return found
            told = self._asking[key] = asyncio.get_running_loop().create_future()
            try:
                async with self._places:
                    found = await self._ask(query)
                if found is not None:
                    self._keep(key, found)
                return found
            finally:
                del self._asking[key]
                told.set_result(found)

    @contextlib.asynccontextmanager
    async def _share(self, guest: str) -> AsyncIterator[None]:
        share = self._shares.setdefault(guest, _Share())
        share.wanted += 1
        try:
            async with share.places:
                yield
        finally:
            share.wanted -= 1
            if not share.wanted:
                del self._shares[guest]

    async def _ask(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        ours = dns.message.make_query(question.name, question.rdtype, question.rdclass)
        ours.use_edns(0, query.ednsflags & dns.flags.DO, PAYLOAD_BYTES)
        for server in self._servers():
            try:
                answer, _ = await dns.asyncquery.udp_with_fallback(ours, server, timeout=EACH_S)
            except (OSError, EOFError, dns.exception.DNSException):
                continue
            if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return answer
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
