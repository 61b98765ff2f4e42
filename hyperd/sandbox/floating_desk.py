# SPDX-License-Identifier: Apache-2.0
"""Floating addresses as users ask for them: which container has which."""

import asyncio
import contextlib
from collections.abc import Iterator

from hyperd.errors import ExistsError, InvalidError, NotFoundError, WrongStateError
from hyperd.model.container import ContainerRecord
from hyperd.model.network import FloatingAddress
from hyperd.network.base import Network
from hyperd.sandbox.endpoints import endpoints_of
from hyperd.sandbox.fleet import Fleet

Lent = tuple[FloatingAddress, str]  # and the name of the container that has it, "" when none does


class FloatingDesk:
    def __init__(self, network: Network, fleet: Fleet) -> None:
        self._network = network
        self._fleet = fleet

    async def list_all(self) -> list[Lent]:
        """In order."""
        return [self._lent(each) for each in await self._network.floating.list_addresses()]

    async def allocate(self, count: int, wanted: str) -> list[Lent]:
        """Raises ExhaustedError, ExistsError for the wanted one, InvalidError."""
        return [self._lent(each) for each in await self._network.floating.allocate(count, wanted)]

    async def attach(self, reference: str, container: str, *, force: bool) -> Lent:
        """Also to one that does not run. Raises NotFoundError, WrongStateError, ExistsError, InvalidError."""
        handle = self._fleet.get(container)
        record = handle.record
        self._require_way_out(record)
        try:
            with self._names():
                made = await self._network.floating.attach(reference, record.sandbox_id, force=force)
        finally:
            if handle.is_being_removed:  # since, and what it had is taken from it already
                await asyncio.shield(self._network.floating.detach(record.sandbox_id))
        if handle.is_being_removed:
            raise WrongStateError("is being removed", subject=f"container {record.name}")
        return self._lent(made)

    async def detach(self, container: str) -> Lent:
        """Raises NotFoundError."""
        record = self._find(container)
        had = await self._network.floating.detach(record.sandbox_id)
        if had is None:
            raise NotFoundError("has no floating address", subject=f"container {record.name}")
        return had, record.name

    async def name(self, reference: str, name: str) -> Lent:
        """Raises NotFoundError, ExistsError, InvalidError."""
        return self._lent(await self._network.floating.name(reference, name))

    async def release(self, reference: str) -> None:
        """Raises NotFoundError, WrongStateError while it is attached."""
        with self._names():
            await self._network.floating.release(reference)

    def _require_way_out(self, record: ContainerRecord) -> None:
        endpoints = endpoints_of(record.spec)
        if not endpoints:
            raise InvalidError("has no network of its own", subject=f"container {record.name}")
        if all(self._network.get_network(at.network).spec.internal for at in endpoints):
            raise InvalidError(
                "is on internal networks alone: nothing comes in there, and nothing leaves",
                subject=f"container {record.name}",
                hint="`hyper network connect` puts it on another",
            )

    @contextlib.contextmanager
    def _names(self) -> Iterator[None]:
        """The network knows containers by their ids alone."""
        try:
            yield
        except (WrongStateError, ExistsError) as error:
            for view in self._fleet.views():
                short, name = view.record.sandbox_id[:12], view.record.name
                error.brief = error.brief.replace(short, name)
                error.subject = error.subject.replace(short, name)
            raise

    def _find(self, reference: str) -> ContainerRecord:
        return self._fleet.get(reference).record

    def _lent(self, address: FloatingAddress) -> Lent:
        return address, self._fleet.name_of(address.sandbox_id) if address.sandbox_id is not None else ""
