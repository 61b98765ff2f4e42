# SPDX-License-Identifier: Apache-2.0
"""Back to a host without sandboxes: all containers go, and with them all that the network has made for them."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from hyperd.errors import NotFoundError, WrongStateError
from hyperd.host.groups import first_error
from hyperd.model.container import ContainerView
from hyperd.model.vm import SandboxId
from hyperd.network.base import Network
from hyperd.sandbox.fleet import Fleet, is_running
from hyperd.sandbox.spares import Spares
from hyperd.sandbox.template import Templates

REMOVALS = 8  # at a time


@dataclass(frozen=True, slots=True)
class Gone:
    """What was removed, by name."""

    containers: list[str]
    networks: list[str]
    groups: list[str]
    floating: list[str]


class Resetting:
    def __init__(self, network: Network, fleet: Fleet, spares: Spares, templates: Templates) -> None:
        self._network = network
        self._fleet = fleet
        self._spares = spares
        self._templates = templates

    async def reset(self, *, force: bool) -> Gone:
        """``force``: containers that run are ended. Images, volumes, snapshots, templates and reports stay.

        Raises WrongStateError with their names while containers run. It may be asked again where it failed halfway.
        """
        views = self._fleet.views()
        running = sorted(view.record.name for view in views if is_running(view))
        if running and not force:
            raise WrongStateError(
                f"containers run: {', '.join(running)}",
                subject="reset",
                hint="-f ends them, or stop them first",
            )
        async with self._spares.away(), self._templates.away():  # they have addresses, too
            gone = await self._reset(views)
            self._spares.rest()  # the next one would have the bridge made anew
            return gone

    async def _reset(self, views: Sequence[ContainerView]) -> Gone:
        async with first_error(), asyncio.TaskGroup() as tasks:
            turn = asyncio.Semaphore(REMOVALS)
            for view in views:
                tasks.create_task(self._remove(view.record.sandbox_id, turn))
        floating = await self._network.floating.list_addresses()
        for known in floating:
            if known.sandbox_id is not None:  # of one that nobody knows any more
                await self._network.floating.detach(known.sandbox_id)
            await self._network.floating.release(known.address)
        networks = [view.spec.name for view in self._network.list_networks() if view.created_at is not None]
        await self._network.clear()
        groups = await self._remove_groups()
        return Gone(
            sorted(view.record.name for view in views),
            networks,
            groups,
            [known.address for known in floating],
        )

    async def _remove(self, sandbox_id: SandboxId, turn: asyncio.Semaphore) -> None:
        async with turn:
            with contextlib.suppress(NotFoundError):  # it ended by itself meanwhile, and was to go with that
                await self._fleet.get(sandbox_id).remove(force=True)

    async def _remove_groups(self) -> list[str]:
        """First those that no other speaks of, and so on; what speak of each other lose their rules before."""
        policies = self._network.policies
        names = [group.name for group in policies.groups.list_groups()]
        for name in names:
            await policies.groups.update("{}", name)
        for name in names:
            await policies.remove_group(name)
        return names
