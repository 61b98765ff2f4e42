# SPDX-License-Identifier: Apache-2.0
"""Floating addresses of one pool that nobody answers for; satisfies hyperd.network.base.FloatingAddresses."""

from dataclasses import replace
from ipaddress import IPv4Network

from hyperd.errors import ExhaustedError, ExistsError, InvalidError, NotFoundError, WrongStateError
from hyperd.model.network import FloatingAddress
from hyperd.model.vm import SandboxId


class FakeFloating:
    def __init__(self, pool: str = "203.0.113.0/29") -> None:
        self.free = [str(address) for address in IPv4Network(pool).hosts()]
        self.known: dict[str, FloatingAddress] = {}

    async def list_addresses(self) -> list[FloatingAddress]:
        return list(self.known.values())

    async def allocate(self, count: int, wanted: str = "") -> list[FloatingAddress]:
        if wanted and wanted not in self.free:
            raise InvalidError("is in no pool", subject=wanted)
        left = [address for address in self.free if address not in self.known]
        if wanted and wanted not in left:
            raise ExistsError("is taken", subject=wanted)
        if count > len(left):
            raise ExhaustedError(f"{len(left)} are free")
        chosen = [wanted] if wanted else left[:count]
        self.known |= {address: FloatingAddress(address) for address in chosen}
        return [self.known[address] for address in chosen]

    async def attach(self, reference: str, sandbox_id: SandboxId, *, force: bool = False) -> FloatingAddress:
        known = self._require(reference)
        if known.sandbox_id not in (None, sandbox_id) and not force:
            raise WrongStateError(f"is attached to {known.sandbox_id}", subject=reference)
        if any(o.sandbox_id == sandbox_id and o.address != known.address for o in self.known.values()):
            raise ExistsError("has another", subject=sandbox_id)
        return self._put(replace(known, sandbox_id=sandbox_id))

    async def detach(self, sandbox_id: SandboxId) -> FloatingAddress | None:
        for known in self.known.values():
            if known.sandbox_id == sandbox_id:
                self._put(replace(known, sandbox_id=None))
                return known
        return None

    async def name(self, reference: str, name: str) -> FloatingAddress:
        if name and not name[0].isalpha():
            raise InvalidError("is not a name", subject=name)
        known = self._require(reference)
        if name and any(o.name == name and o.address != known.address for o in self.known.values()):
            raise ExistsError("is another's name", subject=name)
        return self._put(replace(known, name=name))

    async def release(self, reference: str) -> None:
        known = self._require(reference)
        if known.sandbox_id is not None:
            raise WrongStateError(f"is attached to {known.sandbox_id[:12]}", subject=reference)
        del self.known[known.address]

    def _require(self, reference: str) -> FloatingAddress:
        for known in self.known.values():
            if reference and reference in (known.address, known.name):
                return known
        raise NotFoundError("no such floating address", subject=reference)

    def _put(self, address: FloatingAddress) -> FloatingAddress:
        self.known[address.address] = address
        return address
